//! `fusec inspect`: what is in a `.fuse` file.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::{Value, json};

use crate::artifact::Artifact;
use crate::build::{Arch, KernelReport};
use crate::classes::{Tally, classes, tally};
use crate::console::show;
use crate::ir::Graph;
use crate::plan::{Kernel, Plan, StepKind};

/// Which file, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec inspect llama.fuse
  fusec inspect llama.fuse --json | jq .plan")]
pub(super) struct InspectArgs {
    /// The artifact.
    #[arg(value_name = "FILE.fuse")]
    file: PathBuf,
    /// One JSON object instead of a table.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Prints what the file says about itself and its kernels.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let artifact = Artifact::read(&args.file)?;
    let read = |(arch, text): (&String, &String)| {
        let plan = serde_json::from_str(text);
        Ok((
            arch.clone(),
            plan.with_context(|| {
                format!("cannot read {}: its plan/{arch}.json is not as expected", args.file.display())
            })?,
        ))
    };
    let mut plans: Vec<(String, Plan)> = artifact.plans.iter().map(read).collect::<Result<_>>()?;
    plans.sort_by_key(|(arch, _)| arch.parse::<Arch>().ok());
    if args.json {
        return show(format!("{}\n", serde_json::to_string_pretty(&as_json(&artifact, &plans)?)?));
    }
    show(as_text(&artifact, &plans)?)
}

/// `plan` and `kernels` are those of the latest architecture, `plans` has all.
fn as_json(artifact: &Artifact, plans: &[(String, Plan)]) -> Result<Value> {
    let (latest, plan) = plans.last().context("an artifact has a plan")?;
    let all = plans.iter().map(|(arch, plan)| {
        let kernels = kernels_json(artifact, arch, plan)?;
        Ok((arch.clone(), json!({ "plan": plan_json(plan), "weights": tallies(artifact, plan)?, "kernels": kernels })))
    });
    Ok(json!({
        "manifest": artifact.manifest,
        "plan": plan_json(plan),
        "weights": tallies(artifact, plan)?,
        "kernels": kernels_json(artifact, latest, plan)?,
        "plans": all.collect::<Result<serde_json::Map<String, Value>>>()?,
    }))
}

fn plan_json(plan: &Plan) -> Value {
    json!({
        "summary": plan.summary(),
        "rounding": plan.rounding(),
        "layers": plan.layers,
        "vocabulary": plan.vocabulary,
        "kernels_per_layer": plan.kernels_per_layer,
        "edges_per_layer": plan.edges_per_layer,
        "arena_bytes": plan.arena_bytes,
        "weight_bytes": plan.weights.iter().map(|weight| weight.bytes).fold(0, usize::saturating_add),
        "decode_weight_bytes": plan.decode_weight_bytes(),
    })
}

fn kernels_json(artifact: &Artifact, arch: &str, plan: &Plan) -> Result<Vec<Value>> {
    let kernels = plan.kernels.iter().enumerate().map(|(index, kernel)| {
        let report = report(artifact, arch, kernel).map(serde_json::to_value).transpose()?;
        let archs: serde_json::Map<String, Value> =
            report.map(|report| (arch.to_owned(), report)).into_iter().collect();
        Ok(json!({
            "name": kernel.name,
            "threads": kernel.threads,
            "dynamic_shared_bytes": kernel.shared_bytes,
            "launches": launches(plan, index),
            "archs": archs,
        }))
    });
    kernels.collect()
}

fn as_text(artifact: &Artifact, plans: &[(String, Plan)]) -> Result<String> {
    let manifest = &artifact.manifest;
    let mut text = String::new();
    let made = manifest.nvrtc_version.as_ref().map_or(String::new(), |version| format!(", NVRTC {version}"));
    let code = if manifest.archs.is_empty() { ", sources only: no device code" } else { "" };
    writeln!(
        text,
        "{}, by fusec {}{made}, format {}, {}{code}",
        manifest.name, manifest.compiler_version, manifest.format_version, manifest.dtype
    )?;
    for (key, value) in &manifest.extra {
        writeln!(text, "{key} {value}")?;
    }
    for (arch, plan) in plans {
        writeln!(text, "\n{}", plan.summary())?;
        if let Some(rounding) = plan.rounding() {
            writeln!(text, "{rounding}")?;
        }
        weight_table(&mut text, &tallies(artifact, plan)?)?;
        kernel_table(&mut text, artifact, plan, arch)?;
    }
    Ok(text)
}

/// What the weights take, by class and format.
fn tallies(artifact: &Artifact, plan: &Plan) -> Result<Vec<Tally>> {
    let graph = Graph::parse(&artifact.graph_text).map_err(|error| anyhow!("its graph.txt: {error}"))?;
    let read = plan.decode_bytes_by_weight();
    let items = plan.weights.iter().zip(read);
    Ok(tally(
        &classes(&graph),
        items.map(|(weight, read)| (weight.recipe.tensors(), weight.recipe.format(), weight.bytes, read)),
    ))
}

fn weight_table(text: &mut String, tallies: &[Tally]) -> Result<()> {
    let width = tallies.iter().map(|tally| tally.class.len()).max().unwrap_or(0).max("weights".len());
    writeln!(text, "{:<width$}  {:<8}  {:>9}  {:>11}", "weights", "format", "MB", "MB per step")?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    for Tally { class, format, bytes, bytes_per_step } in tallies {
        let (bytes, read) = (megabytes(*bytes), megabytes(*bytes_per_step));
        writeln!(text, "{class:<width$}  {format:<8}  {bytes:>9.2}  {read:>11.2}")?;
    }
    Ok(())
}

fn kernel_table(text: &mut String, artifact: &Artifact, plan: &Plan, arch: &str) -> Result<()> {
    let width = plan.kernels.iter().map(|kernel| kernel.name.len()).max().unwrap_or(0);
    writeln!(
        text,
        "{:<width$}  {:>7}  {:>9}  {:>6}  {:>5}  {:>6}  launches",
        arch, "threads", "registers", "shared", "stack", "spills"
    )?;
    for (index, kernel) in plan.kernels.iter().enumerate() {
        let report = report(artifact, arch, kernel);
        let number = |of: fn(&KernelReport) -> u32| report.map_or("-".to_owned(), |report| of(report).to_string());
        let shared = kernel.shared_bytes.saturating_add(report.map_or(0, |report| report.shared_bytes));
        let launches: Vec<String> =
            launches(plan, index).iter().map(|(step, count)| format!("{step} {count}")).collect();
        writeln!(
            text,
            "{:<width$}  {:>7}  {:>9}  {shared:>6}  {:>5}  {:>6}  {}",
            kernel.name,
            kernel.threads,
            number(|report| report.registers),
            number(|report| report.stack_bytes),
            number(|report| report.spill_store_bytes.saturating_add(report.spill_load_bytes)),
            launches.join(", ")
        )?;
    }
    Ok(())
}

/// What the assembler says about a kernel; none for a file made without reports.
fn report<'a>(artifact: &'a Artifact, arch: &str, kernel: &Kernel) -> Option<&'a KernelReport> {
    artifact.reports.get(arch)?.get(&kernel.name)?.kernel(&kernel.name)
}

/// How often each step launches the kernel, where it does: `decode_1`, `prompt_128`.
fn launches(plan: &Plan, kernel: usize) -> serde_json::Map<String, Value> {
    let steps = plan.steps.iter().map(|step| {
        let name = match step.kind {
            StepKind::Decode { batch } => format!("decode_{batch}"),
            StepKind::Near { batch, .. } => format!("near_{batch}"),
            StepKind::Prompt { rows } => format!("prompt_{rows}"),
            StepKind::Last { rows } => format!("last_{rows}"),
            StepKind::Score { rows } => format!("score_{rows}"),
        };
        (name, step.launches.iter().filter(|launch| launch.kernel == kernel).count())
    });
    steps.filter(|(_, count)| *count > 0).map(|(name, count)| (name, count.into())).collect()
}
