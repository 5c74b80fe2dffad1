//! What must hold of a prompt before it runs, and of logits before a token is chosen from them.

use anyhow::{Result, bail, ensure};

/// Checks that a prompt can be run in a context of that many positions.
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

/// Checks that a token can be chosen from the logits that follow the token at `position`: after what takes tokens from the choice, which have -inf
/// then, whatever the model gave them, and after biases and penalties.
///
/// # Errors
/// NaN or +inf ([`not_finite`]), or nothing but -inf ([`none_left`]).
pub fn check_logits(logits: &[f32], position: usize) -> Result<()> {
    let broken = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY);
    match broken {
        Some(token) => bail!("{}", not_finite(position, Some((token, logits[token])))),
        None if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) => bail!("{}", none_left(position)),
        None => Ok(()),
    }
}

/// The error for logits of which one is NaN or +inf; `broken`: one of them, where it is known.
pub fn not_finite(position: usize, broken: Option<(usize, f32)>) -> String {
    let which = broken.map_or(String::new(), |(token, logit)| format!(" (token {token} has {logit})"));
    format!(
        "the logits at position {position} are not finite{which}: the weights or their type are at fault. Download the model again, or \
         take it in another type"
    )
}

/// The error for logits that are all -inf.
pub fn none_left(position: usize) -> String {
    format!(
        "no token is left to choose at position {position}: the request and its grammar suppress all that the model gives a chance. Suppress \
         fewer; where they suppress none, the weights or their type are at fault"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_must_leave_a_choice() {
        const INF: f32 = f32::INFINITY;
        let said = |logits: &[f32]| check_logits(logits, 7).map_err(|error| error.to_string());
        assert_eq!(said(&[0.0, -INF, 3.0]), Ok(()));
        let rest = "the weights or their type are at fault. Download the model again, or take it in another type";
        assert_eq!(
            said(&[0.0, f32::NAN, 3.0]),
            Err(format!("the logits at position 7 are not finite (token 1 has NaN): {rest}"))
        );
        assert_eq!(
            said(&[0.0, 2.0, INF]),
            Err(format!("the logits at position 7 are not finite (token 2 has inf): {rest}"))
        );
        let none = said(&[-INF, -INF]).expect_err("nothing is left");
        assert!(none.starts_with("no token is left to choose at position 7: "), "{none}");
        assert!(said(&[-INF, f32::NAN]).is_err_and(|error| error.contains("not finite")), "NaN is the worse fault");
    }
}
