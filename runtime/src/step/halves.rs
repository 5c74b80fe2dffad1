//! A decode step as two graphs: one computes logits, the other chooses from them. What is chosen by may come from the host between them, while the device computes.

use anyhow::{Context, Result};
use fusec::plan::{Arg, Io, Launch, StepKind};

use super::engine::{GpuEngine, Halves};

impl GpuEngine {
    /// Puts the part of a decode step that computes logits into the stream; `near` as of [`GpuEngine::decode`]. What [`GpuEngine::choose`] is to be given.
    ///
    /// It reads the rows' tokens and positions and moves none on: where nothing is chosen after it, and states may be computed again, it can be run again.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn forward(&mut self, batch: usize, near: Option<usize>) -> Result<StepKind> {
        let kind = self.decode_kind(batch, near);
        if !self.halves.contains_key(&kind) {
            let halves = self.capture_halves(kind)?;
            self.halves.insert(kind, halves);
        }
        self.stream.replay(&self.halves_of(kind)?.forward)?;
        self.stream.record(&self.has_logits)?;
        Ok(kind)
    }

    /// Whether the device has come to the end of the latest [`GpuEngine::forward`].
    ///
    /// # Errors
    /// A fault of the device.
    pub fn has_logits(&self) -> Result<bool> {
        self.has_logits.query()
    }

    /// Puts the rest of a step into the stream: each row's next token from its logits.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn choose(&self, kind: StepKind) -> Result<()> {
        self.stream.replay(&self.halves_of(kind)?.choose)
    }

    /// Makes a sequence idle for what comes into the stream until it goes on.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn hold(&self, sequence: usize) -> Result<()> {
        self.stream.set_word(&self.io.positions, 4 * sequence, u32::MAX)
    }

    /// Has a sequence that was held go on from where it was.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn go_on(&self, sequence: usize, position: usize) -> Result<()> {
        let position = u32::try_from(position).context("a position is a 32-bit number")?;
        self.stream.set_word(&self.io.positions, 4 * sequence, position)
    }

    fn halves_of(&self, kind: StepKind) -> Result<&Halves> {
        self.halves.get(&kind).with_context(|| format!("the {kind:?} step was not captured in halves"))
    }

    fn capture_halves(&self, kind: StepKind) -> Result<Halves> {
        let launches = &self.step(kind)?.launches;
        let chooses = |launch: &Launch| launch.args.iter().any(|arg| matches!(arg, Arg::Io(Io::Ring, _)));
        let at = launches.iter().position(chooses).with_context(|| format!("the {kind:?} step chooses nothing"))?;
        let (forward, choose) = launches.split_at(at);
        let captured = |launches: &[Launch]| {
            let graph = self.stream.capture(|stream| self.enqueue(stream, kind, launches, true))?;
            graph.instantiate(&self.stream)
        };
        Ok(Halves { forward: captured(forward)?, choose: captured(choose)? })
    }
}
