//! Text to tokens and back: the tokenizer, the chat template, how the next token is chosen and when to stop.

pub mod chat;
pub mod defaults;
pub mod sampling;
pub mod stops;
pub mod tokenizer;

use anyhow::{Result, bail, ensure};

/// Checks that a prompt can be run in a context of so many positions.
///
/// # Errors
/// No tokens, more than the context holds, or a token beyond the vocabulary.
pub fn check_prompt(tokens: &[u32], vocabulary: usize, context: usize) -> Result<()> {
    ensure!(!tokens.is_empty(), "the prompt is empty: give one token at least");
    ensure!(
        tokens.len() <= context,
        "the prompt has {} tokens and the context holds {context}; shorten it or raise --max-context",
        tokens.len()
    );
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        bail!("token {token} is not below the vocabulary's size, {vocabulary}");
    }
    Ok(())
}
