//! The command line. Text goes to stdout, everything else to stderr; `--json` prints one object.

mod bench;
mod generate;
mod logits;
mod measure;
mod profile;
mod sampling;
mod verify;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use fusec::cli::tell;
use fusec::passes::Selection;
use fusec::plan::TuningSource;

use crate::backend::{Device, LoadOptions};
use crate::model::{ModelName, OpenModel, Text};

const EXAMPLES: &str = "\
Examples:
  fuserun generate \"Call me\"                            with the demo model in this binary
  fuserun generate -m Llama-3.2-1B \"Once upon a time\"   a Hugging Face folder
  fuserun generate -m model.gguf --chat \"Hello\"         a GGUF file
  fuserun bench -m model.gguf --device cpu

Exit status: 0 done, 1 failed, 2 bad usage. Each flag also reads the environment variable named beside it.";

#[derive(Parser)]
#[command(
    name = "fuserun",
    version,
    about = "Runs compiled language models: one captured CUDA graph a token, or the CPU",
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
}

/// Which model, and where it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct ModelArgs {
    /// A Hugging Face folder, a .gguf, a .fuse or a .toml file; nothing: the demo model in this binary.
    #[arg(short, long, env = "FUSE_MODEL")]
    model: Option<PathBuf>,
    /// The folder or .gguf file with the weights of a .fuse or .toml file.
    #[arg(long, env = "FUSE_CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// A description to use instead of the one that serves the checkpoint.
    #[arg(long, env = "FUSE_DESCRIPTION", value_name = "FILE.toml")]
    description: Option<PathBuf>,
    /// Where it runs: auto, cpu, cuda:N, or interpreter (slow, exact).
    #[arg(long, env = "FUSE_DEVICE", default_value = "auto")]
    device: Device,
    /// Positions a sequence may have; the default is what a .fuse file was compiled for, else the model's own, up to 4096.
    #[arg(long, env = "FUSE_MAX_CONTEXT", value_name = "N")]
    max_context: Option<NonZeroUsize>,
    /// Passes to leave out (-name,…), or to run alone (name,…); all or none.
    #[arg(long, env = "FUSE_PASSES", allow_hyphen_values = true, value_name = "-NAME,…")]
    passes: Option<Selection>,
    /// Launch shapes on a GPU: auto (the shipped record of its architecture, where there is one), none (the plan's own rules), or a record of fusec tune.
    #[arg(long, env = "FUSE_TUNING", value_name = "FILE", default_value = "auto")]
    tuning: TuningSource,
    /// CPU threads; the default is every core.
    #[arg(long, env = "FUSE_THREADS", value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl ModelArgs {
    fn name(&self, dummy_weights: bool) -> ModelName {
        ModelName {
            model: self.model.clone(),
            checkpoint: self.checkpoint.clone(),
            description: self.description.clone(),
            dummy_weights,
            passes: self.passes.clone(),
            tuning: self.tuning.clone(),
        }
    }

    fn open(&self, dummy_weights: bool) -> Result<OpenModel> {
        let opened = OpenModel::open(&self.name(dummy_weights))?;
        if let Some(note) = opened.overrides() {
            tell(note);
        }
        Ok(opened)
    }

    /// Options for `text` and a context of at most `most` where the user names none; says on stderr what is doubtful about the model.
    fn load_options(&self, model: &OpenModel, batches: &[usize], most: usize, text: Text) -> Result<LoadOptions> {
        let (context, doubt) = model.context(self.max_context.map(NonZeroUsize::get), most, text)?;
        model.unread_note()?.into_iter().chain(doubt).for_each(tell);
        let sequences = batches.iter().copied().max().unwrap_or(1);
        Ok(LoadOptions { context, sequences, batches: batches.to_vec(), threads: self.threads.map(NonZeroUsize::get) })
    }

    /// The device to use; says on stderr why, where `auto` did not find a GPU.
    fn device(&self, model: &OpenModel) -> Device {
        let (device, reason) = self.device.resolve(model.brings_device_code());
        if let Some(reason) = reason {
            tell(reason);
        }
        if let (Device::Cuda(_), Some(note)) = (&device, model.rounded()) {
            tell(note);
        }
        device
    }
}

/// Runs the command line of this process: exit code 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    fusec::cli::run(|cli: Cli| match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Tokenize(args) => generate::tokenize(&args),
    })
}
