//! The parameters of a sequence for the sampling kernel.

use super::addresses::PARAMETER_BYTES;
use crate::sampling::{Marks, SamplingParameters};

/// Tokens that may end a sequence on the device; the host watches for any more.
pub const MAX_STOPS: usize = 8;

/// What a record says of a sequence beside its sampling parameters. The default is that of a sequence of no request, without an end.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// The first position that takes no further step.
    pub limit: usize,
    /// Tokens that end it.
    pub stops: &'a [u32],
    /// Which of several texts after one prompt it is: with the seed and the position it fixes each draw.
    pub choice: u32,
    /// Tells its tokens in the ring from those of the sequences before it in its slot. 0: nobody reads them.
    pub generation: u32,
    /// How many of the likeliest tokens to tell at each place beside the chosen one; none: nothing.
    pub scored: Option<usize>,
    /// Its marks, where they are not those that its parameters make of its prompt.
    pub marks: Option<&'a Marks>,
}

impl Default for Sequence<'_> {
    fn default() -> Self {
        Sequence { limit: usize::MAX, stops: &[], choice: 0, generation: 0, scored: None, marks: None }
    }
}

/// Where on the device is what a record points to; 0 for what the sequence has not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pointers {
    /// Its [`Marks`](crate::sampling::Marks), a word per token: its logits are changed by them.
    pub marks: u64,
    /// Pairs of a token and what is added to its logit.
    pub biases: u64,
    /// How many pairs.
    pub bias_count: usize,
    /// Its ring of scores.
    pub scores: u64,
    /// Room for a row of logits, where they are both changed and told.
    pub raw: u64,
}

/// The record of `struct Parameters` in sample.cu.
pub fn record(sampling: &SamplingParameters, sequence: &Sequence<'_>, at: &Pointers) -> [u8; PARAMETER_BYTES] {
    let stops = &sequence.stops[..sequence.stops.len().min(MAX_STOPS)];
    let mut words = [0u32; PARAMETER_BYTES / 4];
    words[0] = sampling.temperature.to_bits();
    words[1] = u32::try_from(sampling.top_k).unwrap_or(u32::MAX);
    words[2] = sampling.top_p.to_bits();
    words[3] = sampling.min_p.to_bits();
    words[4] = sampling.seed as u32;
    words[5] = (sampling.seed >> 32) as u32;
    words[6] = u32::try_from(sequence.limit).unwrap_or(u32::MAX);
    words[7] = stops.len() as u32;
    words[8..8 + stops.len()].copy_from_slice(stops);
    for (word, pointer) in [(16, at.marks), (24, at.biases), (26, at.scores), (30, at.raw)] {
        words[word] = pointer as u32;
        words[word + 1] = (pointer >> 32) as u32;
    }
    words[18] = sampling.repetition_penalty.to_bits();
    words[19] = sequence.choice;
    words[20] = sequence.generation;
    words[21] = sampling.frequency_penalty.to_bits();
    words[22] = sampling.presence_penalty.to_bits();
    words[23] = at.bias_count as u32;
    words[28] = sequence.scored.unwrap_or(0) as u32;
    let mut bytes = [0; PARAMETER_BYTES];
    bytes.copy_from_slice(bytemuck::cast_slice(&words));
    bytes
}
