//! The programs of this workspace, run as a user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The top folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}

/// The program of this name in cargo's target folder, up to date: cargo builds those of another package only when it is asked.
///
/// # Panics
/// When it cannot be built.
pub fn binary(package: &str, name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", package, "--bin", name]).current_dir(root());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    match cargo.output() {
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
        // Tests that were carried to a machine without cargo come with the programs beside them.
        Err(error) => assert!(path.exists(), "cannot run cargo to build {name}: {error}"),
    }
    path
}

/// A command that reads no settings of ours from the environment, but where NVRTC is, and keeps kernels in `.cache/kernels`.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FUSE_") && name != "FUSE_NVRTC" {
            command.env_remove(name);
        }
    }
    command.env("FUSE_CACHE", root().join(".cache"));
    command
}

/// An empty folder below cargo's target folder, of this test alone.
pub fn scratch(test: &str) -> PathBuf {
    let target = std::env::current_exe().expect("a test has a path").parent().expect("and a folder").to_owned();
    let folder = target.join("scratch").join(test);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("a scratch folder can be emptied");
    }
    std::fs::create_dir_all(&folder).expect("a scratch folder can be made");
    folder
}

/// What a program wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

/// What a program wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is text")
}
