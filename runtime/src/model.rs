//! From what a user names (a folder, a .gguf, a .toml, nothing) to a model that runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fusec::artifact::Artifact;
use fusec::build::Arch;
use fusec::compile::{CompileOptions, Formats, Model, compile};
use fusec::description::{
    Beyond, Description, Facts, Resolved, also_served, architectures, find_serving, lacking, user_folder,
};
use fusec::files;
use fusec::folder::{self, checkpoint_folder};
use fusec::ir::{Format, Graph, verify};
use fusec::lower::lower;
use fusec::passes::Selection;
use fusec::plan::{Plan, PlanOptions, StepKind, TuningSource};
use fusec::tensors;
use serde_json::Value;

use crate::backend::{Backend, Device, LoadOptions, Program, Weights};
use crate::demo;
use crate::device::Gpu;
use crate::generate::chat::ChatTemplate;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;

/// What a user names.
#[derive(Clone, Debug, Default)]
pub struct ModelName {
    /// A Hugging Face folder, a .gguf, a .fuse or a .toml file; none: the demo model.
    pub model: Option<PathBuf>,
    /// The folder or .gguf file of a .fuse or .toml file's weights.
    pub checkpoint: Option<PathBuf>,
    /// A description to use in the place of the one that serves the checkpoint.
    pub description: Option<PathBuf>,
    /// Random weights of the true sizes.
    pub dummy_weights: bool,
    /// Passes that run; none: all.
    pub passes: Option<Selection>,
    /// Where launch shapes on a GPU come from.
    pub tuning: TuningSource,
}

/// A description that is matched with its checkpoint, before anything is compiled.
pub struct OpenModel {
    description: Description,
    /// The description's text.
    pub description_text: String,
    config: Option<Value>,
    checkpoint: Option<Checkpoint>,
    artifact: Option<Artifact>,
    passes: Selection,
    tuning: TuningSource,
    embedded: bool,
    overrides: Option<String>,
    name: String,
}

impl OpenModel {
    /// Opens what `name` names.
    ///
    /// # Errors
    /// A path that is nothing a model can be read from, names that contradict each other, a checkpoint that no description serves, a broken file.
    pub fn open(name: &ModelName) -> Result<OpenModel> {
        let passes = name.passes.clone().unwrap_or_else(Selection::all);
        let path = name.model.as_deref();
        let extension = path.and_then(Path::extension).and_then(|extension| extension.to_str());
        let mut described = name.description.clone();
        let mut artifact = None;
        let mut checkpoint_path = name.checkpoint.clone();
        match (path, extension) {
            (Some(path), Some("toml")) => {
                ensure!(described.is_none(), "{} is a description: leave out --description", path.display());
                described = Some(path.to_path_buf());
            }
            (Some(path), Some("fuse")) => {
                ensure!(
                    described.is_none() && name.passes.is_none() && !matches!(name.tuning, TuningSource::File(_)),
                    "{} is compiled: give --description, --passes and --tuning to fusec compile",
                    path.display()
                );
                artifact = Some(Artifact::read(path)?);
            }
            (Some(path), _) => {
                ensure!(checkpoint_path.is_none(), "{} is a checkpoint: leave out --checkpoint", path.display());
                checkpoint_path = Some(path.to_path_buf());
            }
            (None, _) => {}
        }
        let embedded = checkpoint_path.is_none() && described.is_none() && artifact.is_none();
        let checkpoint = match &checkpoint_path {
            _ if embedded => Some(demo::checkpoint()?),
            Some(path) if !name.dummy_weights => Some(Checkpoint::open(path)?),
            Some(_) | None => None,
        };
        ensure!(
            checkpoint.is_some() || name.dummy_weights,
            "{} has no weights of its own: add --checkpoint DIR, or --dummy-weights to measure speed",
            described.as_deref().or(path).unwrap_or(Path::new("a description")).display()
        );
        let mut config = checkpoint.as_ref().map(|checkpoint| checkpoint.config().clone());
        if let (None, Some(path)) = (&config, checkpoint_path.as_ref().filter(|path| path.is_file())) {
            config = Some(Checkpoint::open(path)?.config().clone());
        }
        if let (None, Some(path)) = (&config, &checkpoint_path) {
            let folder = checkpoint_folder(path)?;
            let file = folder.join("config.json");
            ensure!(file.exists(), "{}: {}", folder.display(), folder::without_config(&folder));
            config = Some(files::read_json(&file)?);
        }
        let (file, text) = match (&described, &artifact) {
            (Some(path), _) => {
                let text = files::read_text(path).context("cannot read the description")?;
                (path.display().to_string(), text)
            }
            (None, Some(artifact)) => {
                let own: Value = serde_json::from_str(&artifact.config_json).unwrap_or(Value::Null);
                if config.is_none() && !own.is_null() {
                    config = Some(own);
                }
                ("description.toml".to_string(), artifact.description_toml.clone())
            }
            (None, None) => {
                let config = config.as_ref().context("a checkpoint has a config")?;
                let architectures = architectures(config);
                let found = find_serving(&architectures, user_folder().as_deref())?;
                found.with_context(|| unserved(config))?
            }
        };
        let mut description = Description::parse(&text, &file).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
        let named = config.as_ref().filter(|_| described.is_some()).map(architectures).unwrap_or_default();
        let unlisted = !named.is_empty() && !named.iter().any(|name| description.serves.contains(name));
        let overrides = unlisted.then(|| {
            let note = format!(
                "config.json is for {}, which {file} does not serve by itself: taken as named",
                named.join(", ")
            );
            description.serves.extend(named);
            note
        });
        let tuning = name.tuning.clone();
        let name = path.map_or_else(|| "the demo model".to_string(), |path| path.display().to_string());
        Ok(OpenModel {
            description,
            description_text: text,
            config,
            checkpoint,
            artifact,
            passes,
            tuning,
            embedded,
            overrides,
            name,
        })
    }

    /// What to tell the user where a description was named that does not list the checkpoint's architecture.
    pub fn overrides(&self) -> Option<&str> {
        self.overrides.as_deref()
    }

    /// What to tell the user of keys of config.json that nothing knows.
    ///
    /// # Errors
    /// A description that does not fit the configuration.
    pub fn unread_note(&self) -> Result<Option<String>> {
        Ok(self.resolved()?.unread_note())
    }

    /// What the user called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The checkpoint; none with dummy weights.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// A checkpoint without one.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if self.embedded {
            return demo::tokenizer();
        }
        Tokenizer::from_checkpoint(self.checkpoint.as_ref().context("dummy weights have no tokenizer; give token ids")?)
    }

    /// Its chat template, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.checkpoint {
            Some(checkpoint) if !self.embedded => ChatTemplate::from_checkpoint(checkpoint),
            _ => Ok(None),
        }
    }

    /// What it says of how its texts are made: its generation_config.json, or the metadata of its GGUF file.
    ///
    /// # Errors
    /// A file that is no JSON, a value of the wrong type.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults> {
        if self.embedded {
            return GenerationDefaults::from_json(&demo::generation_config()?);
        }
        let Some(checkpoint) = &self.checkpoint else { return Ok(GenerationDefaults::default()) };
        match (checkpoint.gguf_metadata(), checkpoint.path()) {
            (Some(metadata), _) => GenerationDefaults::from_gguf(metadata),
            (None, Some(folder)) => {
                GenerationDefaults::from_json(&files::read_optional_json(&folder.join("generation_config.json"))?)
            }
            (None, None) => Ok(GenerationDefaults::default()),
        }
    }

    /// Compiles it for these batches, up to the text of its kernels, and checks the checkpoint against it.
    ///
    /// # Errors
    /// A description that does not fit the configuration, or tensors that are missing, unexpected or of another shape.
    pub fn compile(&self, plan: PlanOptions) -> Result<Model> {
        self.compile_for(plan, None)
    }

    /// As [`OpenModel::compile`], for sequences of at most `context` positions; none: what the configuration says.
    ///
    /// # Errors
    /// As [`OpenModel::compile`].
    pub fn compile_for(&self, plan: PlanOptions, context: Option<usize>) -> Result<Model> {
        let options = CompileOptions { passes: self.passes.clone(), plan, formats: self.formats(), context };
        let model = compile(&self.description, self.config.as_ref(), &options)?;
        if let Some(checkpoint) = &self.checkpoint {
            let found = checkpoint.shapes();
            tensors::reconcile(&self.name, &found, &model.resolved, &model.described)
                .map_err(|diagnostics| anyhow!("{diagnostics}"))?;
            checkpoint.check_tied_head(&tensors::required(&model.described), &model.resolved.facts.spare())?;
        }
        Ok(model)
    }

    /// What to tell the user of weights that the CPU takes as they are stored and a GPU does not.
    pub fn rounded(&self) -> Option<String> {
        let formats = self.formats().0;
        let first = formats.values().next()?;
        let (count, name) = (formats.len(), first.name());
        Some(format!(
            "{count} weights are stored as {name}: a GPU takes them as bf16, whose values have 8 bits, not 11"
        ))
    }

    /// How its checkpoint stores the weights, where kernels read that.
    fn formats(&self) -> Formats {
        self.checkpoint.as_ref().map_or_else(Formats::default, |checkpoint| Formats(checkpoint.formats()))
    }

    /// Compiles it, or takes it from its artifact, and loads it.
    ///
    /// # Errors
    /// As [`OpenModel::compile`]; an artifact that was not compiled for these batches; a device that cannot hold or run it.
    pub fn load(&self, device: &Device, options: &LoadOptions) -> Result<Backend> {
        let resolved = device.resolve(self.brings_device_code()).0;
        let program = match &self.artifact {
            Some(artifact) => self.program(artifact, &resolved, options)?,
            None => {
                // Only a GPU needs launches and kernels.
                let plan = match &resolved {
                    Device::Cpu | Device::Interpreter => PlanOptions::none(),
                    Device::Auto | Device::Cuda(_) => self.tuned(&resolved, options.plan())?,
                };
                let model = self.compile_for(plan, Some(options.context))?;
                Program { graph: model.graph, plan: model.plan, sources: model.sources, cubins: BTreeMap::new() }
            }
        };
        let weights = match &self.checkpoint {
            Some(checkpoint) => Weights::Checkpoint(checkpoint),
            None => Weights::Dummy,
        };
        ensure!(
            i32::try_from(options.context).is_ok(),
            "a context of {} positions is more than a position's 31 bits hold; give a smaller --max-context",
            options.context
        );
        let facts = self.facts()?;
        if let (Some(limit), Beyond::Refused, Some(_)) = (facts.context_limit, facts.beyond, &self.checkpoint) {
            ensure!(
                options.context <= limit,
                "--max-context {} is more than the model's max_position_embeddings, {limit}",
                options.context
            );
        }
        Backend::load(program, weights, &resolved, options)
    }

    /// What to plan for on a device: the launch shapes that were measured, and what it can do.
    fn tuned(&self, device: &Device, plan: PlanOptions) -> Result<PlanOptions> {
        let Device::Cuda(ordinal) = device else { return Ok(plan) };
        let (major, minor) = Gpu::open(*ordinal)?.compute_capability()?;
        let arch = Arch::for_device(major, minor)?;
        let options = CompileOptions { plan, ..CompileOptions::default() };
        Ok(options.on(arch, self.tuning.record(&arch.to_string())?).plan)
    }

    fn program(&self, artifact: &Artifact, device: &Device, options: &LoadOptions) -> Result<Program> {
        let graph = Graph::parse(&artifact.graph_text).map_err(|error| anyhow!("{}: graph.txt: {error}", self.name))?;
        verify(&graph).map_err(|error| anyhow!("{}: graph.txt: {error}", self.name))?;
        let (plan, cubins) = match device {
            Device::Cuda(ordinal) => {
                let (major, minor) = Gpu::open(*ordinal)?.compute_capability()?;
                let (arch, plan) = artifact.plan_for(major, minor)?;
                let cubins = artifact.cubins_for(arch).into_iter().map(|(name, cubin)| (name.into(), cubin.to_vec()));
                (plan, cubins.collect())
            }
            // Without a GPU nothing is launched: any plan says which batches were compiled.
            _ => (artifact.plans.values().next().context("no plan")?.as_str(), BTreeMap::new()),
        };
        let plan: Plan = serde_json::from_str(plan).with_context(|| format!("{}: its plan", self.name))?;
        plan.check().with_context(|| format!("{}: its plan", self.name))?;
        for &batch in &options.batches {
            ensure!(
                plan.step(StepKind::Decode { batch }).is_some(),
                "{} was not compiled for batch {batch}: compile it with --batch {batch}",
                self.name
            );
        }
        if let Some(checkpoint) = &self.checkpoint {
            let (required, spare) = (tensors::required(&graph), self.facts()?.spare());
            checkpoint
                .account(&required, &spare)
                .and_then(|()| checkpoint.check_tied_head(&required, &spare))
                .with_context(|| format!("the checkpoint is not {}'s", self.name))?;
            // Weights of the same shapes may want another rotation, another epsilon or another window.
            let own: Value =
                serde_json::from_str(&artifact.config_json).with_context(|| format!("{}: config.json", self.name))?;
            let own = Some(&own).filter(|own| !own.is_null());
            ensure!(
                self.described(own)? == self.described(Some(checkpoint.config()))?,
                "{} was compiled for another configuration than the checkpoint's: compile it with --checkpoint or --config",
                self.name
            );
        }
        Ok(Program { graph, plan, sources: artifact.sources.clone(), cubins })
    }

    /// The text of the graph that the description gives for a configuration; none: its preset.
    fn described(&self, config: Option<&Value>) -> Result<String> {
        let resolved = self.description.resolve(config).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
        Ok(lower(&resolved, &|_| Format::BF16, None).map_err(|diagnostics| anyhow!("{diagnostics}"))?.to_string())
    }

    /// Whether it comes with device code, compiled elsewhere.
    pub fn brings_device_code(&self) -> bool {
        self.artifact.as_ref().is_some_and(|artifact| !artifact.cubins.is_empty())
    }

    /// What the configuration says of the whole model.
    ///
    /// # Errors
    /// A description that does not fit the configuration.
    pub fn facts(&self) -> Result<Facts> {
        Ok(self.resolved()?.facts)
    }

    fn resolved(&self) -> Result<Resolved> {
        self.description.resolve(self.config.as_ref()).map_err(|diagnostics| anyhow!("{diagnostics}"))
    }

    /// The context to run `text` with, in positions, and what to tell the user of it. `given` is what the user names; else it is what the artifact was
    /// compiled for, else what the model is made for, up to `most`.
    ///
    /// # Errors
    /// As [`OpenModel::facts`]; a text that RoPE cannot follow.
    pub fn context(&self, given: Option<usize>, most: usize, text: Text) -> Result<(usize, Option<String>)> {
        let facts = self.facts()?;
        let compiled = self.artifact.as_ref().and_then(|artifact| artifact.manifest.extra.get("max_context")?.as_u64());
        let own = || {
            let limit = facts.context_limit.unwrap_or(most);
            if facts.beyond == Beyond::Refused { limit.min(most) } else { limit.max(text.tokens).min(most) }
        };
        let positions = given.or(compiled.map(|positions| positions as usize)).unwrap_or_else(own);
        let Some(limit) = facts.context_limit.filter(|limit| positions > *limit && self.checkpoint.is_some()) else {
            return Ok((positions, None));
        };
        let once = !text.grows && self.artifact.is_none();
        match facts.beyond {
            Beyond::OnePass if !once => bail!(
                "beyond {limit} positions the base of dynamic RoPE changes with every token, and the cache keeps keys of the old one: \
                 a text of {positions} positions cannot grow; shorten it, or give --max-context {limit}"
            ),
            Beyond::Worse => Ok((
                positions,
                Some(format!(
                    "a context of {positions} is beyond the {limit} positions that the model's scaling of RoPE reaches: what is there may be worse"
                )),
            )),
            // The base is that of the text's own length, however long it might have been.
            Beyond::OnePass => Ok((positions.min(limit.max(text.tokens)), None)),
            Beyond::Refused => Ok((positions, None)),
        }
    }
}

/// A text that is to run, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text {
    /// Positions that it needs at least.
    pub tokens: usize,
    /// Whether tokens join it one by one.
    pub grows: bool,
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
            ensure!(path.exists(), "{}: {}", path.display(), folder::nothing_there(path));
            Tokenizer::open(path)
        }
        (None, None) => demo::tokenizer(),
    }
}

fn unserved(config: &Value) -> String {
    if let Some(why) = lacking(config) {
        return format!("{why}: no description can serve it; README.md lists the families that run");
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
