//! The command line. What was asked for goes to stdout, everything else to stderr.

mod checkpoint;
mod compile;
mod inspect;
mod model;
mod show;
mod tune;

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "fusec",
    version,
    about = "Compiles a declarative model description into CUDA made for that model",
    after_help = "Exit status: 0 done, 1 failed, 2 bad usage. Each flag also reads the environment variable named beside it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compiles a model to a .fuse file; needs no GPU.
    Compile(compile::CompileArgs),
    /// Checks a description, its configuration and the tensors of its checkpoint.
    Check(show::CheckArgs),
    /// Prints the graph in its text form.
    Print(show::PrintArgs),
    /// Says which passes fired, and why others did not.
    Explain(show::ExplainArgs),
    /// Draws the graph.
    Graph(show::GraphArgs),
    /// Says what is in a .fuse file: architectures, kernels, registers, shared memory, spills, launches.
    Inspect(inspect::InspectArgs),
    /// Measures launch shapes on the GPU at hand, with fuserun, and writes those that win into a record.
    Tune(tune::TuneArgs),
    /// Lists the passes in the order in which they run.
    Passes,
}

/// Runs the command line of this process: exit code 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    exit(match Cli::parse().command {
        Command::Compile(args) => compile::run(&args),
        Command::Check(args) => show::check(&args),
        Command::Print(args) => show::print(&args),
        Command::Explain(args) => show::explain(&args),
        Command::Graph(args) => show::graph(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Passes => show::passes(),
    })
}

/// The exit code of a command; says on stderr why it failed.
pub fn exit(done: Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let text = format!("{error:#}");
    let text = text.trim_end();
    // Errors about a description come rendered, each with its own title.
    if text.starts_with("error[") || text.starts_with("error:") {
        tell(text)
    } else {
        tell(format!("error: {text}"))
    }
    ExitCode::FAILURE
}

/// Writes to stdout. A reader that has gone away wants no more, which is no failure.
///
/// # Errors
/// Where stdout cannot be written for another reason.
pub fn show(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, where there is one.
pub fn tell(line: impl Display) {
    // With no stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}
