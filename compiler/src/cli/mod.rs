//! The command line. What was asked for goes to stdout, everything else to stderr.

mod checkpoint;
mod compile;
mod inspect;
mod model;
mod new;
mod show;
mod tune;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::console::pages::{CompletionsArgs, ManArgs, completions, man};
use crate::console::{self, show as print, tell};

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
    /// Lists the passes in the order in which they run, then the rules.
    Passes,
    /// Prints what lets a shell complete commands and flags.
    Completions(CompletionsArgs),
    /// Writes manual pages.
    Man(ManArgs),
}

/// The whole command line, for pages about it.
pub fn command() -> clap::Command {
    console::command::<Cli>()
}

/// Runs the command line of this process: exit code 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    console::run(|cli: Cli| match cli.command {
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
        Command::Completions(args) => completions("fusec", &command(), &args).and_then(print),
        Command::Man(args) => man("fusec", &command(), &args).map(|count| tell(format!("wrote {count} pages"))),
    })
}
