//! Slots on the GPU: steps are put into its stream ahead of the host, which reads their tokens as they come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use fusec::plan::StepKind;

use super::guide::Guide;
use crate::sampling::{Marks, none_left, not_finite};
use crate::slots::{BESIDE, Chosen, Limits, Request, Steps};
use crate::step::{GpuEngine, Sampled, Sequence};

/// Work that lies ready for the device while the host does something else.
const AHEAD: Duration = Duration::from_millis(2);

/// Decode steps in the stream that the host has not read a token of, at most.
const MOST_AHEAD: usize = 8;

/// How long an idle device waits for what a grammar allows before the others go on: about what it takes to run that row again.
const GRACE: Duration = Duration::from_micros(200);

/// How long the host sleeps where there is nothing to do but to wait for that.
const NAP: Duration = Duration::from_micros(50);

/// A model on a GPU whose sequences are slots.
///
/// One slot takes the fastest step for where it stands. Of several, each step has a row per slot, idle ones included, and the form for any position: what a row
/// computes then does not depend on which others there are.
///
/// Where a text is held to a grammar, a step is put into the stream in two halves: what its tokens are chosen by comes between them, from a thread of each such text.
/// A row whose thread is late is held: the step after computes it again, and the others go on.
pub struct GpuSlots<'e> {
    engine: &'e mut GpuEngine,
    slots: Vec<Option<Decoding>>,
    /// Rows of the decode steps.
    batch: usize,
    /// Of the largest parts of prompts.
    rows: usize,
    /// Of the request that joined last.
    generation: u32,
    /// The half of a step; only where states may be computed again.
    forward: Option<Forward>,
    /// Tokens that are on their way, a list for each step in the order of the stream.
    flights: VecDeque<Vec<Awaited>>,
    /// How long a step takes.
    pace: Duration,
    /// When the tokens of the latest step came, where the next one was in the stream by then.
    came: Option<Instant>,
}

/// A slot that has begun.
struct Decoding {
    generation: u32,
    /// Where the next step's token stands, once the prompt is in the stream.
    next: Option<usize>,
    /// The first position that takes no step.
    limit: usize,
    /// Whether scores go before its tokens.
    scored: bool,
    /// What its text is held to.
    guide: Option<Guide>,
    /// Why it cannot go on, until that is told.
    broken: Option<String>,
}

impl Decoding {
    /// Whether it has a row in the next step.
    fn advances(&self) -> bool {
        self.broken.is_none() && self.next.is_some_and(|next| next < self.limit)
    }
}

/// A step whose logits are in the stream, and from which nothing is chosen yet.
struct Forward {
    kind: StepKind,
    /// The tokens that are to come of it.
    rows: Vec<Awaited>,
    /// When the device was seen to have come to its end.
    done: Option<Instant>,
}

/// A token that is on its way.
struct Awaited {
    slot: usize,
    generation: u32,
    position: usize,
}

impl<'e> GpuSlots<'e> {
    /// The first `slots` sequences of the engine, all free.
    ///
    /// # Errors
    /// More than it was loaded for, or a fault of the device.
    pub fn new(engine: &'e mut GpuEngine, slots: usize) -> Result<GpuSlots<'e>> {
        let batch = engine.batch_for(slots)?;
        engine.idle_all()?;
        // One slot keeps nobody waiting.
        let rows = if slots > 1 { engine.rows_within(BESIDE)? } else { engine.chunk_rows() };
        Ok(GpuSlots {
            engine,
            rows,
            forward: None,
            slots: (0..slots).map(|_| None).collect(),
            batch,
            generation: 0,
            flights: VecDeque::new(),
            pace: Duration::ZERO,
            came: None,
        })
    }

    /// Steps to keep in the stream: what is in it when a request leaves or joins, it waits for.
    fn ahead(&self) -> usize {
        let steps = AHEAD.as_nanos().div_ceil(self.pace.as_nanos().max(1));
        usize::try_from(steps).unwrap_or(MOST_AHEAD).saturating_add(1).min(MOST_AHEAD)
    }

    /// Whether one of those who decode is held to a grammar.
    fn is_guided(&self) -> bool {
        self.slots.iter().flatten().any(|decoding| decoding.guide.is_some() && decoding.next.is_some())
    }

    /// Puts decode steps into the stream.
    fn launch(&mut self) -> Result<()> {
        if !self.is_guided() {
            self.take_back();
            while self.flights.len() < self.ahead() && self.whole_step()? {}
            return Ok(());
        }
        // What a text may go on with is asked for when its token has come.
        if !self.flights.is_empty() {
            return if self.engine.resumes() { self.forward() } else { Ok(()) };
        }
        if !self.engine.resumes() {
            // Its rows cannot be held: it waits for all.
            for slot in 0..self.slots.len() {
                if self.slots[slot].as_ref().is_some_and(Decoding::advances) {
                    self.guide(slot)?;
                }
            }
            return self.whole_step().map(|_| ());
        }
        self.forward()?;
        if self.choose()? { self.forward() } else { Ok(()) }
    }

    /// Moves each slot that decodes on by a position. The tokens that are to come, and where the last of their rows stands.
    fn advance(&mut self) -> (Vec<Awaited>, usize) {
        let mut awaited = Vec::with_capacity(self.slots.len());
        let mut at = 0;
        for (slot, decoding) in self.slots.iter_mut().enumerate() {
            let Some(decoding) = decoding.as_mut().filter(|decoding| decoding.advances()) else { continue };
            let Decoding { generation, next: Some(next), .. } = decoding else { continue };
            at = *next;
            *next += 1;
            awaited.push(Awaited { slot, generation: *generation, position: *next });
        }
        (awaited, at)
    }

    /// Puts a step into the stream, if there is a row for it.
    fn whole_step(&mut self) -> Result<bool> {
        let (awaited, at) = self.advance();
        if awaited.is_empty() {
            return Ok(false);
        }
        self.engine.decode(self.batch, (self.slots.len() == 1).then_some(at))?;
        self.flights.push_back(awaited);
        Ok(true)
    }

    /// Puts the first half of a step into the stream, unless one is there or there is no row for it.
    fn forward(&mut self) -> Result<()> {
        if self.forward.is_some() {
            return Ok(());
        }
        let (rows, at) = self.advance();
        if !rows.is_empty() {
            let kind = self.engine.forward(self.batch, (self.slots.len() == 1).then_some(at))?;
            self.forward = Some(Forward { kind, rows, done: None });
        }
        Ok(())
    }

    /// Undoes the first half of a step: its rows stand where they stood.
    fn take_back(&mut self) {
        for Awaited { slot, generation, position } in self.forward.take().map_or_else(Vec::new, |forward| forward.rows)
        {
            if let Some(decoding) = self.slots[slot].as_mut().filter(|decoding| decoding.generation == generation) {
                decoding.next = Some(position - 1);
            }
        }
    }

    /// Puts the second half of a step into the stream. Whether it did: it does not where all rows wait, and the device is idle.
    fn choose(&mut self) -> Result<bool> {
        let Some(Forward { kind, mut rows, mut done }) = self.forward.take() else { return Ok(false) };
        rows.retain(|row| self.is_awaited(row));
        let late = loop {
            let (ready, late): (Vec<&Awaited>, Vec<&Awaited>) = rows.iter().partition(|row| self.is_ready(row.slot));
            if late.is_empty() {
                break Vec::new();
            }
            if done.is_none() && self.engine.has_logits()? {
                done = Some(Instant::now());
            }
            if done.is_some_and(|done| done.elapsed() > GRACE) {
                if ready.is_empty() {
                    self.forward = Some(Forward { kind, rows, done });
                    std::thread::sleep(NAP);
                    return Ok(false);
                }
                break late.iter().map(|row| (row.slot, row.position - 1)).collect();
            }
            std::hint::spin_loop();
        };
        rows.retain(|row| late.iter().all(|&(slot, _)| slot != row.slot));
        for row in &rows {
            self.guide(row.slot)?;
        }
        let broken = |slot: &usize| self.slots[*slot].as_ref().is_some_and(|decoding| decoding.broken.is_some());
        let stopped: Vec<usize> = rows.iter().map(|row| row.slot).filter(broken).collect();
        rows.retain(|row| !stopped.contains(&row.slot));
        for &slot in stopped.iter().chain(late.iter().map(|(slot, _)| slot)) {
            self.engine.hold(slot)?;
        }
        self.engine.choose(kind)?;
        for (slot, position) in late {
            self.engine.go_on(slot, position)?;
            if let Some(decoding) = &mut self.slots[slot] {
                decoding.next = Some(position);
            }
        }
        self.flights.push_back(rows);
        Ok(true)
    }

    /// Whether it is known what a slot's next token is chosen by.
    fn is_ready(&mut self, slot: usize) -> bool {
        let guide = self.slots[slot].as_mut().and_then(|decoding| decoding.guide.as_mut());
        guide.is_none_or(Guide::is_ready)
    }

    /// Has a slot's next token chosen by what its grammar allows; waits for that.
    fn guide(&mut self, slot: usize) -> Result<()> {
        let Some(decoding) = &mut self.slots[slot] else { return Ok(()) };
        match decoding.guide.as_mut().map(Guide::next) {
            Some(Ok(Some(marks))) => self.engine.mark(slot, &marks)?,
            Some(Err(message)) => decoding.broken = Some(message),
            Some(Ok(None)) | None => {}
        }
        Ok(())
    }

    fn is_awaited(&self, awaited: &Awaited) -> bool {
        let decoding = self.slots.get(awaited.slot).and_then(Option::as_ref);
        decoding.is_some_and(|decoding| decoding.generation == awaited.generation)
    }

    /// Notes that the tokens of a step have come. Where none was waited for the host came late, and when they came is not known.
    fn note(&mut self, waited: bool) {
        let now = Instant::now();
        if let Some(came) = self.came.filter(|_| waited) {
            let took = now - came;
            // A chunk of a prompt may have been between them.
            self.pace = if self.pace.is_zero() { took } else { (7 * self.pace + took.min(2 * self.pace)) / 8 };
        }
        self.came = (waited && !self.flights.is_empty()).then_some(now);
    }
}

impl Steps for GpuSlots<'_> {
    fn limits(&self) -> Limits {
        Limits {
            slots: self.slots.len(),
            context: self.engine.context(),
            vocabulary: self.engine.plan().vocabulary,
            resumes: self.engine.resumes(),
        }
    }

    /// The same whoever waits: what is computed of a prompt depends in its last bits on how it is cut.
    fn part(&self, left: usize, _beside: bool) -> usize {
        left.min(self.rows)
    }

    fn is_waiting(&mut self, slot: usize) -> bool {
        !self.is_ready(slot)
    }

    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()> {
        // 0 is of no request.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let longest = request.prompt.len().saturating_add(request.limit) - 1;
        let limit = longest.min(self.engine.context());
        let marks = match &request.sampling.grammar {
            Some(_) => Some(Marks::of(&request.sampling, &request.prompt, self.engine.plan().vocabulary)?),
            None => None,
        };
        let rest = Sequence {
            marks: marks.as_ref(),
            limit,
            stops: &request.stops,
            choice: request.choice,
            generation: self.generation,
            scored: request.scores,
        };
        self.engine.join(slot, position, &request.prompt, &request.sampling, &rest)?;
        let guided = request.sampling.grammar.clone().zip(marks);
        self.slots[slot] = Some(Decoding {
            generation: self.generation,
            next: None,
            limit,
            scored: request.scores.is_some(),
            guide: guided.map(|(grammar, marks)| Guide::start(grammar, marks)).transpose()?,
            broken: None,
        });
        Ok(())
    }

    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
        if last {
            // Its row is not in that.
            self.take_back();
            self.guide(slot)?;
        }
        let took = self.engine.read_chunk(slot, position, tokens, last)?;
        // The next step's tokens come later by this.
        self.came = None;
        if let Some(decoding) = self.slots[slot].as_mut().filter(|_| last) {
            let position = position + tokens.len();
            decoding.next = Some(position);
            self.flights.push_back(vec![Awaited { slot, generation: decoding.generation, position }]);
        }
        Ok(took)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        let begin = Instant::now();
        for (slot, decoding) in self.slots.iter_mut().enumerate() {
            // Before its prompt is read nobody waits for it.
            let begun = decoding.as_mut().filter(|decoding| decoding.next.is_some());
            if let Some(message) = begun.and_then(|decoding| decoding.broken.clone()) {
                take(slot, Chosen::Broken(message));
            }
        }
        self.launch()?;
        while let Some(flight) = self.flights.pop_front() {
            let (mut came, mut waited) = (false, false);
            for awaited in flight {
                if !self.is_awaited(&awaited) {
                    continue;
                }
                came = true;
                let Awaited { slot, generation, position } = awaited;
                let sampled = match self.engine.arrived(slot, position, generation) {
                    Some(sampled) => sampled,
                    None => {
                        waited = true;
                        self.engine.await_token(slot, position, generation)?
                    }
                };
                match sampled {
                    Sampled::Token(token) => {
                        let scored = self.slots[slot].as_ref().is_some_and(|decoding| decoding.scored);
                        if scored {
                            take(slot, Chosen::Scores(self.engine.scores(slot, position)));
                        }
                        take(slot, Chosen::Token(token));
                        if let Some(guide) = self.slots[slot].as_mut().and_then(|decoding| decoding.guide.as_mut()) {
                            guide.take(token);
                        }
                    }
                    // The token at a position comes of the logits at the one before.
                    Sampled::NotFinite => take(slot, Chosen::Broken(not_finite(position - 1, None))),
                    Sampled::NoneLeft => take(slot, Chosen::Broken(none_left(position - 1))),
                }
            }
            if came {
                self.note(waited);
                break;
            }
        }
        Ok(if self.pace.is_zero() { begin.elapsed() } else { self.pace })
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.slots[slot] = None;
        self.engine.part(slot)
    }
}
