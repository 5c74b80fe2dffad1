//! SentencePiece's BPE (`tokenizer.ggml.model` "llama"), as Llama 2, Mistral, Phi-3 and Gemma have it.

use super::vocabulary::{Kinds, foreign, kind, vocabulary};
use crate::weights::gguf::{Metadata, Value};
use anyhow::{Context, Result, bail, ensure};
use tokenizers::AddedToken;
use tokenizers::decoders::{
    DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip,
};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};

/// SentencePiece's mark of a space.
const SPACE_MARK: &str = "▁";

/// Builds the tokenizer: merges are ranked by the score of what they make, unknown characters fall back to bytes, and a text that begins, or goes on
/// after a special token, gets a space before it unless the file says otherwise.
pub(super) fn build(metadata: &Metadata, tokens: &[&str], kinds: &Kinds<'_>) -> Result<tokenizers::Tokenizer> {
    refuse_normalizers(metadata)?;
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocabulary(tokens), merges(metadata, tokens, kinds)?)
        .byte_fallback(true)
        .fuse_unk(true);
    let unknown = metadata.unsigned("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    if let Some(token) = usize::try_from(unknown).ok().and_then(|index| tokens.get(index)) {
        bpe = bpe.unk_token((*token).to_owned());
    }
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(foreign)?);
    let prefix = adds_prefix(metadata);
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

/// How a user-defined token is found in a text before any merge; `None` where only merges make it.
///
/// One that is spelled with marks of spaces is looked for after spaces have become marks. Where a text gets a space of its own, looking for it
/// would give that space to the token too.
pub(super) fn user_defined(metadata: &Metadata, token: &str) -> Option<AddedToken> {
    let marked = token.contains(SPACE_MARK);
    (!marked || !adds_prefix(metadata)).then(|| AddedToken::from(token, false).normalized(marked))
}

/// Whether the white space after a special token belongs to it. Phi-3's tokenizer.json says so of all but three; GGUF has no key for it.
pub(super) fn swallows_space(metadata: &Metadata, token: &str) -> bool {
    metadata.text("general.architecture") == Some("phi3") && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}

fn adds_prefix(metadata: &Metadata) -> bool {
    metadata.boolean("tokenizer.ggml.add_space_prefix").unwrap_or(true)
}

/// Every way to put a normal token together from two, best score first.
fn merges(metadata: &Metadata, tokens: &[&str], kinds: &Kinds<'_>) -> Result<Vec<(String, String)>> {
    let scores = metadata.list("tokenizer.ggml.scores").context("tokenizer.ggml.scores is missing")?;
    ensure!(scores.len() == tokens.len(), "{} tokens have {} scores", tokens.len(), scores.len());
    let vocabulary = vocabulary(tokens);
    let mut merges = Vec::new();
    for (index, (token, score)) in tokens.iter().zip(scores).enumerate() {
        let Value::Float(score) = score else { bail!("tokenizer.ggml.scores are not floats") };
        if !matches!(kinds.of(index), kind::NORMAL | kind::USER_DEFINED) {
            continue;
        }
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
    Ok(merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect())
}

/// Refuses what would change a text before it is cut.
fn refuse_normalizers(metadata: &Metadata) -> Result<()> {
    let rewrites = metadata.list("tokenizer.ggml.precompiled_charsmap").is_some_and(|map| !map.is_empty());
    let trims = metadata.boolean("tokenizer.ggml.remove_extra_whitespaces") == Some(true);
    for (key, set) in [("precompiled_charsmap", rewrites), ("remove_extra_whitespaces", trims)] {
        ensure!(
            !set,
            "tokenizer.ggml.{key} is set: tokenizers that rewrite the text are not read from GGUF; use the model's Hugging Face directory instead"
        );
    }
    Ok(())
}
