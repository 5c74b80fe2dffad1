//! Texts that are free until a mark comes, are held to what belongs to it from there on, and are free again after that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use llguidance::Matcher as State;
use llguidance::toktrie::{TokEnv, TokTrie};

use super::allowed::{Allowed, take};

/// What a text is held to after marks.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    /// The marks, ASCII and not empty.
    pub marks: Vec<Mark>,
    /// What follows a mark, as a grammar in Lark's syntax whose texts have definite ends.
    pub then: String,
    /// Where no mark counts.
    pub aside: Option<Aside>,
    /// Whether the text ends after what follows the first mark.
    pub once: bool,
}

/// A mark: as a text, or as the name of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How it is written.
    pub text: String,
    /// Whether it is one at the beginning and after another one's end only.
    pub first: bool,
    /// Whether the grammar begins with the mark itself.
    pub part: bool,
}

/// A part at the beginning of a text in which no mark counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// What begins it.
    pub begin: &'static str,
    /// What ends it.
    pub end: &'static str,
    /// Whether it has begun.
    pub begun: bool,
}

/// [`Marked`], for one model's tokens.
pub(super) struct Compiled {
    of: Marked,
    begin: Mutex<State>,
    environment: TokEnv,
    /// Bytes of the longest mark.
    longest: usize,
    /// Tokens that have a whole mark within them, and after it what may not follow.
    wide: Vec<u32>,
    /// By mark, and how many bytes of it are there: the tokens that complete it and go on with what may not follow.
    wrong: Mutex<Wrong>,
}

type Wrong = BTreeMap<(usize, usize), Arc<[u32]>>;

/// A text so far.
pub(super) struct Follower {
    marks: Arc<Compiled>,
    at: At,
    /// The last bytes: a mark may have begun in them.
    tail: Vec<u8>,
    held: Option<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first letter, or in a mark that has to be the first; `aside`: such a part may begin.
    First {
        aside: bool,
    },
    Aside,
    Within,
    /// Nothing more comes.
    Over,
}

impl Compiled {
    pub(super) fn new(of: Marked, begin: State, environment: TokEnv) -> Result<Compiled> {
        for mark in &of.marks {
            ensure!(mark.text.is_ascii() && !mark.text.is_empty(), "the mark {:?} is not ASCII", mark.text);
        }
        let longest = of.marks.iter().map(|mark| mark.text.len()).max().unwrap_or(0);
        let (begin, wrong) = (Mutex::new(begin), Mutex::default());
        let mut compiled = Compiled { of, begin, environment, longest, wide: Vec::new(), wrong };
        compiled.wide = compiled.find_wide()?;
        Ok(compiled)
    }

    fn find_wide(&self) -> Result<Vec<u32>> {
        let mut wide = Vec::new();
        for token in 0..self.trie().vocab_size() as u32 {
            let word = self.trie().token(token);
            if word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                continue;
            }
            for (index, mark) in self.of.marks.iter().enumerate() {
                let text = mark.text.as_bytes();
                let within = word.len().checked_sub(text.len() + 1).and_then(|last| {
                    (0..=last).filter(|&at| !mark.first || at == 0).find(|&at| word[at..].starts_with(text))
                });
                if let Some(at) = within
                    && !self.may_follow(&mut self.after(index)?, &word[at + text.len()..])?
                {
                    wide.push(token);
                }
            }
        }
        Ok(wide)
    }

    fn trie(&self) -> &TokTrie {
        self.environment.tok_trie()
    }

    /// What is read of a token: nothing of one that is no text and no mark.
    fn bytes(&self, token: u32) -> &[u8] {
        if token as usize >= self.trie().vocab_size() {
            return &[];
        }
        let word = self.trie().token(token);
        let Some((&TokTrie::SPECIAL_TOKEN_MARKER, name)) = word.split_first() else { return word };
        let aside = |aside: &Aside| [aside.begin, aside.end].map(str::as_bytes).contains(&name);
        let read = self.of.marks.iter().any(|mark| mark.text.as_bytes() == name) || self.of.aside.iter().any(aside);
        if read { name } else { &[] }
    }

    /// What comes after a mark.
    fn after(&self, mark: usize) -> Result<State> {
        // Nothing is done to it but to copy it.
        let mut state = self.begin.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let Mark { text, part, .. } = &self.of.marks[mark];
        if *part {
            let taken = state.try_consume_tokens(&self.trie().greedy_tokenize(text.as_bytes()))?;
            ensure!(taken > 0 && !state.is_error(), "the grammar does not begin with the mark {text:?}");
        }
        Ok(state)
    }

    fn may_follow(&self, state: &mut State, bytes: &[u8]) -> Result<bool> {
        let tokens = self.trie().greedy_tokenize(bytes);
        let known: usize = tokens.iter().map(|&token| self.trie().token_len(token)).sum();
        Ok(known == bytes.len() && state.validate_tokens(&tokens)? == tokens.len())
    }

    /// The tokens that complete a mark, `there` bytes of which are there, and go on with what may not follow.
    fn wrong(&self, mark: usize, there: usize) -> Result<Arc<[u32]>> {
        let mut known = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wrong) = known.get(&(mark, there)) {
            return Ok(wrong.clone());
        }
        let rest = &self.of.marks[mark].text.as_bytes()[there..];
        let mut wrong = Vec::new();
        let mut nodes: Vec<_> = self.trie().child_at_bytes(self.trie().root(), rest).into_iter().collect();
        let mut state = if nodes.is_empty() { None } else { Some(self.after(mark)?) };
        while let (Some(node), Some(state)) = (nodes.pop(), &mut state) {
            for child in self.trie().node_children(node) {
                nodes.push(child);
                let Some(token) = child.token_id() else { continue };
                if !self.may_follow(state, &self.trie().token(token)[rest.len()..])? {
                    wrong.push(token);
                }
            }
        }
        let wrong: Arc<[u32]> = wrong.into();
        known.insert((mark, there), wrong.clone());
        Ok(wrong)
    }
}

impl Follower {
    pub(super) fn new(marks: Arc<Compiled>) -> Follower {
        let at = match &marks.of.aside {
            Some(aside) if aside.begun => At::Aside,
            aside => At::First { aside: aside.is_some() },
        };
        Follower { marks, at, tail: Vec::new(), held: None }
    }

    pub(super) fn allowed(&mut self) -> Result<Allowed> {
        if let Some(state) = &mut self.held {
            return Allowed::of(state);
        }
        match self.at {
            At::Over => return Ok(Allowed::only(self.marks.trie().eos_token_set())),
            At::Aside => return Ok(Allowed::but(Vec::new())),
            At::First { .. } | At::Within => {}
        }
        let mut wrong = self.marks.wide.clone();
        for (index, mark) in self.marks.of.marks.iter().enumerate() {
            let text = mark.text.as_bytes();
            let begun = if mark.first { trimmed(&self.tail) } else { &self.tail };
            for there in 1..text.len() {
                let here = if mark.first {
                    self.at != At::Within && *begun == text[..there]
                } else {
                    begun.ends_with(&text[..there])
                };
                if here {
                    wrong.extend_from_slice(&self.marks.wrong(index, there)?);
                }
            }
        }
        Ok(Allowed::but(wrong))
    }

    pub(super) fn take(&mut self, token: u32) -> Result<()> {
        let marks = self.marks.clone();
        if let Some(state) = &mut self.held {
            take(state, token)?;
        } else {
            let bytes = marks.bytes(token);
            let Some((mark, end)) = self.find(bytes) else { return Ok(()) };
            let mut state = marks.after(mark)?;
            self.tail.clear();
            if !marks.may_follow(&mut state, &bytes[end..])? {
                self.at = At::Within;
                return Ok(());
            }
            state.try_consume_tokens(&marks.trie().greedy_tokenize(&bytes[end..]))?;
            self.held = Some(state);
        }
        if self.held.as_ref().is_some_and(|state| state.is_stopped() && !state.is_error()) {
            self.held = None;
            self.at = if marks.of.once { At::Over } else { At::First { aside: false } };
        }
        Ok(())
    }

    /// Whether a mark is complete: which, and after how many of the bytes.
    fn find(&mut self, bytes: &[u8]) -> Option<(usize, usize)> {
        let marks = self.marks.clone();
        for (index, &byte) in bytes.iter().enumerate() {
            self.tail.push(byte);
            match self.at {
                At::Over => return None,
                At::Aside => {
                    let end = marks.of.aside.as_ref().map_or("", |aside| aside.end).as_bytes();
                    if self.tail.ends_with(end) {
                        self.tail.clear();
                        self.at = At::First { aside: false };
                    } else {
                        self.keep(end.len());
                    }
                    continue;
                }
                At::First { .. } | At::Within => {}
            }
            let complete = |mark: &Mark| {
                let text = mark.text.as_bytes();
                if mark.first {
                    self.at != At::Within && trimmed(&self.tail) == text
                } else {
                    self.tail.ends_with(text)
                }
            };
            if let Some(mark) = marks.of.marks.iter().position(complete) {
                return Some((mark, index + 1));
            }
            self.go_on();
        }
        None
    }

    fn go_on(&mut self) {
        let marks = self.marks.clone();
        if let At::First { aside } = self.at {
            let text = trimmed(&self.tail);
            let aside = marks.of.aside.as_ref().filter(|_| aside).map(|aside| aside.begin.as_bytes());
            if aside == Some(text) {
                self.tail.clear();
                self.at = At::Aside;
            } else if !marks.of.marks.iter().any(|mark| mark.first && mark.text.as_bytes().starts_with(text))
                && !aside.is_some_and(|begin| begin.starts_with(text))
            {
                // The beginning of an empty text is nothing: white space stays at the beginning.
                self.at = At::Within;
            }
        }
        if self.at == At::Within || trimmed(&self.tail).is_empty() {
            self.keep(marks.longest);
        }
    }

    fn keep(&mut self, bytes: usize) {
        let drop = self.tail.len().saturating_sub(bytes);
        self.tail.drain(..drop);
    }
}

/// A text without what may stand before a mark that is the first: white space, and what is between two calls.
fn trimmed(text: &[u8]) -> &[u8] {
    let at = text.iter().position(|byte| !byte.is_ascii_whitespace() && !b";,]".contains(byte));
    &text[at.unwrap_or(text.len())..]
}
