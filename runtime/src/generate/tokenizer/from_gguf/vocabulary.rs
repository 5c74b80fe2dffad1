//! The tokens of a GGUF file: their texts, and what each is.

use crate::weights::gguf::{Metadata, Value};
use ahash::AHashMap;
use anyhow::{Context, Result, anyhow, ensure};

/// `tokenizer.ggml.token_type`.
pub(super) mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
}

/// What each token is; all normal where the file does not say.
pub(super) struct Kinds<'a>(&'a [Value]);

impl Kinds<'_> {
    pub fn read(metadata: &Metadata, count: usize) -> Result<Kinds<'_>> {
        let kinds = metadata.list("tokenizer.ggml.token_type").unwrap_or_default();
        ensure!(kinds.is_empty() || kinds.len() == count, "{count} tokens have {} types", kinds.len());
        Ok(Kinds(kinds))
    }

    pub fn of(&self, index: usize) -> u64 {
        match self.0.get(index) {
            Some(Value::Signed(kind)) => *kind as u64,
            Some(Value::Unsigned(kind)) => *kind,
            _ => kind::NORMAL,
        }
    }
}

/// Ids by token; of equal tokens the first counts.
pub(super) fn vocabulary(tokens: &[&str]) -> AHashMap<String, u32> {
    let mut vocabulary = AHashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocabulary.entry((*token).to_owned()).or_insert(id as u32);
    }
    vocabulary
}

pub(super) fn texts<'a>(metadata: &'a Metadata, key: &str) -> Result<Vec<&'a str>> {
    let list = metadata.list(key).with_context(|| format!("the metadata key {key} is missing"))?;
    let text = |value: &'a Value| match value {
        Value::Text(text) => Ok(text.as_str()),
        _ => Err(anyhow!("{key} is not a list of texts")),
    };
    list.iter().map(text).collect()
}

pub(super) fn foreign(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("cannot build the tokenizer: {error}")
}
