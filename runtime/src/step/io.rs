//! The buffers through which host and device talk, and page-locked memory that fills them while the device works.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use fusec::plan::{Plan, RING, SCORES_RING, StepKind};

use super::addresses::{IoAddresses, PARAMETER_BYTES};
use crate::device::{DeviceBuffer, Event, Gpu, PinnedBuffer, Stream};
use crate::sampling::{MOST_BIASES, MOST_SCORES, Scores};

/// What the sampling kernel leaves in the place of a token where a logit is NaN or +inf, and where all are -inf.
pub(super) const NOT_FINITE: u32 = u32::MAX - 1;
pub(super) const NONE_LEFT: u32 = u32::MAX - 2;

/// Bytes of an entry of the ring: a token, then the generation of its sequence.
const ENTRY: usize = 8;

/// Bytes of `struct Scores` in sample.cu.
const SCORES: usize = 24 + 8 * MOST_SCORES;

/// The units of a sum of weights.
const UNIT: f64 = (1u64 << 40) as f64;

/// What a plan's [`Io`](fusec::plan::Io) arguments point into.
pub(super) struct IoBuffers {
    pub tokens: DeviceBuffer,
    pub positions: DeviceBuffer,
    sequences: DeviceBuffer,
    /// Tokens, positions and sequences of a chunk, each as many as the largest has rows.
    pub prompt: DeviceBuffer,
    pub parameters: DeviceBuffer,
    /// Marks of each sequence's tokens, and biases behind them.
    pub marks: DeviceBuffer,
    /// A row of logits of each sequence, for those that have them both changed and told.
    raw: DeviceBuffer,
    /// A ring of scores of each sequence.
    scores: PinnedBuffer,
    ring: PinnedBuffer,
}

impl IoBuffers {
    pub fn new(gpu: &Gpu, plan: &Plan, sequences: usize) -> Result<IoBuffers> {
        let words = |count: usize| gpu.alloc_zeroed(4 * count, "step state");
        let sequence_numbers: Vec<i32> = (0..sequences as i32).collect();
        Ok(IoBuffers {
            tokens: words(sequences)?,
            positions: words(sequences)?,
            sequences: gpu.upload(bytemuck::cast_slice(&sequence_numbers), "step state")?,
            prompt: words(3 * chunk_rows(plan))?,
            parameters: gpu.alloc_zeroed(PARAMETER_BYTES * sequences, "sampling parameters")?,
            marks: gpu.alloc_zeroed(marks_bytes(plan) * sequences, "marks of tokens")?,
            raw: words(plan.vocabulary * sequences)?,
            scores: gpu.alloc_pinned(SCORES * SCORES_RING * sequences, "scores of tokens")?,
            ring: gpu.alloc_pinned(ENTRY * RING * sequences, "the token ring")?,
        })
    }

    pub fn addresses(&self) -> IoAddresses {
        let part = self.prompt.len() / 3;
        IoAddresses {
            tokens: self.tokens.pointer(),
            positions: self.positions.pointer(),
            sequences: self.sequences.pointer(),
            prompt_tokens: self.prompt.pointer(),
            prompt_positions: self.prompt.at(part),
            prompt_sequences: self.prompt.at(2 * part),
            parameters: self.parameters.pointer(),
            ring: self.ring.pointer(),
        }
    }

    /// The address of a row of logits of a sequence.
    pub fn raw(&self, sequence: usize, vocabulary: usize) -> u64 {
        self.raw.at(4 * vocabulary * sequence)
    }

    /// The address of the ring of scores of a sequence.
    pub fn scores(&self, sequence: usize) -> u64 {
        self.scores.pointer() + (SCORES * SCORES_RING * sequence) as u64
    }

    /// The scores of the token of a sequence that asked for them at a position, once that was taken.
    pub fn scores_of(&self, sequence: usize, position: usize) -> Scores {
        let ring = &self.scores;
        let at = SCORES * (sequence * SCORES_RING + position % SCORES_RING);
        let float = |offset: usize| f32::from_bits(ring.load_u32(at + offset));
        let sum = ring.load_u64(at) as f64 / UNIT;
        let count = (ring.load_u32(at + 16) as usize).min(MOST_SCORES);
        let top = (0..count).map(|index| (ring.load_u32(at + 24 + 8 * index), float(28 + 8 * index)));
        Scores::of_logits(float(8), sum, float(12), top)
    }

    /// The token that a sequence of this generation has at a position, taken out of the ring; none: it is not there yet.
    pub fn take_token(&self, sequence: usize, position: usize, generation: u32) -> Option<u32> {
        let at = ENTRY * (sequence * RING + position % RING);
        let entry = self.ring.load_u64(at);
        let (token, of) = (entry as u32, (entry >> 32) as u32);
        (of == generation).then(|| {
            self.ring.store_u32(at + 4, 0);
            token
        })
    }

    /// Takes everything out of the ring. No step may be running.
    pub fn clear_ring(&self) {
        (0..self.ring.len() / ENTRY).for_each(|entry| self.ring.store_u32(ENTRY * entry + 4, 0));
    }
}

/// Bytes of a sequence's marks, and of its biases behind them.
pub(super) fn marks_bytes(plan: &Plan) -> usize {
    (2 * plan.vocabulary).next_multiple_of(8) + 8 * MOST_BIASES
}

/// Bytes of the GPU's memory that the sampling of so many sequences needs.
pub(super) fn sampling_bytes(plan: &Plan, sequences: usize) -> usize {
    (marks_bytes(plan) + 4 * plan.vocabulary).saturating_mul(sequences)
}

/// Rows of the largest chunk of a prompt.
pub(super) fn chunk_rows(plan: &Plan) -> usize {
    let rows = |kind| if let StepKind::Prompt { rows } = kind { rows } else { 0 };
    plan.steps.iter().map(|step| rows(step.kind)).max().unwrap_or(0)
}

/// Page-locked memory that the device copies from when it comes to it. Its next contents wait for that.
pub(super) struct Slab {
    memory: PinnedBuffer,
    begun: Event,
    done: Event,
    /// What the device does with the contents, once it has some: a key for whoever measures it.
    used: Option<usize>,
}

/// The page-locked memory from which one sequence is set up.
pub(super) struct SequenceSlabs {
    pub record: Slab,
    pub marks: Slab,
}

/// Chunks of prompts in the stream that the device is not done with, at most: a request can leave before the others go in.
const CHUNKS_AHEAD: usize = 2;

impl SequenceSlabs {
    /// Those of so many sequences.
    pub fn all(gpu: &Gpu, plan: &Plan, sequences: usize) -> Result<Vec<SequenceSlabs>> {
        let of_one = |_| {
            Ok(SequenceSlabs {
                record: Slab::new(gpu, PARAMETER_BYTES, "sampling parameters")?,
                marks: Slab::new(gpu, marks_bytes(plan), "marks of tokens")?,
            })
        };
        (0..sequences).map(of_one).collect()
    }
}

impl Slab {
    /// Those of the chunks of prompts that are in the stream.
    pub fn of_chunks(gpu: &Gpu, plan: &Plan) -> Result<VecDeque<Slab>> {
        (0..CHUNKS_AHEAD).map(|_| Slab::new(gpu, 12 * chunk_rows(plan), "a chunk of a prompt")).collect()
    }

    pub fn new(gpu: &Gpu, bytes: usize, what: &str) -> Result<Slab> {
        Ok(Slab { memory: gpu.alloc_pinned(bytes, what)?, begun: gpu.event()?, done: gpu.event()?, used: None })
    }

    /// Waits until the device is done with the contents. What it did with them, and how long that took.
    pub fn wait(&mut self) -> Result<Option<(usize, Duration)>> {
        let Some(key) = self.used.take() else { return Ok(None) };
        self.done.synchronize()?;
        let milliseconds = f64::from(self.done.elapsed_ms_since(&self.begun)?);
        Ok(Some((key, Duration::from_secs_f64(milliseconds.max(0.0) / 1e3))))
    }

    /// Fills it with bytes, and has the device do `work` with them in stream order. [`Slab::wait`] comes before.
    pub fn send(
        &mut self,
        stream: &Stream,
        key: usize,
        fill: impl FnOnce(&mut [u8]),
        work: impl FnOnce(&PinnedBuffer) -> Result<()>,
    ) -> Result<()> {
        fill(self.memory.bytes_mut());
        // Also where the work fails halfway: a copy may be under way.
        self.used = Some(key);
        stream.record(&self.begun)?;
        let worked = work(&self.memory);
        stream.record(&self.done)?;
        worked
    }
}
