//! What the commands that read a description share: which one, for which configuration, with which passes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::checkpoint;
use crate::compile::{CompileOptions, Model, compile, quantising, quantising_note};
use crate::console::tell;
use crate::description::{
    Description, also_served, architectures, find_named, find_serving, lacking, shipped, user_folder,
};
use crate::files::{read_json, read_text};
use crate::folder::checkpoint_folder;
use crate::passes::Selection;
use crate::tensors::Accounting;
use crate::text::closest;

/// Which model, and which passes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and passes")]
pub(super) struct ModelArgs {
    /// A description, or the name of a shipped one (llama). May be left out where config.json names an architecture that a shipped one serves.
    #[arg(required_unless_present_any = ["checkpoint", "config"], help_heading = None::<&str>)]
    pub model: Option<PathBuf>,
    /// A Hugging Face folder: its config.json is used, and its tensors are compared with the model's by name and shape. No weight is read.
    #[arg(long, env = "FUSE_CHECKPOINT", value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// A config.json, in the place of the checkpoint's or the description's own.
    #[arg(long, env = "FUSE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Passes to leave out (-name,…), or the only ones to run (name,…); all or none.
    #[arg(long, env = "FUSE_PASSES", allow_hyphen_values = true, value_name = "-NAME,…", value_parser = pass_list)]
    pub passes: Option<String>,
    /// -O0 runs no pass: the unfused reference.
    #[arg(short = 'O', env = "FUSE_O", value_name = "LEVEL", value_parser = ["0"])]
    pub level: Option<String>,
}

/// A description with its configuration.
pub(super) struct Opened {
    /// What messages call the description.
    pub file: String,
    /// Its text.
    pub text: String,
    pub description: Description,
    /// None: the description's preset.
    pub config: Option<Value>,
    /// The checkpoint's folder.
    checkpoint: Option<PathBuf>,
    /// Whether the user was told of keys that nothing knows.
    noted: Once,
}

impl ModelArgs {
    /// Reads the description and the configuration.
    pub fn open(&self) -> Result<Opened> {
        let checkpoint = self.checkpoint.as_deref().map(checkpoint_folder).transpose()?;
        let config = match (&self.config, &checkpoint) {
            (Some(path), _) => Some(read_json(path)?),
            (None, Some(folder)) => Some(checkpoint::config(folder)?),
            (None, None) => None,
        };
        let (file, text) = match (&self.model, &config) {
            (Some(model), _) => read_description(model)?,
            (None, Some(config)) => serving(config)?,
            (None, None) => bail!("no description is named"),
        };
        let description = Description::parse(&text, &file).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
        Ok(Opened { file, text, description, config, checkpoint, noted: Once::new() })
    }

    /// The passes that run.
    pub fn selection(&self) -> Result<Selection> {
        let list = self.passes.as_deref().unwrap_or_default();
        match self.level {
            Some(_) => Selection::parse(&format!("none,{list}")),
            None => Selection::parse(list),
        }
    }

    /// Options with these passes and nothing else set.
    pub fn options(&self) -> Result<CompileOptions> {
        Ok(CompileOptions { passes: self.selection()?, ..CompileOptions::default() })
    }
}

impl Opened {
    /// The model up to the text of its kernels, its tensors found in the checkpoint where one is named.
    pub fn compile(&self, options: &CompileOptions) -> Result<Model> {
        let (options, quantised) = match &self.checkpoint {
            Some(folder) => {
                let options = CompileOptions { formats: checkpoint::tensors(folder)?.formats, ..options.clone() };
                let name = folder.display().to_string();
                quantising(&name, &self.description, self.config.as_ref(), options)?
            }
            None => (options.clone(), BTreeMap::new()),
        };
        let model = compile(&self.description, self.config.as_ref(), &options)?;
        self.account(&model)?;
        let notes = || model.resolved.unread_note().into_iter().chain(quantising_note(&quantised));
        self.noted.call_once(|| notes().for_each(tell));
        Ok(model)
    }

    /// What the checkpoint's tensors are to the model; none without a checkpoint, or where it has no weights.
    pub fn account(&self, model: &Model) -> Result<Option<Accounting>> {
        match &self.checkpoint {
            Some(folder) => checkpoint::account(folder, model),
            None => Ok(None),
        }
    }
}

/// A list that [`Selection`] reads. It stays text: what it means depends on `-O0`.
fn pass_list(list: &str) -> Result<String> {
    Selection::parse(list).map(|_| list.to_owned())
}

/// File name and text: of the file, or of the description of that name in the user's folder or in the binary.
fn read_description(model: &Path) -> Result<(String, String)> {
    if !model.exists() {
        let named = model.to_str().unwrap_or_default();
        let families = || shipped().iter().map(|(file, _)| file.trim_end_matches(".toml"));
        if let Some(found) = find_named(named, user_folder().as_deref())? {
            return Ok(found);
        }
        let near = closest(named, families()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let families: Vec<&str> = families().collect();
        bail!("there is no description {}{near} (shipped: {})", model.display(), families.join(", "));
    }
    ensure!(
        !model.is_dir(),
        "{} is a folder, not a description: a checkpoint's folder goes after --checkpoint",
        model.display()
    );
    let text = read_text(model).context("cannot read the description")?;
    Ok((model.display().to_string(), text))
}

/// The description for the architecture that a config.json names: one in the user's folder, or a shipped one.
fn serving(config: &Value) -> Result<(String, String)> {
    let names = architectures(config);
    let Some(found) = find_serving(&names, user_folder().as_deref())? else {
        if let Some(why) = lacking(config) {
            bail!("{why}: no description can serve it; docs/models.md lists the families that run");
        }
        ensure!(!names.is_empty(), "config.json names no architecture: name a description before the flags");
        bail!(
            "no description serves {}{}: name one that does before the flags, or draft one with fusec new --from DIR",
            names.join(", "),
            also_served(&names)
        );
    };
    Ok(found)
}
