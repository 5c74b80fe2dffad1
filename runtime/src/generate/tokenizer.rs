//! Text to token ids and back, from a Hugging Face directory, a GGUF file or bytes.

mod bytes;
mod cuts;
pub(crate) mod files;
pub(super) mod from_gguf;
mod recent;

use crate::weights::{Checkpoint, gguf};
use anyhow::{Context, Result, anyhow, bail, ensure};
use cuts::{Cuts, is_settled};
use fusec::files::{Kind, mistaken, read_optional_json};
use fusec::folder::{checkpoint_folder, single_file, without_tokenizer};
use recent::{Recent, SHORTEST};
use serde_json::Value;
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::path::Path;

/// A model's tokenizer with the tokens that start and end its texts.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: BTreeSet<u32>,
    /// Put before a text that is encoded with special tokens.
    bos_prefix: Option<u32>,
    /// Put after it.
    eos_suffix: Option<u32>,
    /// Whether the pipeline's own special tokens are added then too.
    pipeline_specials: bool,
    /// What it puts before and after every text then, where that is known.
    around: Option<(Vec<u32>, Vec<u32>)>,
    cuts: Cuts,
    /// None where a text has other ids each time.
    recent: Option<Recent>,
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face directory (tokenizer.json, with the tokens of tokenizer_config.json, special_tokens_map.json and added_tokens.json,
    /// and the ends of a text of generation_config.json and config.json) or of a GGUF file, of which only the metadata is read: a file without tensors will do.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        if path.is_dir() {
            return Tokenizer::from_directory(&checkpoint_folder(path)?);
        }
        match (gguf::Metadata::open(path), single_file(path)) {
            (Ok(metadata), _) => from_file(path, &metadata),
            (Err(_), Some(what)) => bail!("{}: not a GGUF file; {what}", path.display()),
            (Err(error), None) => Err(error),
        }
    }

    /// The tokenizer that lies with a checkpoint. Fails for a checkpoint in memory, which has none.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        match (checkpoint.gguf_metadata(), checkpoint.path()) {
            (Some(metadata), path) => from_file(path.unwrap_or(Path::new("the GGUF file")), metadata),
            (None, Some(directory)) => Tokenizer::from_directory(directory),
            (None, None) => bail!("a checkpoint in memory has no tokenizer"),
        }
    }

    /// The tokenizer of a GGUF file's metadata: kinds "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE).
    pub fn from_gguf(metadata: &gguf::Metadata) -> Result<Tokenizer> {
        let from_gguf::Parts { inner, bos, eos, bos_prefix, eos_suffix } = from_gguf::build(metadata)?;
        Ok(Tokenizer { bos_prefix, eos_suffix, ..Tokenizer::plain(inner, bos, eos) })
    }

    /// A tokenizer from the bytes of a tokenizer.json, with what its model's other files say: `tokenizer_config` is tokenizer_config.json (null where
    /// there is none), `configs` are those that may hold `bos_token_id` and `eos_token_id` (generation_config.json, config.json).
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: &Value, configs: &[&Value]) -> Result<Tokenizer> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| {
            match mistaken(tokenizer_json, Kind::Text) {
                Some(what) => anyhow!(what),
                None => anyhow!("not a usable tokenizer.json: {error}"),
            }
        })?;
        inner.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        inner.with_padding(None);
        files::add_tokens(&mut inner, tokenizer_config)?;

        let named =
            |key: &str| tokenizer_config.get(key).and_then(files::token_text).and_then(|text| inner.token_to_id(text));
        let bos = named("bos_token").or_else(|| configs.iter().find_map(|config| ids(config, "bos_token_id").next()));
        let mut eos: BTreeSet<u32> = configs.iter().flat_map(|config| ids(config, "eos_token_id")).collect();
        eos.extend(named("eos_token"));

        let mut tokenizer = Tokenizer::plain(inner, bos, eos);
        tokenizer.pipeline_specials = true;
        tokenizer.around = tokenizer.find_around();
        let pipeline_adds_bos = bos.is_some() && tokenizer.encode("", true)?.first().copied() == bos;
        match tokenizer_config.get("add_bos_token").and_then(Value::as_bool) {
            Some(true) if !pipeline_adds_bos => tokenizer.bos_prefix = bos,
            Some(false) if pipeline_adds_bos => tokenizer.pipeline_specials = false,
            _ => {}
        }
        Ok(tokenizer)
    }

    /// The ids of a text. Special tokens written out in the text (`<|im_start|>`) become their ids in either case; `add_special` also puts the
    /// tokens around it that the model expects of a plain text, such as bos. A rendered chat has its own: encode it with `false`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = match &self.around {
            _ if !(add_special && self.pipeline_specials) => self.encode_parts(text)?,
            Some((before, after)) if text.len() >= SHORTEST => [before, &self.encode_parts(text)?[..], after].concat(),
            _ => self.encode_whole(text, true)?,
        };
        let prefix = self.bos_prefix.filter(|_| add_special);
        let suffix = self.eos_suffix.filter(|_| add_special);
        Ok(prefix.into_iter().chain(ids).chain(suffix).collect())
    }

    /// The ids of a text that is to be continued: with the special tokens before it, as [`Tokenizer::encode`] puts them, but no end after it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        let ends = |ids: &[u32]| ids.iter().rev().take_while(|&&id| self.is_eos(id)).count();
        let (found, written) = (ends(&ids), ends(&self.encode(text, false)?));
        if !text.is_empty() && found > written {
            ids.truncate(ids.len() - (found - written));
        }
        Ok(ids)
    }

    /// The text of some ids; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves special tokens out. Ids beyond the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| anyhow!("cannot turn the tokens into text: {error}"))
    }

    /// A decoder that takes one id at a time and gives text as soon as it is whole.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<&Tokenizer> {
        DecodeStream::after(self, &[], skip_special)
    }

    /// As [`Tokenizer::decode_stream`], of ids that go on after `prompt`: the first may begin with a space, which some tokenizers drop at the start of a text.
    pub fn decode_stream_after(&self, prompt: &[u32], skip_special: bool) -> DecodeStream<&Tokenizer> {
        DecodeStream::after(self, prompt, skip_special)
    }

    /// The token that starts a text, where the model has one (whether or not `encode` adds it).
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text or a turn, in order; empty where the files name none.
    pub fn eos(&self) -> impl Iterator<Item = u32> + '_ {
        self.eos.iter().copied()
    }

    /// Whether a token ends a text or a turn.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token, which texts are shown without.
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.id_to_token(id);
        token.is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The number of tokens, added ones included. A model's embedding may have more rows.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// One that adds nothing to a text.
    fn plain(inner: tokenizers::Tokenizer, bos: Option<u32>, eos: BTreeSet<u32>) -> Tokenizer {
        let (cuts, recent) = (Cuts::of(&inner), is_settled(&inner).then(Recent::default));
        let (bos_prefix, eos_suffix) = (None, None);
        Tokenizer { inner, bos, eos, bos_prefix, eos_suffix, pipeline_specials: false, around: None, cuts, recent }
    }

    /// The ids of a text without what is put around it. Of a text that goes on with a recent one only the rest is encoded.
    fn encode_parts(&self, text: &str) -> Result<Vec<u32>> {
        match &self.recent {
            Some(recent) => recent.encode(text, &self.cuts, |part| self.encode_whole(part, false)),
            None => self.encode_whole(text, false),
        }
    }

    fn encode_whole(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special);
        Ok(encoding.map_err(|error| anyhow!("cannot tokenize the text: {error}"))?.get_ids().to_vec())
    }

    /// What the pipeline puts around two texts alike; none where that cannot be told from the texts.
    fn find_around(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        let around = |text: &str| -> Option<BTreeSet<(Vec<u32>, Vec<u32>)>> {
            let (with, without) = (self.encode_whole(text, true).ok()?, self.encode_whole(text, false).ok()?);
            let parts = with.windows(without.len().max(1)).enumerate().filter(|(_, part)| *part == without);
            Some(parts.map(|(at, part)| (with[..at].to_vec(), with[at + part.len()..].to_vec())).collect())
        };
        let (first, second) = (around("a")?, around("b c")?);
        let mut both = first.intersection(&second);
        both.next().filter(|_| both.next().is_none()).cloned()
    }

    fn from_directory(directory: &Path) -> Result<Tokenizer> {
        let path = directory.join("tokenizer.json");
        ensure!(path.exists(), "{}: {}", directory.display(), without_tokenizer(directory));
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let tokenizer_config = files::read_tokenizer_config(directory)?;
        let generation = read_optional_json(&directory.join("generation_config.json"))?;
        let config = read_optional_json(&directory.join("config.json"))?;
        Tokenizer::from_bytes(&bytes, &tokenizer_config, &[&generation, &config])
            .with_context(|| path.display().to_string())
    }
}

/// Turns ids into text one at a time; see [`Tokenizer::decode_stream`].
///
/// Text comes out once its last character is whole: a character's bytes may be spread over several tokens. `T` holds the tokenizer, or refers to it.
pub struct DecodeStream<T> {
    tokenizer: T,
    skip_special: bool,
    /// The ids whose text was given last, as context, then those whose text is still held back.
    ids: Vec<u32>,
    /// How many of them were given.
    given: usize,
}

/// Tokens that may be held back. A character has at most four bytes, so more than these are no UTF-8, and the replacement character is right.
const HELD: usize = 8;

impl<T: Borrow<Tokenizer>> DecodeStream<T> {
    /// See [`Tokenizer::decode_stream_after`]; with an empty prompt, [`Tokenizer::decode_stream`].
    pub fn after(tokenizer: T, prompt: &[u32], skip_special: bool) -> DecodeStream<T> {
        let ids = prompt[prompt.len().saturating_sub(HELD)..].to_vec();
        DecodeStream { tokenizer, skip_special, given: ids.len(), ids }
    }

    /// Takes the next id; returns the text that it completes, which may be empty.
    pub fn step(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, after) = (self.decoded(self.given)?, self.decoded(self.ids.len())?);
        if after == before {
            // A token that is left out is no context either; one whose text depends on the next, as a space at the start, is.
            if self.is_left_out(id) {
                self.ids.pop();
            }
            return Ok(String::new());
        }
        let whole = !after.ends_with(char::REPLACEMENT_CHARACTER) || self.ids.len() - self.given >= HELD;
        Ok(if whole { self.give(&before, &after) } else { String::new() })
    }

    /// The text still held back when no id follows: incomplete bytes as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        let (before, after) = (self.decoded(self.given)?, self.decoded(self.ids.len())?);
        Ok(self.give(&before, &after))
    }

    fn is_left_out(&self, id: u32) -> bool {
        let tokenizer = self.tokenizer.borrow();
        let token = tokenizer.id_to_token(id);
        token.is_none_or(|token| token.is_empty()) || self.skip_special && tokenizer.is_special(id)
    }

    fn decoded(&self, end: usize) -> Result<String> {
        self.tokenizer.borrow().decode(&self.ids[..end], self.skip_special)
    }

    fn give(&mut self, before: &str, after: &str) -> String {
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        after.get(before.len()..).unwrap_or_default().to_owned()
    }
}

fn from_file(path: &Path, metadata: &gguf::Metadata) -> Result<Tokenizer> {
    Tokenizer::from_gguf(metadata).with_context(|| format!("the tokenizer of {}", path.display()))
}

/// The id or the list of ids under a key.
fn ids<'a>(config: &'a Value, key: &str) -> impl Iterator<Item = u32> + 'a {
    let value = config.get(key);
    let list = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    value.into_iter().chain(list).filter_map(|id| u32::try_from(id.as_u64()?).ok())
}

#[cfg(test)]
mod tests;
