//! Slots on the GPU: steps are put into its stream ahead of the host, which reads their tokens as they come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::grammar::Matcher;
use crate::sampling::{Marks, none_left, not_finite};
use crate::slots::{BESIDE, Chosen, Limits, Request, Steps};
use crate::step::{GpuEngine, Sampled, Sequence};

/// Work that lies ready for the device while the host does something else.
const AHEAD: Duration = Duration::from_millis(2);

/// Decode steps in the stream that the host has not read a token of, at most.
const MOST_AHEAD: usize = 8;

/// A model on a GPU whose sequences are slots.
///
/// One slot takes the fastest step for where it stands. Of several, each step has a row per slot, idle ones included, and the form for any position: what a row
/// computes then does not depend on which others there are.
pub struct GpuSlots<'e> {
    engine: &'e mut GpuEngine,
    slots: Vec<Option<Decoding>>,
    /// Rows of the decode steps.
    batch: usize,
    /// Of the largest parts of prompts.
    rows: usize,
    /// Of the request that joined last.
    generation: u32,
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

/// A grammar that a text is held to: what may come next depends on the token before, which the host waits for.
struct Guide {
    matcher: Matcher,
    /// Of the text so far.
    marks: Marks,
    /// Whether the device has others.
    masked: bool,
}

impl Guide {
    /// The marks that the next token is chosen by; none: those that the device has. It counts tokens as they are counted here.
    fn next(&mut self) -> Result<Option<Marks>> {
        let allowed = self.matcher.allowed()?;
        let was_masked = std::mem::replace(&mut self.masked, !allowed.is_all());
        Ok((was_masked || self.masked).then(|| self.marks.allowing(&allowed)))
    }

    fn take(&mut self, token: u32) -> Result<Option<Marks>> {
        self.matcher.take(token)?;
        self.marks.note(token);
        self.next()
    }
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
            slots: (0..slots).map(|_| None).collect(),
            batch,
            generation: 0,
            flights: VecDeque::new(),
            pace: Duration::ZERO,
            came: None,
        })
    }

    /// Steps to keep in the stream: what is in it when a request leaves or joins, it waits for. A text that is held to a grammar takes one at a time.
    fn ahead(&self) -> usize {
        if self.slots.iter().flatten().any(|decoding| decoding.guide.is_some()) {
            return 1;
        }
        let steps = AHEAD.as_nanos().div_ceil(self.pace.as_nanos().max(1));
        usize::try_from(steps).unwrap_or(MOST_AHEAD).saturating_add(1).min(MOST_AHEAD)
    }

    /// Puts decode steps into the stream.
    fn launch(&mut self) -> Result<()> {
        while self.flights.len() < self.ahead() {
            let mut awaited = Vec::with_capacity(self.slots.len());
            let mut at = 0;
            for (slot, decoding) in self.slots.iter_mut().enumerate() {
                let Some(Decoding { generation, next: Some(next), limit, .. }) = decoding else { continue };
                if *next < *limit {
                    at = *next;
                    *next += 1;
                    awaited.push(Awaited { slot, generation: *generation, position: *next });
                }
            }
            if awaited.is_empty() {
                break;
            }
            self.engine.decode(self.batch, (self.slots.len() == 1).then_some(at))?;
            self.flights.push_back(awaited);
        }
        Ok(())
    }

    /// Goes on with a token of a text that is held to a grammar: the next step chooses by other marks.
    fn guide(&mut self, slot: usize, token: u32) -> Result<()> {
        let Some(decoding) = &mut self.slots[slot] else { return Ok(()) };
        match decoding.guide.as_mut().map(|guide| guide.take(token)) {
            Some(Ok(Some(marks))) => self.engine.mark(slot, &marks)?,
            Some(Err(error)) => decoding.broken = Some(format!("{error:#}")),
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

    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()> {
        // 0 is of no request.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let longest = request.prompt.len().saturating_add(request.limit) - 1;
        let limit = longest.min(self.engine.context());
        let mut guide = match &request.sampling.grammar {
            Some(grammar) => Some(Guide {
                matcher: grammar.begin(),
                marks: Marks::of(&request.sampling, &request.prompt, self.engine.plan().vocabulary)?,
                masked: true,
            }),
            None => None,
        };
        let first = guide.as_mut().map(Guide::next);
        let broken = first.as_ref().and_then(|first| first.as_ref().err()).map(|error| format!("{error:#}"));
        let rest = Sequence {
            marks: first.as_ref().and_then(|first| first.as_ref().ok()?.as_ref()),
            limit,
            stops: &request.stops,
            choice: request.choice,
            generation: self.generation,
            scored: request.scores,
        };
        self.engine.join(slot, position, &request.prompt, &request.sampling, &rest)?;
        self.slots[slot] = Some(Decoding {
            generation: self.generation,
            next: None,
            limit,
            scored: request.scores.is_some(),
            guide,
            broken,
        });
        Ok(())
    }

    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
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
            if let Some(message) = begun.and_then(|decoding| decoding.broken.take()) {
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
                        self.guide(slot, token)?;
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
