//! `fuserun quantize`: a checkpoint of 16 bits as a quantised one that other programs read.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{FalseyValueParser, PossibleValuesParser};
use fusec::console::{show, tell};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::model::{ModelName, OpenModel};
use crate::quantise::{Cost, Job, Written, write};

const BAR: &str = "{wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// Tensors that are listed where more than these are quantised.
const LISTED: usize = 8;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun quantize -m Qwen3-0.6B --to fp8 -o Qwen3-0.6B-FP8
  fuserun quantize -m Qwen3-0.6B --to int4 -o Qwen3-0.6B-W4A16 --json

The folder that is written has compressed-tensors' form, which transformers, vLLM and SGLang read too: fp8 and int8 have a scale per row, int4 one per 128 columns. Embedding, head, \
routers and small tensors stay as they are. Tokenizer and templates are copied.")]
pub struct QuantizeArgs {
    /// The model: a Hugging Face folder with weights of 16 or 32 bits, or OWNER/NAME of one in the hub's cache.
    #[arg(short, long, env = "FUSE_MODEL", value_name = "DIR")]
    model: PathBuf,
    /// What the weights of products become.
    #[arg(long, env = "FUSE_TO", value_name = "FORMAT", value_parser = PossibleValuesParser::new(["fp8", "int8", "int4"]))]
    to: String,
    /// The folder to write.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "DIR")]
    output: PathBuf,
    /// Replaces what is there.
    #[arg(long, env = "FUSE_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,
    /// One JSON object with the error of each tensor.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

pub fn run(args: &QuantizeArgs) -> Result<()> {
    let model = OpenModel::open(&ModelName { model: Some(args.model.clone()), ..ModelName::default() })?;
    let chosen = model.quantising(&args.to)?;
    let checkpoint = model.checkpoint().context("there is no checkpoint to quantise")?;
    let bar = ProgressBar::hidden();
    if stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
    }
    let progress = |done: u64, all: u64| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let job = Job { checkpoint, chosen: &chosen, out: &args.output, replace: args.force, progress: &progress };
    let written = write(&job);
    bar.finish_and_clear();
    let written = written?;
    if args.json {
        let report = json!({"model": model.name(), "to": args.to, "output": args.output, "written": written});
        return show(format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    tell(format!("wrote {}", args.output.display()));
    show(table(&written))
}

/// The tensors that have the largest errors, and all together.
fn table(written: &Written) -> String {
    let Written { quantised, kept, bytes, bytes_before } = written;
    let mut worst: Vec<&Cost> = quantised.iter().collect();
    worst.sort_by(|a, b| b.nmse.total_cmp(&a.nmse));
    worst.truncate(LISTED);
    let width = worst.iter().map(|cost| cost.tensor.len()).max().unwrap_or(0);
    let mut text = format!("{:<width$}  {:>8}  {:>9}  format\n", "largest errors", "NMSE", "max");
    for Cost { tensor, format, nmse, most, .. } in worst {
        text += &format!("{tensor:<width$}  {nmse:>8.1e}  {most:>9.2e}  {format}\n");
    }
    let mean = quantised.iter().map(|cost| cost.nmse).sum::<f64>() / quantised.len().max(1) as f64;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    text + &format!(
        "{} tensors quantised, mean NMSE {mean:.1e}; {kept} as they were; {:.1} MB of {:.1} MB\n",
        quantised.len(),
        megabytes(*bytes),
        megabytes(*bytes_before)
    )
}
