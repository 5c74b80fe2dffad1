//! From what a user names (a folder, a .gguf, a .toml, nothing) to a model that runs.

mod named;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fusec::artifact::Artifact;
use fusec::build::Arch;
use fusec::classes::{Class, classes};
use fusec::compile::{CompileOptions, Formats, Model, compile, quantising, quantising_note};
use fusec::description::{Beyond, Description, Facts, Resolved, architectures};
use fusec::files;
use fusec::ir::{Format, Graph, Op, Results, WeightRef, verify};
use fusec::lower::lower;
use fusec::passes::Selection;
use fusec::plan::{Plan, PlanOptions, StepKind, TuningSource, WeightFormat};
use fusec::tensors;
use serde_json::Value;

use crate::backend::{Backend, Device, LoadOptions, Program, Weights};
use crate::demo;
use crate::device::Gpu;
use crate::generate::chat::ChatTemplate;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;

pub use named::{ModelName, tokenizer_of};

use named::Named;

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
    weights: WeightFormat,
    /// The tensors that are quantised as they are loaded.
    quantised: BTreeMap<String, Format>,
    embedded: bool,
    overrides: Option<String>,
    name: String,
    /// Whether the name is that of a model's files.
    named: bool,
}

impl OpenModel {
    /// Opens what `name` names.
    ///
    /// # Errors
    /// A path that is nothing a model can be read from, names that contradict each other, a checkpoint that no description serves, a broken file.
    pub fn open(name: &ModelName) -> Result<OpenModel> {
        let named = Named::sorted(name)?;
        let mut checkpoint = named.open_checkpoint()?;
        let config = named.config(checkpoint.as_ref())?;
        let (file, text) = named.describe(config.as_ref())?;
        let mut description = Description::parse(&text, &file).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
        let by_name = config.as_ref().filter(|_| named.description.is_some());
        let overrides = by_name.and_then(|config| serve_as_named(&mut description, config, &file));
        let (weights, quantised) = match (&mut checkpoint, &named.artifact) {
            (Some(checkpoint), None) => {
                let formats = Formats(checkpoint.formats());
                let options = CompileOptions { formats, weights: name.weights, ..CompileOptions::default() };
                let (options, chosen) = quantising(&named.title(), &description, config.as_ref(), options)?;
                quantise(checkpoint, &chosen)?;
                (options.weights, chosen)
            }
            (Some(checkpoint), Some(artifact)) => {
                let chosen = compiled_for(artifact, checkpoint).with_context(|| named.title())?;
                quantise(checkpoint, &chosen)?;
                (name.weights, chosen)
            }
            (None, _) => (name.weights, BTreeMap::new()),
        };
        Ok(OpenModel {
            description,
            description_text: text,
            config,
            checkpoint,
            passes: name.passes.clone().unwrap_or_else(Selection::all),
            tuning: name.tuning.clone(),
            weights,
            quantised,
            embedded: named.is_demo(),
            overrides,
            name: named.title(),
            named: name.model.is_some(),
            artifact: named.artifact,
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

    /// Its path, or its name on the hub; none: the demo model.
    pub fn path(&self) -> Option<&str> {
        self.named.then_some(&self.name)
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
            _ if self.embedded => demo::chat_template().map(Some),
            Some(checkpoint) => ChatTemplate::from_checkpoint(checkpoint),
            None => Ok(None),
        }
    }

    /// Texts that end an answer in a chat, beside those that its files name.
    pub fn chat_stops(&self) -> Vec<String> {
        if self.embedded { demo::CHAT_STOPS.map(str::to_owned).to_vec() } else { Vec::new() }
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
        let options = CompileOptions {
            passes: self.passes.clone(),
            plan,
            formats: self.formats(),
            weights: self.weights,
            context,
        };
        let model = compile(&self.description, self.config.as_ref(), &options)?;
        if let Some(checkpoint) = &self.checkpoint {
            let found = checkpoint.shapes_for(&tensors::required(&model.described));
            tensors::reconcile(&self.name, &found, &model.resolved, &model.described)
                .map_err(|diagnostics| anyhow!("{diagnostics}"))?;
            checkpoint.check_tied_head(&tensors::required(&model.described), &model.resolved.facts.spare())?;
        }
        Ok(model)
    }

    /// The text of the graph that its description gives for its configuration: models of the same text and weights compute the same.
    ///
    /// # Errors
    /// A description that does not fit the configuration.
    pub fn described_text(&self) -> Result<String> {
        self.described(self.config.as_ref())
    }

    /// What each of its weights is for.
    ///
    /// # Errors
    /// A description that does not fit the configuration, an artifact whose graph cannot be read.
    pub fn classes(&self) -> Result<BTreeMap<WeightRef, BTreeSet<Class>>> {
        let graph = match &self.artifact {
            Some(artifact) => {
                Graph::parse(&artifact.graph_text).map_err(|error| anyhow!("{}: graph.txt: {error}", self.name))?
            }
            None => lower(&self.resolved()?, &|_| Format::BF16, None).map_err(|wrong| anyhow!("{wrong}"))?,
        };
        Ok(classes(&graph))
    }

    /// The tensors of its checkpoint that are quantised where its weights are taken in this format, and what they become.
    ///
    /// # Errors
    /// No checkpoint, or one that is quantised already.
    pub fn quantising(&self, format: &str) -> Result<BTreeMap<String, Format>> {
        let checkpoint = self.checkpoint.as_ref().context("there is no checkpoint to quantise")?;
        let weights: WeightFormat = format.parse().map_err(|wrong: String| anyhow!(wrong))?;
        let options = CompileOptions { formats: Formats(checkpoint.formats()), weights, ..CompileOptions::default() };
        Ok(quantising(&self.name, &self.description, self.config.as_ref(), options)?.1)
    }

    /// What to tell the user of weights that are quantised as they are loaded.
    pub fn quantised(&self) -> Option<String> {
        quantising_note(&self.quantised)
    }

    /// What to tell the user of weights that a GPU rounds.
    pub fn rounded(&self) -> Option<String> {
        let count = self.formats().0.values().filter(|format| format.packed().is_none()).count();
        (count > 0)
            .then(|| format!("{count} weights are stored as codes that no format has: a GPU takes them in 16 bits"))
    }

    /// What to tell the user of quantised weights that are held widened.
    pub fn widened(&self) -> Option<String> {
        let (formats, shapes) = (self.formats().0, self.checkpoint.as_ref()?.shapes());
        let widened = || formats.iter().filter(|(_, format)| **format == Format::F32);
        let values: usize =
            widened().filter_map(|(name, _)| Some(shapes.get(name.as_str())?.iter().product::<usize>())).sum();
        let count = widened().count();
        (count > 0).then(|| {
            let megabytes = values as f64 * 4e-6;
            format!("{count} weights are held as f32, in {megabytes:.2} MB: no packed form has their order of columns, groups or zero points")
        })
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

/// Quantises the tensors of a checkpoint that has them; what it lacks is said when its tensors are compared with the model's.
fn quantise(checkpoint: &mut Checkpoint, chosen: &BTreeMap<String, Format>) -> Result<()> {
    let found = checkpoint.shapes();
    let whole = |name: &str, format: Format| {
        let shape = found.get(tensors::locate(name, &found));
        shape.is_some_and(|shape| shape.len() > 1 && shape.last().is_some_and(|&last| format.bytes(last).is_some()))
    };
    let chosen = chosen.iter().filter(|(name, format)| whole(name, **format));
    let chosen = chosen.map(|(name, format)| (name.clone(), *format)).collect();
    checkpoint.quantise(&chosen)
}

/// The tensors that an artifact has in blocks and a checkpoint does not: those that are to be quantised.
fn compiled_for(artifact: &Artifact, checkpoint: &Checkpoint) -> Result<BTreeMap<String, Format>> {
    let graph = Graph::parse(&artifact.graph_text).map_err(|error| anyhow!("graph.txt: {error}"))?;
    let stored = Formats(checkpoint.formats());
    let mut chosen = BTreeMap::new();
    for node in graph.ordered() {
        let Op::Weight(weight) = graph.op(node) else { continue };
        let format = graph.type_of(node.result(0)).format;
        let plain = |tensor: &String| stored.of(tensor).is_whole();
        if format.is_read() && weight.tensors().iter().all(plain) {
            chosen.extend(weight.tensors().into_iter().map(|tensor| (tensor, format)));
        }
    }
    Ok(chosen)
}

/// A text that is to run, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text {
    /// Positions that it needs at least.
    pub tokens: usize,
    /// Whether tokens join it one by one.
    pub grows: bool,
}

/// Lets a description that was named serve the architectures of the configuration; returns what to tell of it, where it does not list them.
fn serve_as_named(description: &mut Description, config: &Value, file: &str) -> Option<String> {
    let named = architectures(config);
    if named.is_empty() || named.iter().any(|name| description.serves.contains(name)) {
        return None;
    }
    let note =
        format!("config.json is for {}, which {file} does not serve by itself: taken as named", named.join(", "));
    description.serves.extend(named);
    Some(note)
}
