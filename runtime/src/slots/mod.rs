//! Slots: sequences that join and leave between steps. What runs the steps is a [`Steps`]; who asks, and how, is not known here.
//!
//! A request waits in a queue, gets a slot, has its prompt read in parts beside those who decode, and then decodes with them until it ends or leaves. Its
//! tokens depend on its prompt, parameters and seed only, as long as the device's results depend on a row only.

mod parts;
mod request;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

pub use parts::{BESIDE, Parts};
pub use request::Request;
pub use steps::{Chosen, Limits, Steps};

use crate::sampling::{MOST_SCORES, Marks, Scores, check_prompt};

/// Requests that wait at most, but for those that are submitted patiently.
pub const QUEUE: usize = 64;

/// A common prefix of fewer tokens is not looked for: it costs less to read again than to lose another one's states.
const SHORTEST_PREFIX: usize = 16;

/// Names a request from its submission to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What has become of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its prompt is in the states; `reused` of its tokens were there before.
    Read {
        /// Tokens at the beginning of the prompt that were not computed again.
        reused: usize,
    },
    /// How likely its next token is; that comes right after this.
    Scores(Scores),
    /// Its next token.
    Token(u32),
    /// It has ended.
    Ended(End),
    /// It cannot go on; the message says why.
    Failed(String),
}

/// Why a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// One of its stops.
    Stop,
    /// It has as many tokens as it asked for.
    Limit,
    /// The context is full.
    Context,
}

/// A request in a slot, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Which request.
    pub ticket: Ticket,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Those of them whose states are there.
    pub read: usize,
    /// Tokens that it has been given.
    pub produced: usize,
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may.
    Busy,
    /// It cannot be served; the message says why.
    Invalid(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Busy => write!(f, "{QUEUE} requests are waiting already; try again later"),
            Refused::Invalid(message) => f.write_str(message),
        }
    }
}

/// The slots of a device, and those who wait for one.
pub struct Slots<S> {
    steps: S,
    slots: Vec<Slot>,
    queue: VecDeque<(Ticket, Request)>,
    events: Vec<(Ticket, Event)>,
    tickets: u64,
    clock: u64,
    /// Device time that decoding is owed for the parts of prompts that went before it.
    owed: Duration,
}

#[derive(Default)]
struct Slot {
    /// The tokens whose states it holds.
    history: Vec<u32>,
    /// When it was last given to a request.
    used: u64,
    work: Option<Work>,
}

/// A request in a slot.
struct Work {
    ticket: Ticket,
    request: Request,
    reused: usize,
    /// The tokens that it has so far.
    produced: usize,
    decodes: bool,
}

impl<S: Steps> Slots<S> {
    /// All slots free.
    pub fn new(steps: S) -> Slots<S> {
        let slots = (0..steps.limits().slots).map(|_| Slot::default()).collect();
        Slots { steps, slots, queue: VecDeque::new(), events: Vec::new(), tickets: 0, clock: 0, owed: Duration::ZERO }
    }

    /// What the device has room for.
    pub fn limits(&self) -> Limits {
        self.steps.limits()
    }

    /// Requests that have a slot, and that wait for one.
    pub fn load(&self) -> (usize, usize) {
        (self.slots.iter().filter(|slot| slot.work.is_some()).count(), self.queue.len())
    }

    /// What each slot does.
    pub fn occupants(&self) -> impl Iterator<Item = Option<Occupant>> + '_ {
        self.slots.iter().map(|slot| {
            let work = slot.work.as_ref()?;
            let (prompt, produced) = (work.request.prompt.len(), work.produced);
            Some(Occupant { ticket: work.ticket, prompt, read: slot.history.len().min(prompt), produced })
        })
    }

    /// Takes a request: its events come from [`Slots::poll`] until it has ended, failed or left.
    ///
    /// # Errors
    /// It can never be served, or too many wait.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, Refused> {
        self.check(&request)?;
        if self.queue.len() >= QUEUE {
            return Err(Refused::Busy);
        }
        Ok(self.enqueue(request))
    }

    /// As [`Slots::submit`], however many wait.
    ///
    /// # Errors
    /// It can never be served.
    pub fn submit_patiently(&mut self, request: Request) -> Result<Ticket, Refused> {
        self.check(&request)?;
        Ok(self.enqueue(request))
    }

    fn check(&self, request: &Request) -> Result<(), Refused> {
        let Limits { context, vocabulary, .. } = self.limits();
        let invalid = |error: anyhow::Error| Refused::Invalid(format!("{error:#}"));
        check_prompt(&request.prompt, vocabulary, context).map_err(invalid)?;
        request.sampling.validate().map_err(invalid)?;
        Marks::new(&request.sampling, &[], vocabulary).map_err(invalid)?;
        if request.limit == 0 {
            return Err(Refused::Invalid("nothing to generate: the limit is 0 tokens".into()));
        }
        if let Some(scores) = request.scores.filter(|&scores| scores > MOST_SCORES) {
            return Err(Refused::Invalid(format!(
                "the {scores} likeliest tokens are asked for; at most {MOST_SCORES} are told"
            )));
        }
        Ok(())
    }

    fn enqueue(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.queue.push_back((ticket, request));
        ticket
    }

    /// Ends a request, wherever it is: no event of it comes after this. One that is not known has ended already.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn leave(&mut self, ticket: Ticket) -> Result<()> {
        self.queue.retain(|(queued, _)| *queued != ticket);
        self.events.retain(|(of, _)| *of != ticket);
        let of = |slot: &Slot| slot.work.as_ref().is_some_and(|work| work.ticket == ticket);
        match self.slots.iter().position(of) {
            Some(slot) => self.free(slot),
            None => Ok(()),
        }
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.events.is_empty() && self.slots.iter().all(|slot| slot.work.is_none())
    }

    /// Does the next piece of work, a part of a prompt or a step, and gives what has come of it, in order.
    ///
    /// # Errors
    /// A fault of the device: nothing goes on after it.
    pub fn poll(&mut self) -> Result<Vec<(Ticket, Event)>> {
        while !self.queue.is_empty() && self.admit()? {}
        let decoding = self.slots.iter().any(|slot| slot.work.as_ref().is_some_and(|work| work.decodes));
        let reads = !decoding || self.owed.is_zero();
        match reads.then(|| self.next_to_read(decoding)).flatten() {
            Some(slot) => self.read(slot, decoding)?,
            None if decoding => self.step()?,
            None => {}
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Gives the first who waits a slot, if one is free.
    fn admit(&mut self) -> Result<bool> {
        let resumes = self.limits().resumes;
        let Some((_, request)) = self.queue.front() else { return Ok(false) };
        let common = |slot: &Slot| {
            let same = slot.history.iter().zip(&request.prompt).take_while(|(a, b)| a == b).count();
            // The last token is always computed: its logits are wanted.
            Some(same.min(request.prompt.len() - 1)).filter(|&same| resumes && same >= SHORTEST_PREFIX).unwrap_or(0)
        };
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.work.is_none());
        let best = free.map(|(index, slot)| (common(slot), u64::MAX - slot.used, index)).max();
        let Some((reused, _, index)) = best else { return Ok(false) };
        let (ticket, request) = self.queue.pop_front().context("the queue has a first")?;
        self.steps.begin(index, reused, &request)?;
        self.clock += 1;
        let slot = &mut self.slots[index];
        slot.history.truncate(reused);
        slot.used = self.clock;
        slot.work = Some(Work { ticket, request, reused, produced: 0, decodes: false });
        Ok(true)
    }

    /// The slot whose prompt is read next: who came first. One that waits is passed over while there is anything else to do.
    fn next_to_read(&mut self, beside: bool) -> Option<usize> {
        let left = |slot: &Slot| {
            let work = slot.work.as_ref().filter(|work| !work.decodes)?;
            Some(work.request.prompt.len() - slot.history.len())
        };
        let mut reading: Vec<(u64, usize, usize)> = Vec::new();
        reading.extend(self.slots.iter().enumerate().filter_map(|(index, slot)| Some((slot.used, index, left(slot)?))));
        reading.sort_unstable();
        let first = reading.first().map(|&(_, index, _)| index).filter(|_| !beside);
        let steps = &mut self.steps;
        let mut ready =
            reading.into_iter().filter(|&(_, index, left)| steps.part(left, beside) < left || !steps.is_waiting(index));
        ready.next().map(|(_, index, _)| index).or(first)
    }

    fn read(&mut self, index: usize, beside: bool) -> Result<()> {
        let slot = &mut self.slots[index];
        let work = slot.work.as_mut().context("a slot that is read has work")?;
        let position = slot.history.len();
        let left = work.request.prompt.len() - position;
        let count = self.steps.part(left, beside).clamp(1, left);
        let part = &work.request.prompt[position..position + count];
        let last = count == left;
        let took = self.steps.prompt(index, position, part, last)?;
        slot.history.extend_from_slice(part);
        if last {
            work.decodes = true;
            self.events.push((work.ticket, Event::Read { reused: work.reused }));
        }
        if beside {
            self.owed = took;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let context = self.limits().context;
        let mut ended = Vec::new();
        let (slots, events) = (&mut self.slots, &mut self.events);
        let took = self.steps.step(&mut |index, chosen| {
            let slot = &mut slots[index];
            // A step that was in flight when the request ended.
            let Some(work) = slot.work.as_mut().filter(|work| work.decodes && !ended.contains(&index)) else { return };
            let token = match chosen {
                Chosen::Token(token) => token,
                Chosen::Scores(scores) => return events.push((work.ticket, Event::Scores(scores))),
                Chosen::Broken(message) => {
                    events.push((work.ticket, Event::Failed(message)));
                    return ended.push(index);
                }
            };
            events.push((work.ticket, Event::Token(token)));
            work.produced += 1;
            let end = if work.request.stops.contains(&token) {
                End::Stop
            } else if work.produced == work.request.limit {
                End::Limit
            } else if work.request.prompt.len() + work.produced > context {
                End::Context
            } else {
                // It is put into the states by the step after it.
                return slot.history.push(token);
            };
            events.push((work.ticket, Event::Ended(end)));
            ended.push(index);
        })?;
        self.owed = self.owed.saturating_sub(took);
        ended.into_iter().try_for_each(|index| self.free(index))
    }

    /// Takes a slot from its request.
    fn free(&mut self, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        let Some(work) = slot.work.take() else { return Ok(()) };
        if work.decodes {
            // The step that puts the newest token into the states may not have begun.
            slot.history.truncate((work.request.prompt.len() + work.produced).saturating_sub(1));
        }
        self.steps.leave(index)
    }
}
