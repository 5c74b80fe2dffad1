//! The program that measures: `fuserun measure`, a process that is given files and answers with a line of JSON each.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::console::tell;

/// The GPU that is measured on.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct About {
    pub arch: String,
    pub gpu: String,
    pub driver: String,
}

/// A candidate's step beside that of the heuristics, in microseconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Measured {
    pub us: f64,
    pub default_us: f64,
    /// Rounds in which it was the faster one.
    pub wins: usize,
    pub rounds: usize,
    /// How far its logits are from those of the heuristics.
    pub nmse: f64,
}

impl Measured {
    /// The share of the step's time that it saves.
    pub(super) fn gain(&self) -> f64 {
        1.0 - self.us / self.default_us
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} us per step where the heuristics take {:.1} ({:+.1}%)",
            self.us,
            self.default_us,
            -100.0 * self.gain()
        )
    }
}

/// Asks what GPU there is.
pub(super) fn about(program: &Path, gpu: usize) -> Result<About> {
    let done = Command::new(program)
        .args(["measure", "--about", "--gpu", &gpu.to_string()])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "{} cannot measure: {}",
        program.display(),
        said.trim().trim_start_matches("error: ")
    );
    read(&String::from_utf8_lossy(&done.stdout)).with_context(|| format!("{} measure --about", program.display()))
}

/// A process that has a model loaded and measures others beside it.
pub(super) struct Judge {
    child: Child,
    // Closed before the process is waited for.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Judge {
    /// Starts it; what it says on stderr goes to ours.
    pub(super) fn start(program: &Path, arguments: &[String]) -> Result<Judge> {
        let mut child = Command::new(program)
            .arg("measure")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("its stdout is a pipe")?);
        Ok(Judge { child, to, from })
    }

    /// Measures the artifact of a file; says why, and returns none, where it cannot be run.
    pub(super) fn measure(&mut self, file: &Path) -> Result<Option<Measured>> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Answer {
            Failed { error: String },
            Done(Measured),
        }
        let asked =
            self.to.as_mut().is_some_and(|to| writeln!(to, "{}", file.display()).and_then(|()| to.flush()).is_ok());
        let mut line = String::new();
        self.from.read_line(&mut line).context("cannot read what fuserun measure answers")?;
        if !asked || line.is_empty() {
            let status = self.child.wait().context("fuserun measure")?;
            bail!("fuserun measure ended early ({status})");
        }
        match read(&line).context("fuserun measure")? {
            Answer::Done(measured) => Ok(Some(measured)),
            Answer::Failed { error } => {
                tell(format!("  a candidate cannot be run: {error}"));
                Ok(None)
            }
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        drop(self.to.take());
        // It ends where its input does.
        let _ = self.child.wait();
    }
}

fn read<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("answers what is not understood: {}", line.trim()))
}
