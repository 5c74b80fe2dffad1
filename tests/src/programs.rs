//! The two programs, run as a user runs them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use crate::binary::{binary, command, stderr, stdout};

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
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    run(PATH.get_or_init(|| binary("fuserun", "fuserun")), arguments, input)
}

/// Runs `fusec` with these arguments.
pub fn fusec<A: AsRef<OsStr>>(arguments: &[A]) -> Finished {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    run(PATH.get_or_init(|| binary("fusec", "fusec")), arguments, "")
}

fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A], input: &str) -> Finished {
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // A program that does not read its input closes it early, which is no fault.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    Finished { code: done.status.code().unwrap_or(-1), stdout: stdout(&done), stderr: stderr(&done) }
}
