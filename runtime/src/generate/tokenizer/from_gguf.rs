//! Tokenizers from GGUF metadata, assembled from the parts that the model's tokenizer.json would name.

use super::Tokenizer;
use crate::weights::gguf::{Metadata, Value};
use ahash::AHashMap;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;
use tokenizers::decoders::{
    DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip,
};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers, unicode::NFC};
use tokenizers::pre_tokenizers::{
    PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence, split::Split, split::SplitPattern,
};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// How "gpt2" tokenizers cut a text before BPE: one row a `tokenizer.ggml.pre`.
const CUTS: &[(&str, Cut)] = &[
    ("gpt-2", Cut::Gpt2),
    ("gpt2", Cut::Gpt2),
    ("default", Cut::Gpt2),
    ("smollm", Cut::DigitsThenGpt2),
    ("llama-bpe", Cut::Llama3),
    ("llama3", Cut::Llama3),
    ("llama-v3", Cut::Llama3),
    ("qwen2", Cut::Qwen2),
    ("deepseek-r1-qwen", Cut::Qwen2),
];

#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Gpt2,
    DigitsThenGpt2,
    Llama3,
    Qwen2,
}

/// Contractions, words with one leading character that is no letter, up to three digits, punctuation, line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Llama 3's, digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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

/// SentencePiece's mark of a space.
const SPACE_MARK: &str = "▁";

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
    let (mut inner, adds_bos) = match model {
        "gpt2" => byte_level(metadata, &tokens)?,
        "llama" => (sentence_piece(metadata, &tokens)?, true),
        other => bail!(
            "tokenizers of model '{other}' are not read from GGUF (known: gpt2, llama); use the model's Hugging Face directory instead"
        ),
    };

    let kinds = metadata.list("tokenizer.ggml.token_type").unwrap_or_default();
    ensure!(kinds.is_empty() || kinds.len() == tokens.len(), "{} tokens have {} types", tokens.len(), kinds.len());
    let kind_of = |index: usize| match kinds.get(index) {
        Some(Value::Signed(kind)) => *kind as u64,
        Some(Value::Unsigned(kind)) => *kind,
        _ => kind::NORMAL,
    };
    let of_kind = |wanted: &'static [u64], special| {
        let chosen = tokens
            .iter()
            .enumerate()
            .filter(move |(index, token)| wanted.contains(&kind_of(*index)) && !token.is_empty());
        chosen.map(move |(_, token)| AddedToken::from(*token, special).normalized(false))
    };
    inner.add_special_tokens(of_kind(&[kind::CONTROL, kind::UNKNOWN], true)).map_err(foreign)?;
    inner.add_tokens(of_kind(&[kind::USER_DEFINED], false)).map_err(foreign)?;

    let id = |key: &str| {
        let id = metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
        u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len())
    };
    let bos = id("bos");
    let mut eos: BTreeSet<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    eos.extend(
        tokens
            .iter()
            .enumerate()
            .filter(|(index, token)| kind_of(*index) == kind::CONTROL && ENDS.contains(token))
            .map(|(index, _)| index as u32),
    );
    let adds_bos = metadata.boolean("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos);
    Ok(Tokenizer { inner, bos, eos, bos_prefix: bos.filter(|_| adds_bos), pipeline_specials: false })
}

/// BPE over GPT-2's byte alphabet, and whether it adds bos where the file does not say.
fn byte_level(metadata: &Metadata, tokens: &[&str]) -> Result<(tokenizers::Tokenizer, bool)> {
    let pre = metadata.text("tokenizer.ggml.pre").unwrap_or("default");
    let Some((_, cut)) = CUTS.iter().find(|(name, _)| *name == pre) else {
        let known: Vec<_> = CUTS.iter().map(|(name, _)| *name).collect();
        bail!(
            "tokenizer.ggml.pre '{pre}' is not known (known: {}); use the model's Hugging Face directory instead",
            known.join(", ")
        );
    };
    let vocabulary = vocabulary(tokens);
    let listed = texts(metadata, "tokenizer.ggml.merges")?;
    let mut merges = Vec::with_capacity(listed.len());
    for (rank, merge) in listed.into_iter().enumerate() {
        let (left, right) =
            merge.split_once(' ').with_context(|| format!("merge {rank} '{merge}' is not two tokens"))?;
        for token in [left, right, &format!("{left}{right}")] {
            ensure!(
                vocabulary.contains_key(token),
                "merge {rank} '{merge}' needs the token '{token}', which is not in the vocabulary"
            );
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(*cut == Cut::Llama3)
        .build()
        .map_err(foreign)?;

    let bytes = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
    let split = |pattern: &str| -> Result<PreTokenizerWrapper> {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(foreign)?;
        Ok(Sequence::new(vec![split.into(), bytes(false)]).into())
    };
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(match cut {
        Cut::Gpt2 => bytes(true),
        Cut::DigitsThenGpt2 => Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into(),
        Cut::Llama3 => split(LLAMA3)?,
        Cut::Qwen2 => split(QWEN2)?,
    }));
    inner.with_decoder(Some(ByteLevel::default()));
    if *cut == Cut::Qwen2 {
        inner.with_normalizer(Some(NFC)).map_err(foreign)?;
    }
    Ok((inner, *cut == Cut::Llama3))
}

/// SentencePiece's BPE: merges are ranked by the score of what they make, unknown characters fall back to bytes.
fn sentence_piece(metadata: &Metadata, tokens: &[&str]) -> Result<tokenizers::Tokenizer> {
    let scores = metadata.list("tokenizer.ggml.scores").context("tokenizer.ggml.scores is missing")?;
    ensure!(scores.len() == tokens.len(), "{} tokens have {} scores", tokens.len(), scores.len());
    let vocabulary = vocabulary(tokens);
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let Value::Float(score) = score else { bail!("tokenizer.ggml.scores are not floats") };
        let mut cuts: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| Some((*vocabulary.get(left)?, *vocabulary.get(right)?, left, right)))
            .collect();
        cuts.sort();
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    let lengths = |left: &str, right: &str| (left.chars().count(), right.chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(b.1, b.2).cmp(&lengths(a.1, a.2))));
    let merges = merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect();

    let mut bpe = BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
    let unknown = metadata.unsigned("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    if let Some(token) = usize::try_from(unknown).ok().and_then(|index| tokens.get(index)) {
        bpe = bpe.unk_token((*token).to_owned());
    }
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(foreign)?);
    let prefix = metadata.boolean("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new(SPACE_MARK.to_owned()).into());
    }
    normalizers.push(Replace::new(" ", SPACE_MARK).map_err(foreign)?.into());
    inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(foreign)?;
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE_MARK, " ").map_err(foreign)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok(inner)
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
