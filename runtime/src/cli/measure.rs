//! `fuserun measure`: the half of `fusec tune` that has a GPU. Reads the paths of artifacts, a line each, and answers each with a line of JSON.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use fusec::artifact::Artifact;
use fusec::build::Arch;
use fusec::console::show;
use fusec::plan::Plan;
use serde_json::{Value, json};

use crate::backend::{Backend, Device, LoadOptions};
use crate::device::Gpu;
use crate::model::{ModelName, OpenModel};
use crate::step::GpuEngine;

#[derive(Args, Debug)]
pub struct MeasureArgs {
    /// Says which GPU there is, and ends.
    #[arg(long)]
    about: bool,
    /// The artifact that the others are compared with; its weights, random ones, serve them all.
    #[arg(long, required_unless_present = "about")]
    base: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[arg(long, default_value_t = 512)]
    depth: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 20)]
    steps: usize,
    #[arg(long, default_value_t = 0)]
    gpu: usize,
}

pub fn run(args: &MeasureArgs) -> Result<()> {
    if args.about {
        let gpu = Gpu::open(args.gpu)?;
        let (major, minor) = gpu.compute_capability()?;
        let arch = Arch::for_device(major, minor)?.to_string();
        return answer(
            &json!({ "arch": arch, "gpu": gpu.name()?, "driver": format!("CUDA {}", gpu.driver_version()?) }),
        );
    }
    let name = ModelName { model: args.base.clone(), dummy_weights: true, ..ModelName::default() };
    let context = args.depth.saturating_add(args.steps).saturating_add(8);
    let options = LoadOptions { context, sequences: args.batch, batches: vec![args.batch], threads: None };
    let mut backend = OpenModel::open(&name)?.load(&Device::Cuda(args.gpu), &options)?;
    let Backend::Gpu(engine) = &mut backend else { bail!("this is no GPU") };
    engine.check_graphs()?;
    for line in std::io::stdin().lock().lines() {
        let file = line.context("cannot read stdin")?;
        let compared = compare(engine, Path::new(&file), args);
        answer(&compared.unwrap_or_else(|error| json!({ "error": format!("{file}: {error:#}") })))?;
    }
    Ok(())
}

fn compare(engine: &mut GpuEngine, file: &Path, args: &MeasureArgs) -> Result<Value> {
    let artifact = Artifact::read(file)?;
    let (major, minor) = engine.gpu().compute_capability()?;
    let (arch, plan) = artifact.plan_for(major, minor)?;
    let plan: Plan = serde_json::from_str(plan).context("its plan")?;
    plan.check().context("its plan")?;
    let cubins = artifact.cubins_for(arch);
    let variant = engine.variant(&plan, &cubins, args.batch, args.depth + args.steps + 2)?;
    let comparison = engine.compare(&variant, args.depth, args.rounds, args.steps)?;
    let (default_us, us) = comparison.medians();
    Ok(json!({
        "us": us,
        "default_us": default_us,
        "wins": comparison.wins(),
        "rounds": comparison.own.len(),
        // A number in any case: what is no number is as far off as can be.
        "nmse": comparison.nmse.min(f64::MAX),
    }))
}

/// One line, at once.
fn answer(value: &Value) -> Result<()> {
    show(format!("{value}\n"))
}
