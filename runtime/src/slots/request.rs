//! What is asked of a slot.

use crate::sampling::SamplingParameters;

/// A text to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its tokens, at least one.
    pub prompt: Vec<u32>,
    /// How the next ones are chosen.
    pub sampling: SamplingParameters,
    /// Which of several texts after one prompt it is: with the seed and the position it fixes each draw.
    pub choice: u32,
    /// How many more at most.
    pub limit: usize,
    /// Tokens that end it. They are given too.
    pub stops: Vec<u32>,
    /// How many of the likeliest tokens to tell at each place, at most [`MOST_SCORES`](crate::sampling::MOST_SCORES), beside the chosen one; none: nothing.
    pub scores: Option<usize>,
}
