//! The programs of this workspace, run as a user runs them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What a program printed and returned.
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
    finish(command("fuserun").args(arguments), input)
}

/// Runs `fusec` with these arguments.
pub fn fusec<A: AsRef<OsStr>>(arguments: &[A]) -> Finished {
    finish(command("fusec").args(arguments), "")
}

/// A command of the program of this name (and package), which reads no settings of ours from the environment, but where NVRTC is, finds no
/// descriptions of the user's and no models of the hub's, and keeps kernels in `.cache/kernels`.
///
/// # Panics
/// When it cannot be built.
pub fn command(program: &'static str) -> Command {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(built.entry(program).or_insert_with(|| build(program)));
    for (name, _) in std::env::vars_os() {
        let ours = ["FUSE_", "HF_"].iter().any(|start| name.to_string_lossy().starts_with(start));
        if ours && name != "FUSE_NVRTC" {
            command.env_remove(name);
        }
    }
    command.env("FUSE_CACHE", root().join(".cache")).env("FUSE_MODELS", root().join("no-descriptions"));
    command.env("HF_HOME", root().join("no-hub")).env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs a command to its end; `input` is its stdin.
///
/// # Panics
/// When it does not start, or writes what is no text.
pub fn finish(command: &mut Command, input: &str) -> Finished {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = |command: &mut Command| {
        let mut child = command.spawn()?;
        // A program that does not read its input closes it early, which is no fault.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    };
    let done = run(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs write text");
    Finished { code: done.status.code().unwrap_or(-1), stdout: text(done.stdout), stderr: text(done.stderr) }
}

/// Runs its arguments with a terminal of that many columns as stdout, and passes on what is written there.
const TERMINAL: &str = "
import fcntl, os, pty, struct, subprocess, sys, termios
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, int(sys.argv[1]), 0, 0))
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=theirs)
os.close(theirs)
while True:
    try:
        written = os.read(ours, 4096)
    except OSError:
        break
    if not written:
        break
    sys.stdout.buffer.write(written)
sys.stdout.flush()
sys.exit(child.wait())
";

/// Runs a command with a terminal of `columns` as its stdout; stderr is a pipe, stdin is empty.
///
/// # Panics
/// As [`finish`].
pub fn on_terminal(command: &Command, columns: usize) -> Finished {
    let mut python = Command::new("python3");
    python.args(["-c", TERMINAL, &columns.to_string()]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let done = finish(&mut python, "");
    Finished { stdout: done.stdout.replace("\r\n", "\n"), ..done }
}

/// A program in `folder`, as a user whom permissions and limits bind, who may start `processes` at most, threads included. None where this user
/// cannot become another: only root can.
///
/// # Panics
/// When the program cannot be built, or copied to where that user reaches it.
pub fn as_nobody(program: &'static str, folder: &Path, processes: usize) -> Option<Command> {
    let limited = |program: &Path| {
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nproc={processes}")).args([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ]);
        limited.arg("--").arg(program).current_dir("/");
        limited
    };
    let can = limited(Path::new("true")).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    can.then(|| {
        let copy = folder.join(program);
        std::fs::copy(command(program).get_program(), &copy).expect("a program can be copied");
        limited(&copy)
    })
}

/// The top folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}

/// The program in cargo's target folder, up to date: cargo builds those of another package only when it is asked.
fn build(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    // With the features of the whole workspace, as `tests/run` builds it.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--bin", name]).current_dir(root());
    // What cargo says to this test of its own package: build scripts that watch such a variable would run again, and all that depends on them.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_BIN_") {
            cargo.env_remove(variable);
        }
    }
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
