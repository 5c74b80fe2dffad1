//! `fuserun logits`: the logits of given tokens, for judges.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::tell;
use fusec::output;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::model::ModelArgs;
use crate::model::Text;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun logits -m Qwen3-0.6B --tokens 1,2,3 -o logits.safetensors
  fuserun logits -m model.gguf --device interpreter --tokens 1,2,3 -o exact.safetensors")]
pub struct LogitsArgs {
    /// Token ids, separated by commas.
    #[arg(long, env = "FUSE_TOKENS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// Through the decode path, token by token; otherwise through the prompt path.
    #[arg(long, env = "FUSE_STEP", value_parser = FalseyValueParser::new())]
    step: bool,
    /// The file to write, - for stdout: tensor "logits", f32 [tokens, vocabulary].
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &LogitsArgs) -> Result<()> {
    let model = args.model.open(false)?;
    let text = Text { tokens: args.tokens.len(), grows: args.step };
    let options = args.model.load_options(&model, &[1], args.tokens.len(), text)?;
    let mut backend = model.load(&args.model.device(&model), &options)?;
    let logits = backend.logits(&args.tokens, args.step)?;
    let shape = vec![args.tokens.len(), logits.len() / args.tokens.len()];
    let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(&logits))?;
    output::write(&args.output, &safetensors::serialize([("logits", view)], None)?)?;
    tell(format!("{}: logits f32 {shape:?}, {}", output::name(&args.output), backend.describe()));
    Ok(())
}
