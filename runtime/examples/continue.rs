//! Continues a text, by the library: `cargo run --release -p fuserun --example continue`.

use anyhow::Result;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::SamplingParameters;

fn main() -> Result<()> {
    // `model` takes a Hugging Face folder, a .gguf, a .fuse or a .toml file; nothing is the demo model.
    let model = OpenModel::open(&ModelName::default())?;
    let tokenizer = model.tokenizer()?;
    let (prompt, stops) = (tokenizer.encode_prompt("Call me")?, tokenizer.eos().collect::<Vec<u32>>());
    let options = LoadOptions { context: 256, sequences: 1, batches: vec![1], threads: None };
    let mut tokens = prompt.clone();
    model.load(&Device::Auto, &options)?.generate(
        &[prompt],
        &SamplingParameters::default(),
        64,
        &stops,
        &mut |_, token| {
            tokens.push(token);
            true
        },
    )?;
    println!("{}", tokenizer.decode(&tokens, true)?);
    Ok(())
}
