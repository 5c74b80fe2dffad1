//! BPE over GPT-2's byte alphabet (`tokenizer.ggml.model` "gpt2").

use super::vocabulary::{foreign, texts, vocabulary};
use crate::weights::gguf::Metadata;
use anyhow::{Context, Result, bail, ensure};
use tokenizers::SplitDelimiterBehavior;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::{PreTokenizerWrapper, sequence::Sequence, split::Split, split::SplitPattern};

/// What a `tokenizer.ggml.pre` stands for.
struct Pre {
    names: &'static [&'static str],
    /// Patterns that cut the text one after the other, each in the pieces of the one before: what matches is a piece, what lies between is one too.
    cuts: &'static [&'static str],
    /// Whether the text is composed (NFC) before.
    composes: bool,
    /// Whether a piece that is a token as a whole is that token, whatever its merges make of it.
    whole_pieces: bool,
    /// Whether bos is put before a text where the file does not say.
    adds_bos: bool,
}

const KNOWN: &[Pre] = &[
    Pre { names: &["gpt-2", "gpt2"], cuts: &[GPT2], ..PLAIN },
    Pre { names: &["smollm", "starcoder", "refact"], cuts: &[r"\p{N}", GPT2], ..PLAIN },
    Pre { names: &["llama-bpe", "llama3", "llama-v3"], cuts: &[LLAMA3], whole_pieces: true, adds_bos: true, ..PLAIN },
    Pre { names: &["dbrx", "smaug-bpe"], cuts: &[LLAMA3], ..PLAIN },
    Pre { names: &["qwen2", "deepseek-r1-qwen", "stablelm2"], cuts: &[QWEN2], composes: true, ..PLAIN },
    Pre { names: &["olmo", "mpt"], cuts: &[GPT2], composes: true, ..PLAIN },
    Pre { names: &["tekken"], cuts: &[TEKKEN], whole_pieces: true, adds_bos: true, ..PLAIN },
    Pre { names: &["default"], cuts: &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN },
];

const PLAIN: Pre = Pre { names: &[], cuts: &[], composes: false, whole_pieces: false, adds_bos: false };

/// Contractions; words, numbers and punctuation with at most one space before; spaces, all but the last where a word follows.
pub(in crate::generate) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Contractions, words with one leading character that is no letter, up to three digits, punctuation, line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Llama 3's, digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words cut before a capital that follows small letters, digits one by one, slashes with the punctuation before them.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// The tokenizer, and whether it adds bos where the file does not say.
pub(super) fn build(metadata: &Metadata, tokens: &[&str]) -> Result<(tokenizers::Tokenizer, bool)> {
    let pre = pre_of(metadata)?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(tokens), merges(metadata, tokens)?)
        .ignore_merges(pre.whole_pieces)
        .build()
        .map_err(foreign)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for &cut in pre.cuts {
        let pattern = SplitPattern::Regex(cut.to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(foreign)?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(ByteLevel::default()));
    if pre.composes {
        inner.with_normalizer(Some(NFC)).map_err(foreign)?;
    }
    Ok((inner, pre.adds_bos))
}

/// The name of a tokenizer that cuts texts by these patterns, one after the other.
pub(in crate::generate) fn name_of_cuts(cuts: &[&str], composes: bool, whole_pieces: bool) -> Option<&'static str> {
    let same = |pre: &&Pre| (pre.cuts, pre.composes, pre.whole_pieces) == (cuts, composes, whole_pieces);
    KNOWN.iter().find(same).map(|pre| pre.names[0])
}

fn pre_of(metadata: &Metadata) -> Result<&'static Pre> {
    let name = metadata.text("tokenizer.ggml.pre").context(
        "tokenizer.ggml.pre is missing: the file does not say how its tokenizer cuts text; convert the model again, or use its Hugging Face directory instead",
    )?;
    let Some(pre) = KNOWN.iter().find(|pre| pre.names.contains(&name)) else {
        let known: Vec<_> = KNOWN.iter().flat_map(|pre| pre.names).copied().collect();
        bail!(
            "tokenizer.ggml.pre '{name}' is not known (known: {}); use the model's Hugging Face directory instead",
            known.join(", ")
        );
    };
    Ok(pre)
}

fn merges(metadata: &Metadata, tokens: &[&str]) -> Result<Vec<(String, String)>> {
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
    Ok(merges)
}
