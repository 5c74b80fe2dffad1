//! One of the answers to a request: its tokens become text, without what ends it, and the text is taken apart.

use std::sync::Arc;

use anyhow::Result;

use super::split::{Part, Shape, Splitter};
use crate::generate::stops::StopTexts;
use crate::generate::tokenizer::{DecodeStream, Tokenizer};
use crate::sampling::Scores;
use crate::serve::ask::Settings;
use crate::slots::End;

/// Why an answer has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At a token that ends a text, or that the request names.
    Stop,
    /// Before this text.
    StopText(String),
    /// With as many tokens as asked for, or as the context holds.
    Length,
    /// With calls.
    Calls,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScores {
    /// The token.
    pub token: u32,
    /// Its log probability, and those of the likeliest.
    pub scores: Scores,
}

/// An answer as it comes.
pub struct Choice {
    tokenizer: Arc<Tokenizer>,
    stream: DecodeStream<Arc<Tokenizer>>,
    watched: StopTexts,
    splitter: Splitter,
    stops: Vec<u32>,
    /// Of the token that comes next.
    scores: Option<Scores>,
    tokens: usize,
    /// Those that nobody has been given yet.
    fresh: Vec<u32>,
    reasoning: usize,
    finish: Option<Finish>,
}

impl Choice {
    pub fn new(tokenizer: &Arc<Tokenizer>, prompt: &[u32], settings: &Settings, shape: &Shape) -> Choice {
        let before = if shape.goes_on { prompt } else { &[] };
        Choice {
            tokenizer: tokenizer.clone(),
            stream: DecodeStream::after(tokenizer.clone(), before, true),
            watched: StopTexts::new(&settings.stop_texts),
            splitter: Splitter::new(shape.clone()),
            stops: settings.stops.clone(),
            scores: None,
            tokens: 0,
            fresh: Vec::new(),
            reasoning: 0,
            finish: None,
        }
    }

    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// Tokens so far, and those of them that the model thought with.
    pub fn tokens(&self) -> (usize, usize) {
        (self.tokens, self.reasoning)
    }

    /// The tokens since the last time, one that ends the answer among them.
    pub fn fresh(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.fresh)
    }

    /// Takes how likely the next token is.
    pub fn take_scores(&mut self, scores: Scores) {
        self.scores = Some(scores);
    }

    /// Takes a token; what it adds to the answer.
    pub fn take(&mut self, token: u32) -> Result<(Vec<Part>, Option<TokenScores>)> {
        self.tokens += 1;
        self.fresh.push(token);
        let scores = self.scores.take().map(|scores| TokenScores { token, scores });
        if self.stops.contains(&token) {
            return Ok((Vec::new(), None));
        }
        let mut parts = Vec::new();
        if self.tokenizer.is_special(token) {
            let text = self.tokenizer.id_to_token(token).unwrap_or_default();
            let shown = match (self.splitter.reads(&text), self.splitter.calling()) {
                (true, true) => self.watched.rest() + &text,
                (true, false) => self.watched.pass(&text),
                (false, true) => String::new(),
                (false, false) => self.watched.pass_hidden(&text),
            };
            parts.extend(self.splitter.push(&shown));
        }
        let piece = self.stream.step(token)?;
        // No stop text ends a call.
        let shown = if self.splitter.calling() { self.watched.rest() + &piece } else { self.watched.pass(&piece) };
        parts.extend(self.splitter.push(&shown));
        self.reasoning += usize::from(self.splitter.thinking());
        if let Some(stop) = self.watched.found() {
            let stop = stop.to_owned();
            parts.extend(self.splitter.finish());
            self.finish = Some(self.with_calls(Finish::StopText(stop)));
        }
        Ok((parts, scores))
    }

    /// Takes its end; what of the answer was held back.
    pub fn end(&mut self, end: End) -> Result<Vec<Part>> {
        let rest = self.stream.finish()?;
        let mut shown = if self.splitter.calling() { self.watched.rest() + &rest } else { self.watched.pass(&rest) };
        let finish = match (self.watched.found(), end) {
            (Some(stop), _) => Finish::StopText(stop.to_owned()),
            (None, End::Stop) => Finish::Stop,
            (None, End::Limit | End::Context) => Finish::Length,
        };
        shown += &self.watched.rest();
        let mut parts = self.splitter.push(&shown);
        parts.extend(self.splitter.finish());
        self.finish = Some(self.with_calls(finish));
        Ok(parts)
    }

    fn with_calls(&self, finish: Finish) -> Finish {
        if finish != Finish::Length && self.splitter.calls() > 0 { Finish::Calls } else { finish }
    }
}
