//! What slots ask of a device.

use std::time::Duration;

use anyhow::Result;

use super::request::Request;
use crate::sampling::Scores;

/// A device with a number of slots. Each holds one sequence: its states, where it stands, and how its next token is chosen.
pub trait Steps {
    /// What it has room for.
    fn limits(&self) -> Limits;

    /// How many of the `left` tokens of a prompt to take at once, at least 1. `beside`: other slots wait for their next tokens meanwhile.
    fn part(&self, left: usize, beside: bool) -> usize;

    /// Whether the end of a slot's prompt is better read later: something that its first token is chosen by is being worked out.
    fn is_waiting(&mut self, _slot: usize) -> bool {
        false
    }

    /// Makes a slot ready for a request whose first `position` tokens its states hold already.
    ///
    /// # Errors
    /// A fault of the device.
    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()>;

    /// Takes tokens of the prompt, the first at `position`. `last`: they end the prompt, and the slot decodes from then on. Gives the time that this takes
    /// of the device.
    ///
    /// # Errors
    /// A fault of the device.
    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration>;

    /// Goes on with every slot that decodes, and gives `take` each token that has become known, in the order of its sequence. Steps may be in flight
    /// when it returns. Gives the time that a step takes of the device.
    ///
    /// # Errors
    /// A fault of the device.
    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration>;

    /// Stops a slot that has begun. No token of it is given after this.
    ///
    /// # Errors
    /// A fault of the device.
    fn leave(&mut self, slot: usize) -> Result<()>;
}

/// What a device has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences side by side.
    pub slots: usize,
    /// Positions of each.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Whether a sequence may go on from any part of another one's states ([`fusec::plan::Replay::Same`] of all of them).
    pub resumes: bool,
}

/// What came of a slot's logits.
#[derive(Clone, Debug, PartialEq)]
pub enum Chosen {
    /// How likely the token is that comes right after this, where the request asks for that.
    Scores(Scores),
    /// The next token.
    Token(u32),
    /// None: the sequence cannot go on, as the message says: its logits leave no choice, or its grammar is at an end.
    Broken(String),
}

impl<S: Steps + ?Sized> Steps for Box<S> {
    fn limits(&self) -> Limits {
        (**self).limits()
    }

    fn part(&self, left: usize, beside: bool) -> usize {
        (**self).part(left, beside)
    }

    fn is_waiting(&mut self, slot: usize) -> bool {
        (**self).is_waiting(slot)
    }

    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()> {
        (**self).begin(slot, position, request)
    }

    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
        (**self).prompt(slot, position, tokens, last)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        (**self).step(take)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        (**self).leave(slot)
    }
}
