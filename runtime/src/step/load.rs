//! Weights onto the device: all threads pack a piece into page-locked memory, from which it is copied while they pack the next one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use anyhow::{Context, Result};
use fusec::plan::{Format, Plan, Recipe};

use super::io::Slab;
use crate::device::{DeviceBuffer, Gpu, Stream};
use crate::weights::{Checkpoint, dummy_pattern, least_piece, pack_in_pieces};

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum WeightSource<'a> {
    /// A checkpoint's tensors, packed.
    Checkpoint(&'a Checkpoint),
    /// Random weights of the true sizes.
    Dummy,
}

/// Bytes of a piece, at most: it takes threads longer to pack than to start.
const PIECE: usize = 64 << 20;

/// Pieces that are packed or copied.
const PIECES: usize = 3;

/// Device memory for a plan's weights, and what fills it.
pub(super) struct Loading {
    weights: Vec<DeviceBuffer>,
    stream: Stream,
    slabs: VecDeque<Slab>,
    piece: usize,
}

impl Loading {
    /// Allocates all that it takes.
    ///
    /// # Errors
    /// What does not fit.
    pub fn new(gpu: &Gpu, plan: &Plan, source: WeightSource<'_>) -> Result<Loading> {
        let weights = plan.weights.iter().map(|weight| gpu.alloc(weight.bytes, &weight.name)).collect::<Result<_>>()?;
        // Of the largest weight one half is copied while the other is packed.
        let largest = plan.weights.iter().map(|weight| weight.bytes).max().unwrap_or(0);
        let least = plan.weights.iter().map(|weight| least_piece(&weight.recipe)).max().unwrap_or(0);
        let piece = PIECE.min(largest.div_ceil(2)).max(least);
        let count = if matches!(source, WeightSource::Dummy) { 0 } else { PIECES };
        let slabs = (0..count).map(|_| Slab::new(gpu, piece, "weights on their way")).collect::<Result<_>>()?;
        Ok(Loading { weights, stream: gpu.stream()?, slabs, piece })
    }

    /// Fills the memory, and waits until it is filled.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, a fault of the device.
    pub fn fill(&mut self, plan: &Plan, source: WeightSource<'_>) -> Result<()> {
        match source {
            WeightSource::Checkpoint(checkpoint) => self.pack(plan, checkpoint)?,
            WeightSource::Dummy => self.make_up(plan)?,
        }
        self.stream.synchronize()
    }

    /// The weights.
    pub fn weights(self) -> Vec<DeviceBuffer> {
        self.weights
    }

    fn pack(&mut self, plan: &Plan, checkpoint: &Checkpoint) -> Result<()> {
        for (weight, to) in plan.weights.iter().zip(&self.weights) {
            let mut at = 0;
            pack_in_pieces(&weight.recipe, checkpoint, self.piece, &mut |bytes, fill| {
                let mut slab = self.slabs.pop_front().context("a fault of the device has ended it")?;
                slab.wait()?;
                let mut filled = Ok(());
                let sent = slab.send(
                    &self.stream,
                    0,
                    |memory| filled = fill(&mut memory[..bytes]),
                    |memory| self.stream.upload(to, at, memory, 0, bytes),
                );
                self.slabs.push_back(slab);
                at += bytes;
                filled.and(sent)
            })?;
        }
        Ok(())
    }

    fn make_up(&self, plan: &Plan) -> Result<()> {
        let mut patterns: BTreeMap<Format, Vec<u8>> = BTreeMap::new();
        for (weight, to) in plan.weights.iter().zip(&self.weights) {
            if let Recipe::Tiles { format, .. } | Recipe::Experts { format, .. } = weight.recipe {
                if let Entry::Vacant(entry) = patterns.entry(format) {
                    entry.insert(dummy_pattern(format)?);
                }
                self.repeat(to, &patterns[&format])?;
            } else {
                to.upload(0, bytemuck::cast_slice(&vec![1f32; weight.bytes / 4]))?;
            }
        }
        Ok(())
    }

    /// Fills a buffer with `pattern`, again and again, by copies on the device of what is there already.
    fn repeat(&self, buffer: &DeviceBuffer, pattern: &[u8]) -> Result<()> {
        let mut filled = pattern.len().min(buffer.len());
        buffer.upload(0, &pattern[..filled])?;
        while filled < buffer.len() {
            let len = filled.min(buffer.len() - filled);
            self.stream.copy(buffer, filled, buffer, 0, len)?;
            filled += len;
        }
        Ok(())
    }
}

/// What `work` gives, in a thread of its own if the system starts one, and what `rest` gives meanwhile.
///
/// # Errors
/// That of `work`, else that of `rest`.
pub(super) fn beside<T: Send, U>(
    work: impl FnOnce() -> Result<T> + Send,
    rest: impl FnOnce() -> Result<U>,
) -> Result<(T, U)> {
    let work = Mutex::new(Some(work));
    let once = || {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work())
    };
    let (done, rest) = std::thread::scope(|scope| {
        let thread = Builder::new().name("weights".into()).spawn_scoped(scope, once).ok();
        let rest = rest();
        let done = thread.map_or_else(once, |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        (done, rest)
    });
    Ok((done.context("it is done once")??, rest?))
}
