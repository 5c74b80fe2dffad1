//! `fusec inspect`: what is in a `.fuse` file.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::{Value, json};

use super::show;
use crate::artifact::Artifact;
use crate::build::KernelReport;
use crate::plan::{Kernel, Plan, StepKind};

/// Which file, and how.
#[derive(Args, Clone, Debug)]
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
    let plan: Plan = serde_json::from_str(&artifact.plan_json)
        .with_context(|| format!("cannot read {}: its plan.json is not as expected", args.file.display()))?;
    if args.json {
        return show(format!("{}\n", serde_json::to_string_pretty(&as_json(&artifact, &plan)?)?));
    }
    show(as_text(&artifact, &plan)?)
}

fn as_json(artifact: &Artifact, plan: &Plan) -> Result<Value> {
    let kernels = plan.kernels.iter().enumerate().map(|(index, kernel)| {
        let archs = artifact.manifest.archs.iter().map(|arch| {
            let report = report(artifact, arch, kernel).map(serde_json::to_value).transpose()?;
            Ok((arch.clone(), report.unwrap_or(Value::Null)))
        });
        let archs = archs.collect::<Result<serde_json::Map<String, Value>>>()?;
        Ok(json!({
            "name": kernel.name,
            "threads": kernel.threads,
            "dynamic_shared_bytes": kernel.shared_bytes,
            "launches": launches(plan, index),
            "archs": archs,
        }))
    });
    Ok(json!({
        "manifest": artifact.manifest,
        "plan": {
            "summary": plan.summary(),
            "layers": plan.layers,
            "vocabulary": plan.vocabulary,
            "kernels_per_layer": plan.kernels_per_layer,
            "edges_per_layer": plan.edges_per_layer,
            "arena_bytes": plan.arena_bytes,
            "weight_bytes": plan.weights.iter().map(|weight| weight.bytes).sum::<usize>(),
            "decode_weight_bytes": plan.decode_weight_bytes(),
        },
        "kernels": kernels.collect::<Result<Vec<Value>>>()?,
    }))
}

fn as_text(artifact: &Artifact, plan: &Plan) -> Result<String> {
    let manifest = &artifact.manifest;
    let mut text = String::new();
    writeln!(text, "{}", plan.summary())?;
    let made = manifest.nvrtc_version.as_ref().map_or(String::new(), |version| format!(", NVRTC {version}"));
    writeln!(
        text,
        "by fusec {}{made}, format {}, {}",
        manifest.compiler_version, manifest.format_version, manifest.dtype
    )?;
    for (key, value) in &manifest.extra {
        writeln!(text, "{key} {value}")?;
    }
    if manifest.archs.is_empty() {
        writeln!(text, "sources only: no device code")?;
        kernel_table(&mut text, artifact, plan, None)?;
    }
    for arch in &manifest.archs {
        kernel_table(&mut text, artifact, plan, Some(arch))?;
    }
    Ok(text)
}

fn kernel_table(text: &mut String, artifact: &Artifact, plan: &Plan, arch: Option<&str>) -> Result<()> {
    let width = plan.kernels.iter().map(|kernel| kernel.name.len()).max().unwrap_or(0);
    writeln!(
        text,
        "\n{:<width$}  {:>7}  {:>9}  {:>6}  {:>5}  {:>6}  launches",
        arch.unwrap_or("kernel"),
        "threads",
        "registers",
        "shared",
        "stack",
        "spills"
    )?;
    for (index, kernel) in plan.kernels.iter().enumerate() {
        let report = arch.and_then(|arch| report(artifact, arch, kernel));
        let number = |of: fn(&KernelReport) -> u32| report.map_or("-".to_owned(), |report| of(report).to_string());
        let shared = kernel.shared_bytes + report.map_or(0, |report| report.shared_bytes);
        let launches: Vec<String> =
            launches(plan, index).iter().map(|(step, count)| format!("{step} {count}")).collect();
        writeln!(
            text,
            "{:<width$}  {:>7}  {:>9}  {shared:>6}  {:>5}  {:>6}  {}",
            kernel.name,
            kernel.threads,
            number(|report| report.registers),
            number(|report| report.stack_bytes),
            number(|report| report.spill_store_bytes + report.spill_load_bytes),
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
