//! `fuserun profile`: where the time of a decode step goes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::{show, tell};
use fusec::output;

use super::bench;
use super::model::ModelArgs;
use super::sampling::SamplingArgs;
use crate::backend::Backend;
use crate::generate::defaults::GenerationDefaults;
use crate::model::Text;
use crate::profile::{Profile, command, kernel_named};
use crate::step::{GpuEngine, MemoryReader};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun profile -m Qwen3-0.6B
  fuserun profile -m llama.toml --dummy-weights --depth 1024 --trace step.json")]
pub struct ProfileArgs {
    /// Random weights of the true sizes; needs no checkpoint.
    #[arg(long, env = "FUSE_DUMMY_WEIGHTS", value_parser = FalseyValueParser::new())]
    dummy_weights: bool,
    /// Sequences that decode together.
    #[arg(long, env = "FUSE_PROFILE_BATCH", default_value_t = 1)]
    batch: usize,
    /// The position of the step.
    #[arg(long, env = "FUSE_PROFILE_DEPTH", default_value_t = 32)]
    depth: usize,
    /// Runs of each measurement; their median counts.
    #[arg(long, env = "FUSE_PROFILE_RUNS", default_value_t = 20)]
    runs: usize,
    /// The kernel of the line for Nsight Compute; the default is the one that takes the most of the step.
    #[arg(long, env = "FUSE_PROFILE_KERNEL", value_name = "NAME")]
    kernel: Option<String>,
    /// A timeline of the step, for Perfetto.
    #[arg(long, env = "FUSE_TRACE", value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: &ProfileArgs) -> Result<()> {
    ensure!(args.runs > 0 && args.batch > 0, "--runs and --batch must be above 0");
    let model = args.model.open(args.dummy_weights)?;
    // The check decodes from an empty cache, by one sequence.
    let mut batches = vec![1, args.batch];
    batches.dedup();
    let most = args.depth.saturating_add(args.runs).saturating_add(2).max(bench::CHECK_TOKENS);
    let mut options = args.model.load_options(&model, &batches, most, Text::default())?;
    options.context = options.context.max(if args.dummy_weights { most } else { 0 });
    ensure!(
        most <= options.context,
        "--depth {} and {} steps need {most} positions; the context has {}: give a smaller --depth, or a larger --max-context",
        args.depth,
        args.runs,
        options.context
    );
    args.sampling.drawn_seed().into_iter().for_each(tell);
    let device = args.model.device(&model);
    let mut backend = model.load(&device, &options)?;
    let name = backend.describe();
    let Backend::Gpu(engine) = &mut backend else {
        bail!("profile takes a GPU's kernels apart, and this would run on {name}: it needs an NVIDIA GPU and NVRTC")
    };
    let mut profile = measure(engine, args)?;
    (profile.model, profile.device) = (model.name().to_string(), name);
    profile.ncu = {
        let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let program = words.next().unwrap_or_else(|| "fuserun".into());
        command(kernel_named(&profile, args.kernel.as_deref())?, &program, &words.collect::<Vec<String>>())
    };
    if let Some(path) = &args.trace {
        let text = serde_json::to_string(&profile.trace())? + "\n";
        output::write(path, text.as_bytes())?;
        tell(format!("wrote {}: open it in Perfetto", output::name(path)));
    }
    if args.json {
        return show(format!("{}\n", serde_json::to_string_pretty(&profile)?));
    }
    show(&profile)
}

/// Launches by themselves come first: a tool that looks at a kernel's first run sees it at the depth that was asked for.
fn measure(engine: &mut GpuEngine, args: &ProfileArgs) -> Result<Profile> {
    engine.check_graphs()?;
    engine.time_with(args.sampling.parameters(&GenerationDefaults::default())?);
    let reader = MemoryReader::new(engine.gpu())?;
    let times = engine.time_launches(args.batch, args.depth, args.runs, &reader)?;
    let ceiling = reader.ceiling()?;
    let check = bench::check(engine)?;
    let kind = engine.plan().decode_at(args.batch, args.depth + args.runs);
    let step = engine.plan().step(kind).with_context(|| format!("the plan has no {kind:?} step"))?;
    let mut profile = Profile::new(engine.plan(), step, &times, args.batch, args.depth, ceiling);
    profile.versions = bench::versions(engine.gpu())?;
    profile.check = check;
    Ok(profile)
}
