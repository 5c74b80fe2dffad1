//! `fuserun logits`: the logits of given tokens, for judges.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::cli::tell;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::ModelArgs;

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
    /// The file to write: tensor "logits", f32 [tokens, vocabulary].
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &LogitsArgs) -> Result<()> {
    let model = args.model.open(false)?;
    let options = args.model.load_options(&model, &[1], args.tokens.len())?;
    let mut backend = model.load(&args.model.device(&model), &options)?;
    let logits = backend.logits(&args.tokens, args.step)?;
    let shape = vec![args.tokens.len(), logits.len() / args.tokens.len()];
    let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(&logits))?;
    safetensors::serialize_to_file(HashMap::from([("logits", view)]), None, &args.output)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    tell(format!("{}: logits f32 {shape:?}, {}", args.output.display(), backend.describe()));
    Ok(())
}
