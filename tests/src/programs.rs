//! The two programs, run as a user runs them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    /// Everything it wrote to stdout.
    pub stdout: String,
    /// Everything it wrote to stderr.
    pub stderr: String,
}

/// Runs `fuserun` with these arguments; `input` is its stdin.
pub fn fuserun<A: AsRef<OsStr>>(arguments: &[A], input: &str) -> Finished {
    run("fuserun", arguments, input)
}

/// Runs `fusec` with these arguments.
pub fn fusec<A: AsRef<OsStr>>(arguments: &[A]) -> Finished {
    run("fusec", arguments, "")
}

fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A], input: &str) -> Finished {
    let mut command = Command::new(folder().join(format!("{name}{}", std::env::consts::EXE_SUFFIX)));
    // What the caller's shell sets must not change what is tested.
    for (variable, _) in std::env::vars_os() {
        let keep = ["FUSE_CACHE", "FUSE_NVRTC"];
        if variable.to_str().is_some_and(|name| name.starts_with("FUSE_") && !keep.contains(&name)) {
            command.env_remove(variable);
        }
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    // A program that does not read its input closes it early, which is no fault.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("programs write UTF-8");
    Finished { code: done.status.code().unwrap_or(-1), stdout: text(&done.stdout), stderr: text(&done.stderr) }
}

/// Where the programs lie, built: cargo builds those of another package only when it is asked.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let folder = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/PROFILE/deps");
        let profile = match folder.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(super::root()).args([
            "build",
            "--quiet",
            "--profile",
            profile,
            "-p",
            "fusec",
            "-p",
            "fuserun",
        ]);
        match build.output() {
            Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
            // Tests that were carried to a machine without cargo come with the programs beside them.
            Err(error) => assert!(folder.join("fuserun").exists(), "cargo: {error}"),
        }
        folder.to_path_buf()
    })
}
