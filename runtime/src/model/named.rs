//! What a user names, sorted by what it is, and what is read of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fusec::artifact::Artifact;
use fusec::description::{also_served, architectures, find_serving, lacking, user_folder};
use fusec::files;
use fusec::folder::{self, checkpoint_folder};
use fusec::passes::Selection;
use fusec::plan::{TuningSource, WeightFormat};
use serde_json::Value;

use crate::demo;
use crate::generate::tokenizer::Tokenizer;
use crate::hub::{Name, Settings, find};
use crate::weights::Checkpoint;

/// What a user names.
#[derive(Clone, Debug, Default)]
pub struct ModelName {
    /// A Hugging Face folder, a .gguf, a .fuse or a .toml file, or the name of a model in the hub's cache; none: the demo model.
    pub model: Option<PathBuf>,
    /// The folder, .gguf file or model in the hub's cache with a .fuse or .toml file's weights.
    pub checkpoint: Option<PathBuf>,
    /// A description to use in the place of the one that serves the checkpoint.
    pub description: Option<PathBuf>,
    /// Random weights of the true sizes.
    pub dummy_weights: bool,
    /// Passes that run; none: all.
    pub passes: Option<Selection>,
    /// Where launch shapes on a GPU come from.
    pub tuning: TuningSource,
    /// How weights are taken.
    pub weights: WeightFormat,
}

/// The same, each path by what it is. Nothing at all is the demo model.
pub(super) struct Named<'a> {
    name: &'a ModelName,
    /// A description.
    pub description: Option<PathBuf>,
    /// What is compiled already.
    pub artifact: Option<Artifact>,
    checkpoint: Option<PathBuf>,
}

impl Named<'_> {
    /// Sorts the paths, and reads an artifact.
    ///
    /// # Errors
    /// Names that contradict each other, an artifact that cannot be read.
    pub fn sorted(name: &ModelName) -> Result<Named<'_>> {
        let (description, checkpoint) = (name.description.clone(), located(name.checkpoint.as_deref())?);
        let mut named = Named { name, description, artifact: None, checkpoint };
        let Some(path) = &name.model else { return Ok(named) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => {
                ensure!(named.description.is_none(), "{} is a description: leave out --description", path.display());
                named.description = Some(path.clone());
            }
            Some("fuse") => {
                ensure!(
                    named.description.is_none()
                        && name.passes.is_none()
                        && !matches!(name.tuning, TuningSource::File(_)),
                    "{} is compiled: give --description, --passes and --tuning to fusec compile",
                    path.display()
                );
                ensure!(
                    name.weights == WeightFormat::Stored,
                    "{} is compiled for the formats of its weights: give --weights to fusec compile",
                    path.display()
                );
                named.artifact = Some(Artifact::read(path)?);
            }
            _ => {
                ensure!(named.checkpoint.is_none(), "{} is a checkpoint: leave out --checkpoint", path.display());
                named.checkpoint = located(Some(path))?;
            }
        }
        Ok(named)
    }

    /// Whether it is the demo model.
    pub fn is_demo(&self) -> bool {
        self.checkpoint.is_none() && self.description.is_none() && self.artifact.is_none()
    }

    /// What the user called it.
    pub fn title(&self) -> String {
        self.name.model.as_ref().map_or_else(|| "the demo model".to_owned(), |path| path.display().to_string())
    }

    /// The checkpoint; none with dummy weights.
    ///
    /// # Errors
    /// A checkpoint that cannot be opened, or none where one is needed.
    pub fn open_checkpoint(&self) -> Result<Option<Checkpoint>> {
        match &self.checkpoint {
            _ if self.is_demo() => demo::checkpoint().map(Some),
            Some(path) if !self.name.dummy_weights => Checkpoint::open(path).map(Some),
            None if !self.name.dummy_weights => {
                let path = self.description.as_deref().or(self.name.model.as_deref()).context("nothing is named")?;
                bail!(
                    "{} has no weights of its own: add --checkpoint DIR, or --dummy-weights to measure speed",
                    path.display()
                )
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The configuration: that of the checkpoint, whether its weights are used or not, else that of the artifact; none: the description's preset.
    ///
    /// # Errors
    /// A configuration that is missing or cannot be read.
    pub fn config(&self, opened: Option<&Checkpoint>) -> Result<Option<Value>> {
        if let Some(checkpoint) = opened {
            return Ok(Some(checkpoint.config().clone()));
        }
        match (&self.checkpoint, &self.artifact) {
            (Some(path), _) if path.is_file() => Ok(Some(Checkpoint::open(path)?.config().clone())),
            (Some(path), _) => {
                let folder = checkpoint_folder(path)?;
                let file = folder.join("config.json");
                ensure!(file.exists(), "{}: {}", folder.display(), folder::without_config(&folder));
                folder::configuration(&folder).map(Some)
            }
            (None, Some(artifact)) => {
                let own: Value = serde_json::from_str(&artifact.config_json)
                    .with_context(|| format!("{}: config.json", self.title()))?;
                Ok(Some(own).filter(|own| !own.is_null()))
            }
            (None, None) => Ok(None),
        }
    }

    /// File and text of the description: the one that is named, the artifact's, or one that serves the configuration.
    ///
    /// # Errors
    /// A description that cannot be read, a configuration that none serves.
    pub fn describe(&self, config: Option<&Value>) -> Result<(String, String)> {
        match (&self.description, &self.artifact) {
            (Some(path), _) => {
                let text = files::read_text(path).context("cannot read the description")?;
                Ok((path.display().to_string(), text))
            }
            (None, Some(artifact)) => Ok(("description.toml".to_owned(), artifact.description_toml.clone())),
            (None, None) => {
                let config = config.context("a checkpoint has a config")?;
                let found = find_serving(&architectures(config), user_folder().as_deref())?;
                found.with_context(|| unserved(config))
            }
        }
    }
}

/// The tokenizer of what a user names; of a checkpoint nothing else is read, so it needs no weights.
///
/// # Errors
/// Nothing that has a tokenizer is named, or it cannot be read.
pub fn tokenizer_of(name: &ModelName) -> Result<Tokenizer> {
    let compiled = |path: &Path| path.extension().is_some_and(|extension| extension == "toml" || extension == "fuse");
    match (&name.model, &name.checkpoint) {
        (Some(path), None) if compiled(path) => {
            bail!("{} has no tokenizer: add --checkpoint with the model's folder or .gguf file", path.display())
        }
        (Some(path), Some(_)) if !compiled(path) => {
            bail!("{} is a checkpoint: leave out --checkpoint", path.display())
        }
        (_, Some(path)) | (Some(path), None) => {
            let path = &located(Some(path))?.context("a path leads to one")?;
            ensure!(path.exists(), "{}: {}", path.display(), folder::nothing_there(path));
            Tokenizer::open(path)
        }
        (None, None) => demo::tokenizer(),
    }
}

/// Where the files are that a path names: itself, or what the hub's cache has under that name.
fn located(path: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(path) = path else { return Ok(None) };
    // A name for which there is no cache is a path where nothing is.
    let cached = Name::of_path(path).zip(Settings::from_environment().ok());
    let found = cached.map(|(name, settings)| find(&settings, &name)).transpose()?.flatten();
    Ok(Some(found.unwrap_or_else(|| path.to_owned())))
}

fn unserved(config: &Value) -> String {
    if let Some(why) = lacking(config) {
        return format!("{why}: no description can serve it; docs/models.md lists the families that run");
    }
    match &architectures(config)[..] {
        [] => "config.json names no architecture; say which description to use with --description FILE.toml".into(),
        names => format!(
            "no description serves {}{}; draft one with fusec new --from DIR, and name it with --description",
            names.join(", "),
            also_served(names)
        ),
    }
}
