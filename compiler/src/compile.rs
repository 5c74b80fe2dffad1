//! The whole way from a description to an artifact.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::artifact::{Artifact, Manifest};
use crate::build::{Arch, Nvrtc, Options, compile_all};
use crate::description::{Description, Facts};
use crate::emit::emit;
use crate::ir::{DType, Graph};
use crate::lower::lower;
use crate::passes::{self, Report, Selection};
use crate::plan::{Plan, PlanOptions, Tuning, plan};

/// What to compile for.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Which passes run.
    pub passes: Selection,
    /// Batches and prompt chunks.
    pub plan: PlanOptions,
    /// The type of weights and caches.
    pub dtype: DType,
    /// The longest sequence that is meant to run, in positions; none: what the configuration says. See [`lower`].
    pub context: Option<usize>,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions { passes: Selection::all(), plan: PlanOptions::default(), dtype: DType::BF16, context: None }
    }
}

/// A model up to the text of its kernels; no device code yet.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the configuration says of the whole model.
    pub facts: Facts,
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
    ensure!(
        options.dtype == DType::BF16,
        "--dtype {}: kernels take bf16 weights; f16 and f32 checkpoints are rounded to bf16 when they are loaded",
        options.dtype.name()
    );
    let resolved = description.resolve(config).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let described = lower(&resolved, options.dtype, options.context).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let mut graph = described.clone();
    let report = passes::run(&mut graph, &options.passes, &mut |_, _, _| {})?;
    let tuning = options.plan.tuning.clone();
    let plan = plan(&graph, &options.plan).with_context(|| format!("cannot plan {}", graph.name))?;
    let sources = plan
        .kernels
        .iter()
        .map(|kernel| Ok((kernel.name.clone(), emit(kernel)?)))
        .collect::<Result<BTreeMap<String, String>>>()?;
    Ok(Model { facts: resolved.facts, described, graph, report, plan, sources, tuning })
}

impl Model {
    /// The model as a `.fuse` file's contents, with device code for each of `archs` where there is an NVRTC; else sources only.
    ///
    /// # Errors
    /// A kernel that does not compile, or an arch that this NVRTC does not know.
    pub fn artifact(
        &self,
        description: &str,
        config: Option<&serde_json::Value>,
        nvrtc: Option<Nvrtc>,
        archs: &[Arch],
        options: &Options,
    ) -> Result<Artifact> {
        let mut artifact = Artifact {
            manifest: Manifest { name: self.plan.name.clone(), ..Manifest::default() },
            graph_text: self.graph.to_string(),
            plan_json: serde_json::to_string_pretty(&self.plan)?,
            description_toml: description.to_string(),
            config_json: serde_json::to_string_pretty(&config)?,
            sources: self.sources.clone(),
            ..Artifact::default()
        };
        if !self.tuning.is_empty() {
            let Tuning { arch, gpu, .. } = &self.tuning;
            let tuning = json!({ "arch": arch, "gpu": gpu, "sha256": self.tuning.digest() });
            artifact.manifest.extra.insert("tuning".into(), tuning);
        }
        let Some(nvrtc) = nvrtc else { return Ok(artifact) };
        artifact.manifest.nvrtc_version = Some(nvrtc.version_text());
        for &arch in archs {
            artifact.manifest.archs.push(arch.to_string());
            let compiled = compile_all(nvrtc, &self.sources, arch, options)?;
            let mut reports = BTreeMap::new();
            for (name, kernel) in compiled {
                reports.insert(name.clone(), kernel.report);
                artifact.cubins.insert((arch.to_string(), name), kernel.cubin);
            }
            artifact.reports.insert(arch.to_string(), reports);
        }
        Ok(artifact)
    }
}
