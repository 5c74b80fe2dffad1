//! The flags that say which model, and where it runs.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::tell;
use fusec::passes::Selection;
use fusec::plan::{TuningSource, WeightFormat};

use super::pull::get_missing;
use crate::backend::{Device, LoadOptions};
use crate::model::{ModelName, OpenModel, Text};

/// Which model, and where it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct ModelArgs {
    /// A Hugging Face folder, a .gguf, a .fuse or a .toml file, or OWNER/NAME of a model in the hub's cache; nothing: the demo model in this binary.
    #[arg(short, long, env = "FUSE_MODEL")]
    pub model: Option<PathBuf>,
    /// Get a model that is named as OWNER/NAME from the hub where it is not in the cache; without this nothing is fetched.
    #[arg(long, env = "FUSE_PULL", value_parser = FalseyValueParser::new())]
    pull: bool,
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
    /// Passes to leave out (-name,…), or the only ones to run (name,…); all or none.
    #[arg(long, env = "FUSE_PASSES", allow_hyphen_values = true, value_name = "-NAME,…")]
    passes: Option<Selection>,
    /// Launch shapes on a GPU: auto (the shipped record of its architecture, where there is one), none (the plan's own rules), or a record of fusec tune.
    #[arg(long, env = "FUSE_TUNING", value_name = "FILE", default_value = "auto")]
    tuning: TuningSource,
    /// How weights are taken: auto, as they are stored, where kernels read that; bf16 or f16; or quantised: q8_0, q6_k, q5_k, q4_k, q4_0, mxfp4, fp8, int8, int4 and others.
    #[arg(long, env = "FUSE_WEIGHTS", value_name = "FORMAT", default_value = "auto")]
    weights: WeightFormat,
    /// CPU threads; the default is every core.
    #[arg(long, env = "FUSE_THREADS", value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl ModelArgs {
    pub fn name(&self, dummy_weights: bool) -> ModelName {
        ModelName {
            model: self.model.clone(),
            checkpoint: self.checkpoint.clone(),
            description: self.description.clone(),
            dummy_weights,
            passes: self.passes.clone(),
            tuning: self.tuning.clone(),
            weights: self.weights,
        }
    }

    /// Gets what is named of the hub and not there, where the user wants that.
    pub fn fetch(&self) -> Result<()> {
        let named = self.model.iter().chain(&self.checkpoint);
        named.filter(|_| self.pull).try_for_each(|path| get_missing(path))
    }

    pub fn open(&self, dummy_weights: bool) -> Result<OpenModel> {
        self.fetch()?;
        let opened = OpenModel::open(&self.name(dummy_weights))?;
        if let Some(note) = opened.overrides() {
            tell(note);
        }
        Ok(opened)
    }

    /// Options for `text` and a context of at most `most` where the user names none; says on stderr what is doubtful about the model.
    pub fn load_options(&self, model: &OpenModel, batches: &[usize], most: usize, text: Text) -> Result<LoadOptions> {
        let (context, doubt) = model.context(self.max_context.map(NonZeroUsize::get), most, text)?;
        model.unread_note()?.into_iter().chain(doubt).for_each(tell);
        let sequences = batches.iter().copied().max().unwrap_or(1);
        Ok(LoadOptions { context, sequences, batches: batches.to_vec(), threads: self.threads.map(NonZeroUsize::get) })
    }

    /// The device to use; says on stderr why, where `auto` did not find a GPU.
    pub fn device(&self, model: &OpenModel) -> Device {
        let (device, reason) = self.device.resolve(model.brings_device_code());
        if let Some(reason) = reason {
            tell(reason);
        }
        let note = match &device {
            Device::Cuda(_) => model.rounded(),
            _ => model.widened(),
        };
        model.quantised().into_iter().chain(note).for_each(tell);
        device
    }
}
