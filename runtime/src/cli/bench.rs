//! `fuserun bench`: prompt and decode speed, each beside a check of what was timed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::classes::{Class, Tally, tally};
use fusec::console::{show, tell};
use fusec::ir::WeightRef;
use fusec::plan::Recipe;
use serde::Serialize;

use super::model::ModelArgs;
use crate::backend::Backend;
use crate::cpu::{CpuModel, Logits, ReadBandwidth, Row};
use crate::device::Gpu;
use crate::model::Text;
use crate::step::{GpuEngine, median, read_ceiling};

/// Tokens of the check.
pub(super) const CHECK_TOKENS: usize = 12;

/// Where decoding begins, and how long prompts are, where a user does not say.
const DEPTHS: [usize; 3] = [32, 512, 4096];
const PROMPTS: [usize; 2] = [32, 512];

/// How far the two paths may differ with random weights: both round to bf16 at the same places and add in another order.
const CHECK_BOUND: f64 = 1e-3;

/// The same with routed experts: of two whose logits nearly agree one path may choose the one, and the other the other.
const ROUTED_CHECK_BOUND: f64 = 5e-2;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun bench -m Qwen3-0.6B --batch 1 --depths 32,2048
  fuserun bench -m llama.toml --dummy-weights --json")]
pub struct BenchArgs {
    /// Random weights of the true sizes; needs no checkpoint.
    #[arg(long, env = "FUSE_DUMMY_WEIGHTS", value_parser = FalseyValueParser::new())]
    dummy_weights: bool,
    /// Batches to measure.
    #[arg(long, env = "FUSE_BATCH", value_delimiter = ',', default_value = "1,2,4")]
    batch: Vec<usize>,
    /// Positions at which decoding begins; 32,512,4096, as far as the context reaches, where none are given.
    #[arg(long, env = "FUSE_DEPTHS", value_delimiter = ',')]
    depths: Option<Vec<usize>>,
    /// Prompt lengths; 32,512, as far as the context reaches, where none are given.
    #[arg(long, env = "FUSE_PROMPTS", value_delimiter = ',')]
    prompts: Option<Vec<usize>>,
    /// Decode steps per run.
    #[arg(long, env = "FUSE_BENCH_TOKENS", default_value_t = 128)]
    tokens: usize,
    /// Runs of each measurement.
    #[arg(long, env = "FUSE_BENCH_RUNS", default_value_t = 5)]
    runs: usize,
    /// Print one JSON object.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    versions: String,
    /// The plan in one line.
    plan: String,
    /// None on the CPU, which launches none.
    kernels_per_layer: Option<usize>,
    edges_per_layer: Option<usize>,
    /// Bytes a second.
    read_ceiling: f64,
    weight_bytes_per_step: usize,
    /// Microseconds of reading the weights at the ceiling.
    floor_us: f64,
    /// What weights take, by class and format.
    weights: Vec<Weights>,
    check: String,
    decode: Vec<Decode>,
    prompt: Vec<Prompt>,
}

/// Weights of a class in a format.
#[derive(Debug, Serialize)]
struct Weights {
    #[serde(flatten)]
    tally: Tally,
    /// Microseconds of reading those of a step at the ceiling.
    floor_us: f64,
}

/// Decode steps of one batch from one depth on.
#[derive(Debug, Serialize)]
struct Decode {
    batch: usize,
    depth: usize,
    /// Median of the runs' medians, the fastest and the slowest run; each step timed by itself.
    step_us: f64,
    step_us_min: f64,
    step_us_max: f64,
    /// All sequences together.
    tokens_per_second: f64,
    gigabytes_per_second: f64,
    ceiling_percent: f64,
}

/// A prompt and its first token.
#[derive(Debug, Serialize)]
struct Prompt {
    tokens: usize,
    microseconds: f64,
    microseconds_min: f64,
    microseconds_max: f64,
    tokens_per_second: f64,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    ensure!(args.runs > 0 && args.tokens > 0, "--runs and --tokens must be above 0");
    let (depths, prompts) = (args.depths.as_deref().unwrap_or(&DEPTHS), args.prompts.as_deref().unwrap_or(&PROMPTS));
    ensure!(!prompts.contains(&0), "--prompts must be above 0");
    ensure!(!args.batch.contains(&0), "--batch must be above 0");
    let model = args.model.open(args.dummy_weights)?;
    let end = |depth: usize| depth.saturating_add(args.tokens);
    let deepest = end(depths.iter().copied().max().unwrap_or(0)).saturating_add(1);
    let longest = prompts.iter().copied().max().unwrap_or(0).max(CHECK_TOKENS);
    // A position has 31 bits.
    let most = deepest.max(longest).min(i32::MAX as usize);
    // Prompts and the check are of one sequence.
    let batches: Vec<usize> = BTreeSet::from_iter(args.batch.iter().copied().chain([1])).into_iter().collect();
    let mut options = args.model.load_options(&model, &batches, most, Text::default())?;
    options.context = options.context.max(if args.dummy_weights { most } else { 0 });
    let context = options.context;
    let asked = args.depths.is_some();
    let depths = fitting("--depths", depths, asked, context, |depth| end(depth) < context, args.tokens)?;
    let asked = args.prompts.is_some();
    let prompts = fitting("--prompts", prompts, asked, context, |length| length <= context, 0)?;
    ensure!(
        depths.len() + prompts.len() > 0 && CHECK_TOKENS <= context,
        "a context of {context} holds none of the depths and prompts, or not the {CHECK_TOKENS} tokens of the check: give a larger --max-context"
    );
    let mut backend = model.load(&args.model.device(&model), &options)?;
    let device = backend.describe();
    let classes = model.classes()?;
    let mut report = match &mut backend {
        Backend::Gpu(engine) => on_gpu(engine, args, &classes, &depths, &prompts)?,
        Backend::Cpu(cpu) => on_cpu(cpu, args, &classes, &depths, &prompts)?,
        Backend::Interpreter(_) => anyhow::bail!("the interpreter is not made for speed: use --device cpu or cuda:0"),
    };
    (report.model, report.device) = (model.name().to_string(), device);
    if args.json {
        return show(format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    show(as_text(&report)?)
}

/// Those that the context holds. Of the defaults, the others are named on stderr; those that a user asked for have to fit.
fn fitting(
    flag: &str,
    wanted: &[usize],
    asked: bool,
    context: usize,
    fits: impl Fn(usize) -> bool,
    steps: usize,
) -> Result<Vec<usize>> {
    let (fit, beyond): (Vec<usize>, Vec<usize>) = wanted.iter().copied().partition(|&value| fits(value));
    if beyond.is_empty() {
        return Ok(fit);
    }
    let beyond = beyond.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let steps = if steps > 0 { format!(" and {steps} steps") } else { String::new() };
    let message = format!("{flag} {beyond}{steps} are beyond the context of {context} positions");
    ensure!(!asked, "{message}: give smaller ones, or a larger --max-context");
    tell(format!("{message}: left out"));
    Ok(fit)
}

/// The classes of the model's weights.
type Classes = BTreeMap<WeightRef, BTreeSet<Class>>;

fn weights(tallies: Vec<Tally>, ceiling: f64) -> Vec<Weights> {
    let floor = |tally: &Tally| tally.bytes_per_step as f64 / ceiling * 1e6;
    tallies.into_iter().map(|tally| Weights { floor_us: floor(&tally), tally }).collect()
}

fn on_gpu(
    engine: &mut GpuEngine,
    args: &BenchArgs,
    classes: &Classes,
    depths: &[usize],
    prompts: &[usize],
) -> Result<Report> {
    let ceiling = read_ceiling(engine.gpu())?;
    let check = check(engine)?;
    let plan = engine.plan();
    let bytes = plan.decode_weight_bytes();
    let read = plan.decode_bytes_by_weight();
    let items = plan.weights.iter().zip(read);
    let items = items.map(|(weight, read)| (weight.recipe.tensors(), weight.recipe.format(), weight.bytes, read));
    let tallies = tally(classes, items);
    let mut report = Report {
        model: String::new(),
        device: String::new(),
        versions: versions(engine.gpu())?,
        plan: plan.summary(),
        kernels_per_layer: Some(plan.kernels_per_layer),
        edges_per_layer: Some(plan.edges_per_layer),
        read_ceiling: ceiling,
        weight_bytes_per_step: bytes,
        floor_us: bytes as f64 / ceiling * 1e6,
        weights: weights(tallies, ceiling),
        check,
        decode: Vec::new(),
        prompt: Vec::new(),
    };
    for &batch in &args.batch {
        for &depth in depths {
            engine.time_decode(batch, depth, args.tokens.min(16))?;
            let medians = (0..args.runs)
                .map(|_| Ok(median(&mut engine.time_decode(batch, depth, args.tokens)?)))
                .collect::<Result<Vec<f64>>>()?;
            report.decode.push(Decode::new(batch, depth, medians, bytes, ceiling));
        }
    }
    for &length in prompts {
        engine.time_prompt(length, 2)?;
        report.prompt.push(Prompt::new(length, engine.time_prompt(length, args.runs.max(5))?));
    }
    Ok(report)
}

/// What is named beside a measurement.
pub(super) fn versions(gpu: &Gpu) -> Result<String> {
    Ok(format!("driver CUDA {}, fuserun {}", gpu.driver_version()?, env!("CARGO_PKG_VERSION")))
}

/// The captured graphs are the plan's, the captured step gives the bits of the uncaptured one, and the prompt path agrees with the decode path.
pub(super) fn check(engine: &mut GpuEngine) -> Result<String> {
    engine.check_graphs()?;
    let tokens = check_tokens(engine.plan().vocabulary);
    let by_prompt = engine.logits(&tokens, false)?;
    let by_step = engine.logits(&tokens, true)?;
    let routed = engine.plan().weights.iter().any(|weight| matches!(weight.recipe, Recipe::Experts { .. }));
    let agreement = agreement(&by_step, &by_prompt, if routed { ROUTED_CHECK_BOUND } else { CHECK_BOUND })?;
    let uncaptured = engine.uncaptured_logits(&tokens)?;
    let captured = &by_step[by_step.len() - uncaptured.len()..];
    ensure!(
        captured.iter().zip(&uncaptured).all(|(a, b)| a.to_bits() == b.to_bits()),
        "the captured step differs from the uncaptured one"
    );
    Ok(format!("{agreement}; captured graphs are the plan's; captured step bitwise equal to uncaptured"))
}

fn check_tokens(vocabulary: usize) -> Vec<u32> {
    (0..CHECK_TOKENS).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

/// Says how far the logits of the two paths are apart, and refuses what is too far.
fn agreement(by_step: &[f32], by_prompt: &[f32], bound: f64) -> Result<String> {
    let (mut error, mut norm) = (0.0, 0.0);
    for (&a, &b) in by_step.iter().zip(by_prompt) {
        error += f64::from(a - b).powi(2);
        norm += f64::from(b).powi(2);
    }
    let nmse = error / norm;
    ensure!(nmse < bound, "the decode path and the prompt path disagree: NMSE {nmse:.1e}");
    Ok(format!("decode path against prompt path over {CHECK_TOKENS} tokens: NMSE {nmse:.1e}"))
}

fn on_cpu(
    model: &mut CpuModel,
    args: &BenchArgs,
    classes: &Classes,
    depths: &[usize],
    prompts: &[usize],
) -> Result<Report> {
    let check = {
        let rows: Vec<Row> = (0u32..)
            .zip(check_tokens(model.vocabulary()))
            .map(|(position, token)| Row { token, position, sequence: 0 })
            .collect();
        let by_prompt = model.forward(&rows, Logits::All)?.to_vec();
        let mut by_step = Vec::with_capacity(by_prompt.len());
        for row in &rows {
            by_step.extend_from_slice(model.forward(std::slice::from_ref(row), Logits::All)?);
        }
        agreement(&by_step, &by_prompt, CHECK_BOUND)?
    };
    let mut bandwidth = ReadBandwidth::new(model.options().threads)?;
    let mut ceilings = vec![bandwidth.measure() * 1e9];
    let bytes = model.weight_bytes_per_step();
    let mut decode = Vec::new();
    let steps = args.tokens.min(32);
    for &batch in &args.batch {
        for &depth in depths {
            let mut medians = Vec::new();
            for _ in 0..args.runs {
                ceilings.push(bandwidth.measure() * 1e9);
                let mut times = Vec::new();
                for step in 0..steps {
                    let row =
                        |sequence: usize| Row { token: 1, position: (depth + step) as u32, sequence: sequence as u32 };
                    let rows: Vec<Row> = (0..batch).map(row).collect();
                    let begin = Instant::now();
                    model.forward(&rows, Logits::All)?;
                    times.push(begin.elapsed().as_secs_f64() * 1e6);
                }
                medians.push(median(&mut times));
            }
            decode.push((batch, depth, medians));
        }
    }
    let ceiling = median(&mut ceilings);
    let mut report = Report {
        model: String::new(),
        device: String::new(),
        versions: format!("fuserun {}", env!("CARGO_PKG_VERSION")),
        plan: "the fused graph on the CPU".into(),
        kernels_per_layer: None,
        edges_per_layer: None,
        read_ceiling: ceiling,
        weight_bytes_per_step: bytes,
        floor_us: bytes as f64 / ceiling * 1e6,
        weights: weights(tally(classes, model.weights().into_iter()), ceiling),
        check,
        decode: decode
            .into_iter()
            .map(|(batch, depth, medians)| Decode::new(batch, depth, medians, bytes, ceiling))
            .collect(),
        prompt: Vec::new(),
    };
    for &length in prompts {
        let rows: Vec<Row> =
            (0..length).map(|position| Row { token: 1, position: position as u32, sequence: 0 }).collect();
        let mut times = Vec::new();
        for _ in 0..args.runs.min(3) {
            let begin = Instant::now();
            model.forward(&rows, Logits::Last)?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        report.prompt.push(Prompt::new(length, times));
    }
    Ok(report)
}

impl Decode {
    fn new(batch: usize, depth: usize, mut medians: Vec<f64>, bytes: usize, ceiling: f64) -> Decode {
        let step_us = median(&mut medians);
        let rate = bytes as f64 / (step_us * 1e-6);
        Decode {
            batch,
            depth,
            step_us,
            step_us_min: medians[0],
            step_us_max: medians[medians.len() - 1],
            tokens_per_second: batch as f64 * 1e6 / step_us,
            gigabytes_per_second: rate / 1e9,
            ceiling_percent: 100.0 * rate / ceiling,
        }
    }
}

impl Prompt {
    fn new(tokens: usize, mut times: Vec<f64>) -> Prompt {
        let microseconds = median(&mut times);
        Prompt {
            tokens,
            microseconds,
            microseconds_min: times[0],
            microseconds_max: times[times.len() - 1],
            tokens_per_second: tokens as f64 * 1e6 / microseconds,
        }
    }
}

fn as_text(report: &Report) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{}", report.plan)?;
    writeln!(text, "{} on {} ({})", report.model, report.device, report.versions)?;
    writeln!(
        text,
        "read ceiling {:.1} GB/s; {:.4} GB of weights per step: floor {:.1} us",
        report.read_ceiling / 1e9,
        report.weight_bytes_per_step as f64 / 1e9,
        report.floor_us
    )?;
    writeln!(text, "check: {}", report.check)?;
    writeln!(text, "\n| weights | format | MB | MB per step | floor us |\n| --- | --- | --- | --- | --- |")?;
    for Weights { tally, floor_us } in &report.weights {
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        let (bytes, read) = (megabytes(tally.bytes), megabytes(tally.bytes_per_step));
        writeln!(text, "| {} | {} | {bytes:.2} | {read:.2} | {floor_us:.1} |", tally.class, tally.format)?;
    }
    writeln!(
        text,
        "\n| batch | depth | us per step | fastest to slowest run | tok/s | GB/s | % of ceiling |\n| --- | --- | --- | --- | --- | --- | --- |"
    )?;
    for row in &report.decode {
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} to {:.1} | {:.1} | {:.1} | {:.1} |",
            row.batch,
            row.depth,
            row.step_us,
            row.step_us_min,
            row.step_us_max,
            row.tokens_per_second,
            row.gigabytes_per_second,
            row.ceiling_percent
        )?;
    }
    if !report.prompt.is_empty() {
        writeln!(
            text,
            "\n| prompt | us, first token included | fastest to slowest | tok/s |\n| --- | --- | --- | --- |"
        )?;
    }
    for row in &report.prompt {
        writeln!(
            text,
            "| {} | {:.0} | {:.0} to {:.0} | {:.0} |",
            row.tokens, row.microseconds, row.microseconds_min, row.microseconds_max, row.tokens_per_second
        )?;
    }
    Ok(text)
}
