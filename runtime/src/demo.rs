//! The demo model inside the binary: what runs when no model is named.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::generate::chat::ChatTemplate;
use crate::generate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;

const CONFIG: &str = include_str!("../../models/demo/config.json");
const GENERATION_CONFIG: &str = include_str!("../../models/demo/generation_config.json");
const TOKENIZER: &[u8] = include_bytes!("../../models/demo/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../models/demo/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../models/demo/model.safetensors");

/// A conversation as the book that it has read would print one.
const CHAT_TEMPLATE: &str = "\
{% for message in messages %}\
{% if message.role == 'user' %}\"{{ message.content }}\" said the stranger.\n\n\
{% elif message.role == 'assistant' %}\"{{ message.content }}\" said the sailor.\n\n\
{% else %}{{ message.content }}\n\n{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}\"{% endif %}";

/// What ends the sailor's answer.
pub const CHAT_STOPS: [&str; 2] = ["\"", "\n\n"];

/// Its chat template.
///
/// # Errors
/// Only if the template is broken.
pub fn chat_template() -> Result<ChatTemplate> {
    ChatTemplate::new(CHAT_TEMPLATE, Map::new())
}

/// Its weights and configuration.
///
/// # Errors
/// Only if the binary was built from broken files.
pub fn checkpoint() -> Result<Checkpoint> {
    let tensors = SafeTensors::deserialize(WEIGHTS).context("the demo model's weights")?;
    let mut values = BTreeMap::new();
    for (name, tensor) in tensors.tensors() {
        ensure!(tensor.dtype() == Dtype::BF16, "the demo model's {name} is {:?}, not BF16", tensor.dtype());
        let floats =
            tensor.data().chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
        values.insert(name, (tensor.shape().to_vec(), floats));
    }
    Checkpoint::from_memory(serde_json::from_str(CONFIG).context("the demo model's config.json")?, values)
}

/// How it is sampled: its generation_config.json.
///
/// # Errors
/// Only if the binary was built from broken files.
pub fn generation_config() -> Result<Value> {
    parse(GENERATION_CONFIG)
}

/// Its tokenizer.
///
/// # Errors
/// Only if the binary was built from broken files.
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_bytes(TOKENIZER, &parse(TOKENIZER_CONFIG)?, &[&parse(GENERATION_CONFIG)?, &parse(CONFIG)?])
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("the demo model's configuration")
}
