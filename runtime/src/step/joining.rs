//! Sequences that join and leave between steps: all that they need goes into the stream behind the steps that are there, and nothing waits for those.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fusec::plan::{Replay, StepKind};

use super::addresses::PARAMETER_BYTES;
use super::engine::GpuEngine;
use super::io::{NONE_LEFT, NOT_FINITE, marks_bytes};
use super::parameters::{Pointers, Sequence, record};
use crate::sampling::{MOST_BIASES, Marks, SamplingParameters, Scores};

/// How long the host waits for a token before it asks the driver whether something went wrong.
const PATIENCE: Duration = Duration::from_millis(200);

/// What came of a sequence's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    /// The next token.
    Token(u32),
    /// None: one of them is NaN or +inf, and the sequence takes no more steps.
    NotFinite,
    /// None: they are all -inf, and the sequence takes no more steps.
    NoneLeft,
}

/// What says how a sequence is sampled: marks and biases with their place in the buffer of those, where it has some, and its record.
pub(super) struct SetUp {
    pub marks: Option<(usize, Vec<u8>)>,
    pub record: [u8; PARAMETER_BYTES],
}

impl GpuEngine {
    /// Sequences that are decoded together, at most.
    pub fn sequences(&self) -> usize {
        self.options.sequences
    }

    /// Rows of the smallest decode step for so many sequences.
    ///
    /// # Errors
    /// None was compiled and loaded.
    pub fn batch_for(&self, sequences: usize) -> Result<usize> {
        let batches = self
            .graphs
            .keys()
            .filter_map(|kind| if let StepKind::Decode { batch } = kind { Some(*batch) } else { None });
        batches.filter(|&batch| batch >= sequences).min().filter(|_| sequences > 0).with_context(|| {
            format!("{sequences} sequences at once; this model was compiled and loaded for up to {}", self.sequences())
        })
    }

    /// Whether a sequence may go on from any part of another one's states.
    pub fn resumes(&self) -> bool {
        self.plan.states.iter().all(|state| state.replay == Replay::Same)
    }

    /// Rows of the largest chunk of a prompt.
    pub fn chunk_rows(&self) -> usize {
        super::io::chunk_rows(&self.plan)
    }

    /// Makes all sequences idle, and forgets their tokens. Waits for what is running.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn idle_all(&mut self) -> Result<()> {
        self.set_rows(&vec![(0, None); self.options.sequences])?;
        for sequence in 0..self.options.sequences {
            self.stream.fill(&self.io.parameters, sequence * PARAMETER_BYTES, PARAMETER_BYTES, 0)?;
        }
        self.stream.synchronize()?;
        self.io.clear_ring();
        Ok(())
    }

    /// Sets up an idle sequence for a text whose first `position` tokens its states hold. `prompt` is what its marks are made of. Waits only where the device
    /// has not come to the set-up before this one.
    ///
    /// # Errors
    /// Parameters that suppress the whole vocabulary, too many biases, or a fault of the device.
    pub fn join(
        &mut self,
        sequence: usize,
        position: usize,
        prompt: &[u32],
        sampling: &SamplingParameters,
        rest: &Sequence<'_>,
    ) -> Result<()> {
        if position == 0 {
            self.begin(sequence)?;
        }
        let set_up = self.set_up(sequence, prompt, sampling, rest)?;
        if let Some((at, bytes)) = set_up.marks {
            self.send_marks(sequence, at, &bytes)?;
        }
        let slab = &mut self.slabs[sequence].record;
        slab.wait()?;
        let at = sequence * PARAMETER_BYTES;
        let copy = |memory: &_| self.stream.upload(&self.io.parameters, at, memory, 0, PARAMETER_BYTES);
        slab.send(&self.stream, 0, |to| to.copy_from_slice(&set_up.record), copy)
    }

    /// Puts other marks in the place of those that a sequence joined with: what is in the stream is done first. Its biases stay.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn mark(&mut self, sequence: usize, marks: &Marks) -> Result<()> {
        self.send_marks(sequence, sequence * marks_bytes(&self.plan), bytemuck::cast_slice(marks.words()))
    }

    fn send_marks(&mut self, sequence: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let slab = &mut self.slabs[sequence].marks;
        slab.wait()?;
        let copy = |memory: &_| self.stream.upload(&self.io.marks, at, memory, 0, bytes.len());
        slab.send(&self.stream, 0, |to| to[..bytes.len()].copy_from_slice(bytes), copy)
    }

    /// What says how a sequence is sampled, as the device reads it.
    pub(super) fn set_up(
        &self,
        sequence: usize,
        prompt: &[u32],
        sampling: &SamplingParameters,
        rest: &Sequence<'_>,
    ) -> Result<SetUp> {
        let vocabulary = self.plan.vocabulary;
        let mut pointers = Pointers::default();
        let mut laid_out = None;
        if let Some(marks) =
            rest.marks.cloned().map_or_else(|| Marks::new(sampling, prompt, vocabulary), |marks| Ok(Some(marks)))?
        {
            let count = marks.biases().len();
            ensure!(count <= MOST_BIASES, "{count} tokens have a bias; give {MOST_BIASES} at most");
            let at = sequence * marks_bytes(&self.plan);
            let mut bytes: Vec<u8> = bytemuck::cast_slice(marks.words()).to_vec();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            (pointers.marks, pointers.biases, pointers.bias_count) =
                (self.io.marks.at(at), self.io.marks.at(at + bytes.len()), count);
            for (token, bias) in marks.biases() {
                bytes.extend(token.to_ne_bytes().into_iter().chain(bias.to_ne_bytes()));
            }
            laid_out = Some((at, bytes));
            if rest.scored.is_some() {
                pointers.raw = self.io.raw(sequence, vocabulary);
            }
        }
        let scored = rest.scored.map(|top| top.min(vocabulary));
        if scored.is_some() {
            pointers.scores = self.io.scores(sequence);
        }
        Ok(SetUp { marks: laid_out, record: record(sampling, &Sequence { scored, ..*rest }, &pointers) })
    }

    /// Puts tokens of a sequence's prompt into its states, the first at `position`; at most [`GpuEngine::chunk_rows`]. `last`: they end the prompt, and the
    /// sequence has its next token then and a row in each decode step that follows. Gives how long such a chunk takes of the device, as far as is known.
    ///
    /// Waits only where two chunks are in the stream already.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn read_chunk(&mut self, sequence: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
        let sizes = self.prompt_sizes();
        let rows = sizes.into_iter().filter(|&rows| rows >= tokens.len()).min();
        let rows = rows.with_context(|| format!("a chunk of {} tokens is larger than any step", tokens.len()))?;
        self.send_chunk(rows, sequence, position, tokens, last)?;
        Ok(self.chunk_times.get(&rows).copied().unwrap_or_default())
    }

    /// Rows of the largest chunk that takes the device no longer than `most`, or of the smallest. Chunks are timed at the first call, of idle rows; it waits for what is
    /// running.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn rows_within(&mut self, most: Duration) -> Result<usize> {
        let mut sizes = self.prompt_sizes();
        sizes.sort_unstable();
        while let Some(rows) = sizes.pop() {
            if !self.chunk_times.contains_key(&rows) {
                // The first run warms up.
                for _ in 0..2 {
                    self.send_chunk(rows, 0, 0, &[], false)?;
                }
                for slab in &mut self.chunk_slabs {
                    self.chunk_times.extend(slab.wait()?);
                }
            }
            if sizes.is_empty() || self.chunk_times.get(&rows).is_none_or(|time| *time <= most) {
                return Ok(rows);
            }
        }
        Ok(self.chunk_rows())
    }

    /// Puts a chunk of a number of rows into the stream, those of its tokens last.
    fn send_chunk(&mut self, rows: usize, sequence: usize, position: usize, tokens: &[u32], last: bool) -> Result<()> {
        let part = self.io.prompt.len() / 3;
        let mut slab = self.chunk_slabs.pop_front().context("a fault of the device has ended it")?;
        if let Some((rows, took)) = slab.wait()? {
            self.chunk_times.insert(rows, took);
        }
        let idle = rows - tokens.len();
        let words = |at: usize, row: usize| match (at, row.checked_sub(idle)) {
            (2, _) => sequence as i32,
            (0, Some(row)) => tokens[row] as i32,
            (1, Some(row)) => (position + row) as i32,
            _ => -1,
        };
        let fill = |to: &mut [u8]| {
            for (at, to) in to.chunks_exact_mut(part.max(1)).enumerate() {
                for (row, to) in to.chunks_exact_mut(4).take(rows).enumerate() {
                    to.copy_from_slice(&words(at, row).to_ne_bytes());
                }
            }
        };
        let sent = slab.send(&self.stream, rows, fill, |memory| {
            self.stream.upload(&self.io.prompt, 0, memory, 0, 3 * part)?;
            self.replay(StepKind::Prompt { rows })?;
            if last { self.replay(StepKind::Last { rows }) } else { Ok(()) }
        });
        self.chunk_slabs.push_back(slab);
        sent
    }

    /// Puts a decode step of `batch` rows into the stream; `near`: of one whose rows all stand at positions up to this one.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn decode(&self, batch: usize, near: Option<usize>) -> Result<()> {
        self.replay(self.decode_kind(batch, near))
    }

    pub(super) fn decode_kind(&self, batch: usize, near: Option<usize>) -> StepKind {
        near.map_or(StepKind::Decode { batch }, |position| self.plan.decode_at(batch, position))
    }

    /// Waits for the token that a sequence of this generation has at a position: each is given once.
    ///
    /// # Errors
    /// A fault of the device, or one that is idle and has not made it.
    pub fn await_token(&self, sequence: usize, position: usize, generation: u32) -> Result<Sampled> {
        let mut asked = Instant::now();
        loop {
            if let Some(sampled) = self.arrived(sequence, position, generation) {
                return Ok(sampled);
            }
            if asked.elapsed() > PATIENCE {
                if self.stream.query()? {
                    // What the device did last may have come between.
                    return self.arrived(sequence, position, generation).with_context(|| {
                        format!("the device is idle and made no token for sequence {sequence} at position {position}")
                    });
                }
                asked = Instant::now();
            }
            std::hint::spin_loop();
        }
    }

    /// The token that [`GpuEngine::await_token`] waits for, if it is there.
    pub fn arrived(&self, sequence: usize, position: usize, generation: u32) -> Option<Sampled> {
        let token = self.io.take_token(sequence, position, generation)?;
        Some(match token {
            NOT_FINITE => Sampled::NotFinite,
            NONE_LEFT => Sampled::NoneLeft,
            token => Sampled::Token(token),
        })
    }

    /// How likely the token was that was taken out of the ring last, of a sequence that was set up for that and its position.
    pub fn scores(&self, sequence: usize, position: usize) -> Scores {
        self.io.scores_of(sequence, position)
    }

    /// Makes a sequence idle behind the steps that are in the stream. Their tokens of it stay in the ring, below its generation.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn part(&self, sequence: usize) -> Result<()> {
        ensure!(sequence < self.options.sequences, "there is no sequence {sequence}");
        // All bits of -1 are set.
        self.stream.fill(&self.io.positions, 4 * sequence, 4, 0xff)?;
        // An idle row is greedy and has no marks: it costs least.
        self.stream.fill(&self.io.parameters, sequence * PARAMETER_BYTES, PARAMETER_BYTES, 0)
    }
}
