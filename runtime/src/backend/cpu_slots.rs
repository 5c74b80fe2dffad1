//! Slots on the CPU: each step runs and its tokens are there.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::{CpuModel, Logits, Row};
use crate::grammar::{Grammar, Matcher};
use crate::sampling::{Marks, SamplingParameters, Scores, check_logits, sample};
use crate::slots::{Chosen, Limits, Parts, Request, Steps};

/// Tokens of a prompt that are taken at once where nobody waits: between parts a request can leave.
const ALONE: usize = 512;

/// A model on the CPU whose sequences are slots.
pub struct CpuSlots<'m> {
    model: &'m mut CpuModel,
    slots: Vec<Option<Decoding>>,
    parts: Parts,
}

/// A slot that has begun.
struct Decoding {
    sampling: SamplingParameters,
    choice: u32,
    marks: Option<Marks>,
    /// The text so far, where it is held to a grammar.
    matcher: Option<Matcher>,
    /// Where the next row goes.
    position: usize,
    /// How many of the likeliest tokens are told.
    scored: Option<usize>,
    /// What came of the latest logits, until it is given.
    fresh: Option<Chosen>,
    /// How likely that token is.
    scores: Option<Scores>,
    /// The newest token that was given: the next step runs it.
    newest: Option<u32>,
}

impl<'m> CpuSlots<'m> {
    /// All of the model's sequences, free.
    pub fn new(model: &'m mut CpuModel) -> CpuSlots<'m> {
        let slots = (0..model.options().sequences).map(|_| None).collect();
        CpuSlots { model, slots, parts: Parts::new() }
    }
}

impl Steps for CpuSlots<'_> {
    fn limits(&self) -> Limits {
        let options = self.model.options();
        Limits {
            slots: options.sequences,
            context: options.context,
            vocabulary: self.model.vocabulary(),
            resumes: self.model.resumes(),
        }
    }

    fn part(&self, left: usize, beside: bool) -> usize {
        if beside { self.parts.most(left.min(ALONE)) } else { left.min(ALONE) }
    }

    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()> {
        let marks = Marks::new(&request.sampling, &request.prompt, self.model.vocabulary())?;
        self.slots[slot] = Some(Decoding {
            sampling: request.sampling.clone(),
            choice: request.choice,
            marks,
            matcher: request.sampling.grammar.as_ref().map(Grammar::begin),
            position,
            scored: request.scores,
            fresh: None,
            scores: None,
            newest: None,
        });
        Ok(())
    }

    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
        let begin = Instant::now();
        let row =
            |(index, &token): (usize, &u32)| Row { token, position: (position + index) as u32, sequence: slot as u32 };
        let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
        let logits = self.model.forward(&rows, if last { Logits::Last } else { Logits::None })?;
        if let Some(decoding) = &mut self.slots[slot] {
            decoding.position = position + tokens.len();
            if last {
                decoding.choose(logits);
            }
        }
        let took = begin.elapsed();
        self.parts.read(tokens.len(), took);
        Ok(took)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        let begin = Instant::now();
        let mut rows = Vec::new();
        for (slot, decoding) in self.slots.iter_mut().enumerate() {
            let Some(decoding) = decoding else { continue };
            if let Some(token) = decoding.newest.take() {
                rows.push(Row { token, position: decoding.position as u32, sequence: slot as u32 });
                decoding.position += 1;
            }
        }
        if !rows.is_empty() {
            let width = self.model.vocabulary();
            let logits = self.model.forward(&rows, Logits::All)?;
            for (row, logits) in rows.iter().zip(logits.chunks_exact(width)) {
                if let Some(decoding) = &mut self.slots[row.sequence as usize] {
                    decoding.choose(logits);
                }
            }
        }
        for (slot, decoding) in self.slots.iter_mut().enumerate() {
            let Some(decoding) = decoding else { continue };
            if let Some(chosen) = decoding.fresh.take() {
                if let Chosen::Token(token) = chosen {
                    decoding.newest = Some(token);
                }
                if let Some(scores) = decoding.scores.take() {
                    take(slot, Chosen::Scores(scores));
                }
                take(slot, chosen);
            }
        }
        let took = begin.elapsed();
        if !rows.is_empty() {
            self.parts.stepped(took);
        }
        Ok(took)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.slots[slot] = None;
        Ok(())
    }
}

impl Decoding {
    /// The next token, from the logits after the row before `position`.
    fn choose(&mut self, logits: &[f32]) {
        self.fresh = Some(match self.chosen(logits) {
            Ok(token) => {
                self.scores = self.scored.map(|top| Scores::new(logits, token, top));
                Chosen::Token(token)
            }
            Err(error) => Chosen::Broken(format!("{error:#}")),
        });
    }

    fn chosen(&mut self, logits: &[f32]) -> Result<u32> {
        let at = self.position - 1;
        if self.marks.is_none() && self.matcher.is_none() {
            check_logits(logits, at)?;
            return Ok(sample(logits, &self.sampling, at as u32, self.choice));
        }
        let mut changed = logits.to_vec();
        if let Some(matcher) = &mut self.matcher {
            matcher.allowed()?.apply(&mut changed);
        }
        if let Some(marks) = &self.marks {
            marks.apply(&self.sampling, &mut changed);
        }
        check_logits(&changed, at)?;
        let token = sample(&changed, &self.sampling, at as u32, self.choice);
        if let Some(matcher) = &mut self.matcher {
            matcher.take(token)?;
        }
        if let Some(marks) = &mut self.marks {
            marks.note(token);
        }
        Ok(token)
    }
}
