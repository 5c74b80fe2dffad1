//! The buffers through which host and device talk, and page-locked memory that fills them while the device works.

use std::cell::OnceCell;
use std::time::Duration;

use anyhow::{Context, Result};
use fusec::plan::{Plan, RING, StepKind};

use super::addresses::{IoAddresses, PARAMETER_BYTES};
use crate::device::{DeviceBuffer, Event, Gpu, PinnedBuffer, Stream};

/// What the sampling kernel leaves in the place of a token where the logits are not finite.
pub(super) const NOT_FINITE: u32 = u32::MAX - 1;

/// Bytes of an entry of the ring: a token, then the generation of its sequence.
const ENTRY: usize = 8;

/// What a plan's [`Io`](fusec::plan::Io) arguments point into.
pub(super) struct IoBuffers {
    pub tokens: DeviceBuffer,
    pub positions: DeviceBuffer,
    sequences: DeviceBuffer,
    /// Tokens, positions and sequences of a chunk, each as many as the largest has rows.
    pub prompt: DeviceBuffer,
    pub parameters: DeviceBuffer,
    /// Marks of each sequence's tokens, once parameters have asked for them.
    marks: OnceCell<DeviceBuffer>,
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
            marks: OnceCell::new(),
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

    /// The marks of all sequences, `bytes` each.
    pub fn marks(&self, gpu: &Gpu, bytes: usize) -> Result<&DeviceBuffer> {
        if self.marks.get().is_none() {
            let sequences = self.tokens.len() / 4;
            self.marks.set(gpu.alloc_zeroed(bytes * sequences, "marks of tokens")?).ok();
        }
        self.marks.get().context("the marks were allocated")
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
    /// Once parameters have asked for them.
    pub marks: Option<Slab>,
}

impl Slab {
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
