//! A text as it is made of its tokens.

use std::sync::Arc;

use anyhow::Result;

use crate::generate::stops::StopTexts;
use crate::generate::tokenizer::{DecodeStream, Tokenizer};

/// One text, so far.
pub struct Making {
    tokenizer: Arc<Tokenizer>,
    stream: DecodeStream<Arc<Tokenizer>>,
    watched: StopTexts,
    stops: Vec<u32>,
    tokens: Vec<u32>,
    stopped: bool,
}

impl Making {
    /// A text after a prompt; `texts` and `stops` end it. `apart`: it does not go on with the prompt's last word.
    pub fn new(tokenizer: &Arc<Tokenizer>, prompt: &[u32], texts: &[String], stops: &[u32], apart: bool) -> Making {
        let before = if apart { &[] } else { prompt };
        Making {
            tokenizer: tokenizer.clone(),
            stream: DecodeStream::after(tokenizer.clone(), before, true),
            watched: StopTexts::new(texts),
            stops: stops.to_vec(),
            tokens: Vec::new(),
            stopped: false,
        }
    }

    /// Takes a token; what it adds to the text.
    pub fn take(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        if self.stops.contains(&token) {
            self.stopped = true;
            return Ok(String::new());
        }
        let mut shown = String::new();
        if self.tokenizer.is_special(token) {
            shown += &self.watched.pass_hidden(&self.tokenizer.id_to_token(token).unwrap_or_default());
        }
        let piece = self.stream.step(token)?;
        shown += &self.watched.pass(&piece);
        self.stopped = self.watched.reached();
        Ok(shown)
    }

    /// Whether it has come to an end of its own.
    pub fn ended(&self) -> bool {
        self.stopped
    }

    /// What was held back, when no more tokens come.
    pub fn rest(&mut self) -> Result<String> {
        if self.watched.reached() {
            return Ok(String::new());
        }
        let rest = self.stream.finish()?;
        let shown = self.watched.pass(&rest);
        self.stopped |= self.watched.reached();
        Ok(shown + &self.watched.rest())
    }

    /// Its tokens, one that ends it included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why it has ended, in a word.
    pub fn finish(&self) -> &'static str {
        if self.stopped { "stop" } else { "length" }
    }
}
