//! The tokens that a text may go on with.

use anyhow::{Result, anyhow, ensure};
use llguidance::Matcher as State;
use llguidance::toktrie::SimpleVob;

/// The tokens that may come next.
pub struct Allowed(Tokens);

enum Tokens {
    Only(SimpleVob),
    But(Vec<u32>),
}

impl Allowed {
    pub(super) fn of(state: &mut State) -> Result<Allowed> {
        let allowed = state.compute_mask_or_eos().map_err(|error| anyhow!("the grammar: {error:#}"))?;
        ensure!(!allowed.is_zero(), "the grammar allows no token of this model here: change the grammar");
        Ok(Allowed::only(allowed))
    }

    pub(super) fn only(tokens: SimpleVob) -> Allowed {
        Allowed(Tokens::Only(tokens))
    }

    pub(super) fn but(tokens: Vec<u32>) -> Allowed {
        Allowed(Tokens::But(tokens))
    }

    /// Whether all tokens are.
    pub fn is_all(&self) -> bool {
        matches!(&self.0, Tokens::But(tokens) if tokens.is_empty())
    }

    /// Whether a token is one of them.
    pub fn has(&self, token: usize) -> bool {
        match &self.0 {
            Tokens::Only(tokens) => token < tokens.len() && tokens.get(token),
            Tokens::But(tokens) => !tokens.iter().any(|&other| other as usize == token),
        }
    }

    /// Those of the first `count` tokens that are not.
    pub fn each_other(&self, count: usize, mut other: impl FnMut(usize)) {
        match &self.0 {
            Tokens::Only(_) => (0..count).filter(|&token| !self.has(token)).for_each(other),
            Tokens::But(tokens) => {
                tokens.iter().map(|&token| token as usize).filter(|&token| token < count).for_each(&mut other);
            }
        }
    }

    /// Takes all others from the choice.
    pub fn apply(&self, logits: &mut [f32]) {
        self.each_other(logits.len(), |token| logits[token] = f32::NEG_INFINITY);
    }
}

/// Those tokens and no others.
impl FromIterator<u32> for Allowed {
    fn from_iter<I: IntoIterator<Item = u32>>(tokens: I) -> Allowed {
        let tokens: Vec<u32> = tokens.into_iter().collect();
        let mut allowed = SimpleVob::alloc(tokens.iter().max().map_or(0, |&most| most as usize + 1));
        tokens.into_iter().for_each(|token| allowed.allow_token(token));
        Allowed::only(allowed)
    }
}

/// Goes on with a token that was chosen.
pub(super) fn take(state: &mut State, token: u32) -> Result<()> {
    if state.is_stopped() {
        return Ok(());
    }
    let taken = state.try_consume_tokens(&[token]).map_err(|error| anyhow!("the grammar: {error:#}"))?;
    ensure!(
        taken == 1,
        "no token that the grammar allows can be chosen here: the model or the request suppresses them all"
    );
    Ok(())
}
