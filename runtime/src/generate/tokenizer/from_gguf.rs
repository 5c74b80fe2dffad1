//! Tokenizers from GGUF metadata, assembled from the parts that the model's tokenizer.json would name.

mod byte_level;
mod sentence_piece;

use super::Tokenizer;
use crate::weights::gguf::{Metadata, Value};
use ahash::AHashMap;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;
use tokenizers::AddedToken;

/// Control tokens that end a text or a turn wherever they occur: files often name only one of a model's several.
const ENDS: &[&str] = &[
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "</s>",
];

/// `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: u64 = 1;
    pub(super) const UNKNOWN: u64 = 2;
    pub(super) const CONTROL: u64 = 3;
    pub(super) const USER_DEFINED: u64 = 4;
}

/// Builds the tokenizer that the metadata describes.
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer> {
    let model =
        metadata.text("tokenizer.ggml.model").context("the metadata has no tokenizer (tokenizer.ggml.model)")?;
    let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
    let kinds = Kinds::read(metadata, tokens.len())?;
    let (mut inner, adds_bos) = match model {
        "gpt2" => byte_level::build(metadata, &tokens)?,
        "llama" => (sentence_piece::build(metadata, &tokens, &kinds)?, true),
        other => bail!(
            "tokenizers of model '{other}' are not read from GGUF (known: gpt2, llama); use the model's Hugging Face directory instead"
        ),
    };

    let sentence_piece = model == "llama";
    let (mut special, mut plain) = (Vec::new(), Vec::new());
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        match kinds.of(index) {
            kind::CONTROL | kind::UNKNOWN => {
                let swallows = sentence_piece && sentence_piece::swallows_space(metadata, token);
                special.push(AddedToken::from(*token, true).normalized(false).rstrip(swallows));
            }
            kind::USER_DEFINED if sentence_piece => plain.extend(sentence_piece::user_defined(metadata, token)),
            kind::USER_DEFINED => plain.push(AddedToken::from(*token, false).normalized(false)),
            _ => {}
        }
    }
    inner.add_special_tokens(special).map_err(foreign)?;
    inner.add_tokens(plain).map_err(foreign)?;

    let id = |key: &str| {
        let id = metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
        u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len())
    };
    let bos = id("bos");
    let mut eos: BTreeSet<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    let ends = |&index: &usize| kinds.of(index) == kind::CONTROL && ENDS.contains(&tokens[index]);
    eos.extend((0..tokens.len()).filter(ends).map(|index| index as u32));
    let adds_bos = metadata.boolean("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos);
    let adds_eos = metadata.boolean("tokenizer.ggml.add_eos_token").unwrap_or(false);
    Ok(Tokenizer {
        inner,
        bos,
        eos,
        bos_prefix: bos.filter(|_| adds_bos),
        eos_suffix: id("eos").filter(|_| adds_eos),
        pipeline_specials: false,
    })
}

/// What each token is; all normal where the file does not say.
struct Kinds<'a>(&'a [Value]);

impl Kinds<'_> {
    fn read(metadata: &Metadata, count: usize) -> Result<Kinds<'_>> {
        let kinds = metadata.list("tokenizer.ggml.token_type").unwrap_or_default();
        ensure!(kinds.is_empty() || kinds.len() == count, "{count} tokens have {} types", kinds.len());
        Ok(Kinds(kinds))
    }

    fn of(&self, index: usize) -> u64 {
        match self.0.get(index) {
            Some(Value::Signed(kind)) => *kind as u64,
            Some(Value::Unsigned(kind)) => *kind,
            _ => kind::NORMAL,
        }
    }
}

/// Ids by token; of equal tokens the first counts.
fn vocabulary(tokens: &[&str]) -> AHashMap<String, u32> {
    let mut vocabulary = AHashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocabulary.entry((*token).to_owned()).or_insert(id as u32);
    }
    vocabulary
}

fn texts<'a>(metadata: &'a Metadata, key: &str) -> Result<Vec<&'a str>> {
    let list = metadata.list(key).with_context(|| format!("the metadata key {key} is missing"))?;
    let text = |value: &'a Value| match value {
        Value::Text(text) => Ok(text.as_str()),
        _ => Err(anyhow!("{key} is not a list of texts")),
    };
    list.iter().map(text).collect()
}

fn foreign(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("cannot build the tokenizer: {error}")
}
