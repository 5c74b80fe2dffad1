//! `fuserun quantize`: a checkpoint of 16 bits as a quantised one that other programs read.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap::builder::{FalseyValueParser, PossibleValuesParser};
use fusec::console::{show, tell};
use fusec::plan::WeightFormat;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::generate::chat::ChatTemplate;
use crate::generate::to_gguf::{Pairs, metadata};
use crate::model::{ModelName, OpenModel};
use crate::quantise::{Cost, Job, Written, is_gguf, write};

const BAR: &str = "{wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// What weights become in folders, and in GGUF files.
const FOLDERS: [&str; 3] = ["fp8", "int8", "int4"];
const FILES: [&str; 9] = ["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "mxfp4"];

/// Texts by which a tokenizer is compared with what was written of it.
const PROBES: [&str; 6] = [
    "Call me Ishmael. Some years ago--never mind how long precisely--",
    "  two  spaces,\n\nlines\tand tabs \n 12345 + 6.78 = 'twas I'll We'RE",
    "fn main() { println!(\"{}\", x[0] != !y); } // 100%",
    "Ünïcödé: 你好，世界! Привет, мир. مرحبا 🙂👍🏽 e\u{301}",
    "<|endoftext|><|im_start|>user\nHello<|im_end|>",
    "",
];

/// Tensors that are listed where more than these are quantised.
const LISTED: usize = 8;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun quantize -m Qwen3-0.6B --to fp8 -o Qwen3-0.6B-FP8
  fuserun quantize -m Qwen3-0.6B --to int4 -o Qwen3-0.6B-W4A16 --json
  fuserun quantize -m Qwen3-0.6B --to q4_k -o Qwen3-0.6B-Q4_K.gguf

A folder has the form of compressed-tensors, which transformers reads too: fp8 and int8 have a scale per row, int4 one per 128 columns; embedding and head stay as they are. A \
GGUF file has the other formats, as llama.cpp reads them; embedding and head have Q6_K, or Q8_0. Routers and small tensors stay. Tokenizer and templates go along.")]
pub struct QuantizeArgs {
    /// The model: a Hugging Face folder with weights of 16 or 32 bits, or OWNER/NAME of one in the hub's cache.
    #[arg(short, long, env = "FUSE_MODEL", value_name = "DIR")]
    model: PathBuf,
    /// What the weights of products become.
    #[arg(long, env = "FUSE_TO", value_name = "FORMAT", value_parser = PossibleValuesParser::new(FOLDERS.iter().chain(&FILES)))]
    to: String,
    /// The folder to write, or the file whose name ends in .gguf.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "DIR|FILE.gguf")]
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
    let gguf = is_gguf(&args.output);
    ensure!(
        gguf == FILES.contains(&&*args.to),
        "{} is written {}: name -o {}",
        args.to,
        if gguf { "as a folder" } else { "as a GGUF file" },
        if gguf { "a folder, without .gguf" } else { "a file whose name ends in .gguf" }
    );
    let chosen = model.quantising(&args.to)?;
    let checkpoint = model.checkpoint().context("there is no checkpoint to quantise")?;
    let tokenizer = if gguf { tokenizer_of(&model)? } else { Vec::new() };
    let bar = ProgressBar::hidden();
    if stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
    }
    let progress = |done: u64, all: u64| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let target = args.to.parse::<WeightFormat>().map_err(|wrong| anyhow!(wrong))?;
    let WeightFormat::As(target) = target else { bail!("{} is no format", args.to) };
    let job = Job {
        checkpoint,
        chosen: &chosen,
        target,
        out: &args.output,
        replace: args.force,
        tokenizer: &tokenizer,
        check: &|path| same_model(&model, path),
        progress: &progress,
    };
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

/// What a GGUF file says of the model's tokenizer and chat template.
fn tokenizer_of(model: &OpenModel) -> Result<Pairs> {
    let folder = model.checkpoint().and_then(|checkpoint| checkpoint.path()).filter(|path| path.is_dir());
    let folder = folder.context("only a Hugging Face folder can be written as a GGUF file: name one")?;
    let size = model.facts()?.vocab_size;
    let template = model.chat_template()?;
    metadata(folder, size, template.as_ref().map(ChatTemplate::source))
}

/// Whether a file that was written is the same model, and cuts texts in the same way.
fn same_model(model: &OpenModel, path: &Path) -> Result<()> {
    let written = OpenModel::open(&ModelName { model: Some(path.to_owned()), ..ModelName::default() })?;
    let folder = "name a folder to write in the place of a .gguf file";
    ensure!(
        written.described_text()? == model.described_text()?,
        "{}: a GGUF file cannot say all of its configuration: {folder}",
        model.name()
    );
    let Ok(tokenizer) = model.tokenizer() else { return Ok(()) };
    let other = written.tokenizer()?;
    for text in PROBES {
        ensure!(
            tokenizer.encode(text, true)? == other.encode(text, true)?,
            "{}: a GGUF file cannot say how its tokenizer cuts '{text}': {folder}",
            model.name()
        );
    }
    Ok(())
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
