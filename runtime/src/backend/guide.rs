//! A grammar that a text on a GPU is held to. What may come next depends on the token before: that is worked out in a thread of its own, while the device
//! computes the logits that are chosen from.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::Builder;

use anyhow::{Context, Result};

use crate::grammar::{Grammar, Matcher};
use crate::sampling::Marks;

/// What the next token is chosen by; none: the marks that the device has, which counts tokens as they are counted here. Or why there is no next token.
pub(super) type Next = Result<Option<Marks>, String>;

/// The way to the thread. That ends with this.
pub(super) struct Guide {
    tokens: Sender<u32>,
    made: Receiver<Next>,
    /// What has come and is not taken.
    next: Option<Next>,
}

/// The thread's side of a text.
struct Text {
    matcher: Matcher,
    /// Of the text so far.
    marks: Marks,
    /// Whether the device has others.
    masked: bool,
}

impl Text {
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

impl Guide {
    /// Of a text that begins: what its first token is chosen by is worked out. `marks`: those that the device has.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(grammar: Grammar, marks: Marks) -> Result<Guide> {
        let ((tokens, chosen), (tell, made)) = (channel::<u32>(), channel());
        let work = move || {
            let mut text = Text { matcher: grammar.begin(), marks, masked: false };
            let mut next = text.next();
            loop {
                let ended = next.is_err();
                // Nobody waits where the request has left.
                if tell.send(next.map_err(|error| format!("{error:#}"))).is_err() || ended {
                    return;
                }
                let Ok(token) = chosen.recv() else { return };
                next = text.take(token);
            }
        };
        Builder::new().name("grammar".into()).spawn(work).context("cannot start a thread for a grammar")?;
        Ok(Guide { tokens, made, next: None })
    }

    /// Goes on with a token that was chosen.
    pub fn take(&mut self, token: u32) {
        // A thread that has ended has told why.
        let _ = self.tokens.send(token);
    }

    /// Whether [`Guide::next`] does not wait.
    pub fn is_ready(&mut self) -> bool {
        if self.next.is_none() {
            self.next = match self.made.try_recv() {
                Ok(next) => Some(next),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(GONE.into())),
            };
        }
        self.next.is_some()
    }

    /// What the next token is chosen by, once for each.
    pub fn next(&mut self) -> Next {
        self.next.take().unwrap_or_else(|| self.made.recv().unwrap_or_else(|_| Err(GONE.into())))
    }
}

const GONE: &str = "the grammar: it cannot go on with this text. Give a simpler one";
