//! The command line. Text goes to stdout, everything else to stderr; `--json` prints one object.

mod bench;
mod chat;
mod doctor;
mod generate;
mod logits;
mod measure;
mod model;
mod overview;
mod profile;
mod pull;
mod quantize;
mod sampling;
mod serve;
mod verify;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fusec::console::pages::{CompletionsArgs, ManArgs, completions, man};
use fusec::console::{self, show, tell};

const EXAMPLES: &str = "\
Examples:
  fuserun generate \"Call me\"                            with the demo model in this binary
  fuserun generate -m Llama-3.2-1B \"Once upon a time\"   a Hugging Face folder
  fuserun generate -m model.gguf --chat \"Hello\"         a GGUF file
  fuserun chat -m Qwen/Qwen3-0.6B --pull                a model on the hub
  fuserun bench -m model.gguf --device cpu

Exit status: 0 done, 1 failed, 2 bad usage. Each flag also reads the environment variable named beside it.";

#[derive(Parser)]
#[command(
    name = "fuserun",
    version,
    about = "Runs compiled language models: one captured CUDA graph per token, or the CPU",
    after_help = EXAMPLES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continues a prompt.
    Generate(generate::GenerateArgs),
    /// Talks with a model, turn by turn.
    Chat(chat::ChatArgs),
    /// Answers requests over HTTP, by the APIs that clients speak.
    Serve(serve::ServeArgs),
    /// Gets a model from the Hugging Face hub into its cache.
    Pull(pull::PullArgs),
    /// Writes a checkpoint with quantised weights that other programs read too.
    Quantize(quantize::QuantizeArgs),
    /// Measures prompt and decode speed.
    Bench(bench::BenchArgs),
    /// Takes a decode step on a GPU apart, kernel by kernel.
    Profile(profile::ProfileArgs),
    /// Writes the logits of given tokens to a safetensors file.
    Logits(logits::LogitsArgs),
    /// Finds the first value that differs from another implementation's.
    Verify(verify::VerifyArgs),
    /// Measures artifacts for fusec tune.
    #[command(hide = true)]
    Measure(measure::MeasureArgs),
    /// Prints the token ids of a text.
    Tokenize(generate::TokenizeArgs),
    /// Checks what models need of this machine, and says how to mend it.
    Doctor(doctor::DoctorArgs),
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
    if std::env::args_os().len() == 1 && stdout().is_terminal() {
        return console::exit(overview::run());
    }
    console::run(|cli: Cli| match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Tokenize(args) => generate::tokenize(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions("fuserun", &command(), &args).and_then(show),
        Command::Man(args) => man("fuserun", &command(), &args).map(|count| tell(format!("wrote {count} pages"))),
    })
}
