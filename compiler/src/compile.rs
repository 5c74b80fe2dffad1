//! The whole way from a description to an artifact.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::artifact::{Artifact, Manifest};
use crate::build::{Arch, Nvrtc, Options, compile_all};
use crate::classes;
use crate::description::{Description, Facts, Resolved};
use crate::ir::{Format, Graph};
use crate::lower::lower;
use crate::passes::{self, Report, Selection};
use crate::plan::{Plan, PlanOptions, Tuning, WeightFormat, plan};
use crate::tensors;

/// What to compile for.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Which passes run.
    pub passes: Selection,
    /// Batches and prompt chunks.
    pub plan: PlanOptions,
    /// How the checkpoint stores its weights.
    pub formats: Formats,
    /// How they are taken.
    pub weights: WeightFormat,
    /// The longest sequence that is meant to run, in positions; none: what the configuration says. See [`lower`].
    pub context: Option<usize>,
}

/// How a checkpoint stores its weights, tensor by tensor. Without a checkpoint all are bfloat16.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Formats(pub BTreeMap<String, Format>);

impl Formats {
    /// The format of a tensor.
    pub fn of(&self, tensor: &str) -> Format {
        self.0.get(tensors::locate(tensor, &self.0)).copied().unwrap_or(Format::BF16)
    }
}

/// A model up to the text of its kernels; no device code yet.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the configuration says of the whole model.
    pub facts: Facts,
    /// The description, evaluated.
    pub resolved: Resolved,
    /// The graph as described.
    pub described: Graph,
    /// The graph after the passes.
    pub graph: Graph,
    /// What the passes did.
    pub report: Report,
    /// Launches and buffers.
    pub plan: Plan,
    /// CUDA text by kernel name.
    pub sources: BTreeMap<String, String>,
    /// The launch shapes that the plan was given.
    pub tuning: Tuning,
}

/// Takes a description and a configuration (none: its preset) to kernels.
///
/// # Errors
/// What is wrong with the description or the configuration, rendered with its line; or an option that no kernel serves.
pub fn compile(
    description: &Description,
    config: Option<&serde_json::Value>,
    options: &CompileOptions,
) -> Result<Model> {
    let resolved = description.resolve(config).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let format = |tensor: &str| match options.weights {
        WeightFormat::Stored => options.formats.of(tensor),
        WeightFormat::As(format) if format.is_whole() => Format::BF16,
        WeightFormat::As(format) => format,
    };
    let described = lower(&resolved, &format, options.context).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let mut graph = described.clone();
    let report = passes::run(&mut graph, &options.passes, &mut |_, _, _| {})?;
    let tuning = options.plan.tuning.clone();
    let mut plan_options = options.plan.clone();
    if let WeightFormat::As(whole) = options.weights
        && whole.is_whole()
    {
        plan_options.whole = Some(whole);
    }
    let plan = plan(&graph, &plan_options).with_context(|| format!("cannot plan {}", graph.name))?;
    let sources = plan
        .kernels
        .iter()
        .map(|kernel| Ok((kernel.name.clone(), kernel.source()?)))
        .collect::<Result<BTreeMap<String, String>>>()?;
    Ok(Model { facts: resolved.facts.clone(), resolved, described, graph, report, plan, sources, tuning })
}

impl CompileOptions {
    /// The same, planned for `arch` with its launch shapes.
    pub fn on(self, arch: Arch, tuning: Tuning) -> CompileOptions {
        CompileOptions {
            plan: PlanOptions { tuning, clusters: arch.has_clusters(), wgmma: arch.has_wgmma(), ..self.plan },
            ..self
        }
    }
}

/// The options for a checkpoint (what messages call it) whose weights are to be quantised: its tensors in the formats that they come to have, and which those
/// are. Without blocks to be made of the weights, the options as they are.
///
/// # Errors
/// A checkpoint that is quantised already, a format that nothing quantises to, or what [`compile`] says of the description.
pub fn quantising(
    checkpoint: &str,
    description: &Description,
    config: Option<&serde_json::Value>,
    options: CompileOptions,
) -> Result<(CompileOptions, BTreeMap<String, Format>)> {
    let target = match options.weights {
        WeightFormat::As(format) if format.is_read() => format,
        _ => return Ok((options, BTreeMap::new())),
    };
    let made: BTreeSet<&str> =
        options.formats.0.values().filter(|format| !format.is_whole()).map(|format| format.name()).collect();
    if !made.is_empty() {
        let (names, target) = (made.into_iter().collect::<Vec<_>>().join(", "), target.name());
        bail!(
            "{checkpoint}: its weights are quantised already ({names}): leave `--weights {target}` out to take them as stored, or give f16 or bf16"
        );
    }
    let resolved = description.resolve(config).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let stored = |tensor: &str| options.formats.of(tensor);
    let graph = lower(&resolved, &stored, options.context).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let chosen = classes::quantised(&graph, target).with_context(|| checkpoint.to_owned())?;
    let mut formats = options.formats.clone();
    formats.0.extend(chosen.clone());
    Ok((CompileOptions { formats, weights: WeightFormat::Stored, ..options }, chosen))
}

/// What to tell the user of weights that are quantised: how many to which format.
pub fn quantising_note(chosen: &BTreeMap<String, Format>) -> Option<String> {
    let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
    chosen.values().for_each(|format| *counts.entry(*format).or_default() += 1);
    let words: Vec<String> = counts.iter().map(|(format, count)| format!("{count} to {}", format.name())).collect();
    (!words.is_empty())
        .then(|| format!("weights are quantised: {} tensors; others stay as they are stored", words.join(", ")))
}

/// A model planned for each architecture, as a `.fuse` file's contents; with device code where there is an NVRTC, else sources only.
///
/// # Errors
/// No model at all, a kernel that does not compile, or an architecture that this NVRTC does not know.
pub fn artifact(
    models: &[(Arch, &Model)],
    description: &str,
    config: Option<&serde_json::Value>,
    nvrtc: Option<Nvrtc>,
    options: &Options,
) -> Result<Artifact> {
    let &(_, first) = models.first().context("an artifact is for at least one architecture")?;
    let mut artifact = Artifact {
        manifest: Manifest {
            name: first.plan.name.clone(),
            nvrtc_version: nvrtc.map(|nvrtc| nvrtc.version_text()),
            ..Manifest::default()
        },
        graph_text: first.graph.to_string(),
        description_toml: description.to_string(),
        config_json: serde_json::to_string_pretty(&config)?,
        ..Artifact::default()
    };
    let mut records = serde_json::Map::new();
    for &(arch, model) in models {
        let name = arch.to_string();
        artifact.plans.insert(name.clone(), serde_json::to_string_pretty(&model.plan)?);
        artifact.sources.extend(model.sources.clone());
        if !model.tuning.is_empty() {
            let Tuning { gpu, .. } = &model.tuning;
            records.insert(name.clone(), json!({ "gpu": gpu, "sha256": model.tuning.digest() }));
        }
        let Some(nvrtc) = nvrtc else { continue };
        let mut reports = BTreeMap::new();
        for (kernel, compiled) in compile_all(nvrtc, &model.sources, arch, options)? {
            reports.insert(kernel.clone(), compiled.report);
            artifact.cubins.insert((name.clone(), kernel), compiled.cubin);
        }
        artifact.manifest.archs.push(name.clone());
        artifact.reports.insert(name, reports);
    }
    if !records.is_empty() {
        artifact.manifest.extra.insert("tuning".into(), records.into());
    }
    Ok(artifact)
}
