//! Tokenizers from GGUF metadata, assembled from the parts that the model's tokenizer.json would name.

mod byte_level;
mod sentence_piece;
mod vocabulary;

pub(in crate::generate) use byte_level::{GPT2, name_of_cuts};

use crate::weights::gguf::Metadata;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use tokenizers::AddedToken;
use vocabulary::{Kinds, foreign, kind, texts};

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

/// The parts of a tokenizer, as the fields of [`Tokenizer`](super::Tokenizer) of the same names.
pub(super) struct Parts {
    pub inner: tokenizers::Tokenizer,
    pub bos: Option<u32>,
    pub eos: BTreeSet<u32>,
    pub bos_prefix: Option<u32>,
    pub eos_suffix: Option<u32>,
}

/// Builds the tokenizer that the metadata describes.
pub(super) fn build(metadata: &Metadata) -> Result<Parts> {
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
    let (bos_prefix, eos_suffix) = (bos.filter(|_| adds_bos), id("eos").filter(|_| adds_eos));
    Ok(Parts { inner, bos, eos, bos_prefix, eos_suffix })
}
