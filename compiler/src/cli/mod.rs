//! The command line. What was asked for goes to stdout, everything else to stderr.

mod arguments;
mod checkpoint;
mod compile;
mod inspect;
mod model;
mod new;
mod show;
mod tune;

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

pub use arguments::main as run;

const EXAMPLES: &str = "\
Examples:
  fusec compile llama --arch sm_90a -o llama.fuse
  fusec check --checkpoint Qwen3-0.6B              a Hugging Face folder
  fusec explain qwen3                              which passes fired, and why others did not
  fusec new --from MyModel -o mymodel.toml         drafts a description

Exit status: 0 done, 1 failed, 2 bad usage. Each flag also reads the environment variable named beside it.";

#[derive(Parser)]
#[command(
    name = "fusec",
    version,
    about = "Compiles a declarative model description into CUDA made for that model",
    after_help = EXAMPLES
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
    /// Drafts a description from a checkpoint's config.json and tensors.
    New(new::NewArgs),
    /// Prints the JSON Schema of descriptions, for editors.
    Schema,
    /// Prints the graph in its text form.
    Print(show::PrintArgs),
    /// Says which passes fired, and why others did not.
    Explain(show::ExplainArgs),
    /// Draws the graph.
    Graph(show::GraphArgs),
    /// Says what is in a .fuse file: kernels, registers, shared memory, launches.
    Inspect(inspect::InspectArgs),
    /// Measures launch shapes on the GPU at hand and records those that win.
    Tune(tune::TuneArgs),
    /// Lists the passes in the order in which they run.
    Passes,
}

/// Runs the command line of this process: exit code 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    arguments::main(|cli: Cli| match cli.command {
        Command::Compile(args) => compile::run(&args),
        Command::Check(args) => show::check(&args),
        Command::New(args) => new::run(&args),
        Command::Schema => show::schema(),
        Command::Print(args) => show::print(&args),
        Command::Explain(args) => show::explain(&args),
        Command::Graph(args) => show::graph(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Passes => show::passes(),
    })
}

/// The exit code of a command; says on stderr why it failed.
fn exit(done: Result<()>) -> ExitCode {
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
