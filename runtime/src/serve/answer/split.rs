//! The text of an answer, taken apart as it comes: what the model thinks, what it says, and the calls that it makes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::envelope::{Envelope, JsonValue, Piece};
use super::functions::Function;
use crate::generate::chat::ChatTemplate;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What it says.
    Text(String),
    /// What it thinks before that.
    Reasoning(String),
    /// A call begins.
    Call {
        /// Which of the answer's calls.
        index: usize,
        /// The function.
        name: String,
    },
    /// More of the arguments of a call, as the model writes them.
    Arguments {
        /// Which of the answer's calls.
        index: usize,
        /// What is added.
        text: String,
    },
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{…}</tool_call>`: Qwen, Hermes, SmolLM.
    Tags,
    /// The whole answer, or what comes after `<|python_tag|>`: Llama 3.
    Whole,
    /// `[TOOL_CALLS][{…}]` or `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Marks,
    /// `<tool_call><function=name><parameter=key>…</parameter></function></tool_call>`: Qwen 3 Coder.
    Functions,
}

impl CallFormat {
    /// The one that a template writes.
    pub fn of(template: &ChatTemplate) -> Option<CallFormat> {
        // A template with functions has tags around them.
        if template.mentions("<function=") && template.mentions("<parameter=") {
            return Some(CallFormat::Functions);
        }
        let marked = |format: &CallFormat| template.mentions(format.marks()[0]);
        [CallFormat::Tags, CallFormat::Marks, CallFormat::Whole].into_iter().find(marked)
    }

    /// What calls begin with.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            CallFormat::Tags => &["<tool_call>"],
            CallFormat::Whole => &["<|python_tag|>"],
            CallFormat::Marks => &["[TOOL_CALLS]"],
            CallFormat::Functions => &["<tool_call>", "<function="],
        }
    }
}

/// The calls that an answer may have.
#[derive(Clone, Debug)]
pub struct Calls {
    pub format: CallFormat,
    /// The schemas of the tools' arguments, by name.
    pub tools: Arc<BTreeMap<String, Value>>,
}

/// What to look for in an answer.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Whether it begins within what the model thinks.
    pub thinks: bool,
    /// Whether it goes on with the text of the prompt.
    pub goes_on: bool,
    /// Whether the model may think.
    pub may_think: bool,
    /// The calls, where there are tools.
    pub calls: Option<Calls>,
}

const THINK: [&str; 2] = ["<think>", "</think>"];
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const END_OF_CALL: &str = "</tool_call>";

/// Takes an answer apart.
pub struct Splitter {
    shape: Shape,
    at: At,
    /// Text that may become a mark, or a call.
    held: String,
    calls: usize,
}

enum At {
    /// Nothing but white space so far.
    Start,
    Thinking,
    /// After it, before the first letter.
    Between,
    Text,
    /// In an object that may be a call; `bare`: with no mark before it.
    Object {
        envelope: Envelope,
        bare: bool,
    },
    /// After Mistral's mark: the brackets of a list, or a name.
    Name,
    /// In the arguments after a name.
    Arguments(JsonValue),
    /// In a call whose parameters are tags.
    Function(Function),
    /// After a call.
    After,
}

impl Splitter {
    pub fn new(shape: Shape) -> Splitter {
        let at = if shape.thinks { At::Thinking } else { At::Start };
        Splitter { shape, at, held: String::new(), calls: 0 }
    }

    /// Whether a special token is a mark of the answer's shape, and so a part of its text.
    pub fn reads(&self, special: &str) -> bool {
        let thinks = (self.shape.may_think || self.shape.thinks) && THINK.contains(&special);
        let calls = self.shape.calls.as_ref().is_some_and(|calls| calls.format.marks().contains(&special));
        thinks || calls || self.shape.calls.is_some() && [ARGS, CALL_ID, END_OF_CALL].contains(&special)
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether it is in a call.
    pub fn calling(&self) -> bool {
        match &self.at {
            At::Object { envelope, bare } => !bare || envelope.begun(),
            At::Name | At::Arguments(_) | At::Function(_) => true,
            At::Start | At::Thinking | At::Between | At::Text | At::After => false,
        }
    }

    /// Whether the model thinks at the moment.
    pub fn thinking(&self) -> bool {
        matches!(self.at, At::Thinking)
    }

    /// Takes a piece of the text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        self.held.push_str(text);
        while self.go_on(&mut parts) {}
        parts
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return Vec::new();
        }
        match &self.at {
            At::Thinking => vec![Part::Reasoning(held)],
            At::Object { envelope, .. } if envelope.begun() => Vec::new(),
            At::Function(function) if function.begun() => Vec::new(),
            At::Arguments(_) | At::After => Vec::new(),
            At::Name => vec![Part::Text(format!("{}{held}", CallFormat::Marks.marks()[0]))],
            _ => vec![Part::Text(held)],
        }
    }

    /// Takes what is known from what is held; whether there may be more.
    fn go_on(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.at {
            At::Start => self.start(),
            At::Thinking => self.think(parts),
            At::Between => {
                self.held = self.held.trim_start().to_owned();
                if !self.held.is_empty() {
                    self.at = At::Start;
                    self.shape.may_think = false;
                }
                !self.held.is_empty()
            }
            At::Text => self.text(parts),
            At::Object { .. } => self.object(parts),
            At::Name => self.name(parts),
            At::Arguments(_) => self.arguments(parts),
            At::Function(_) => self.function(parts),
            At::After => self.after(),
        }
    }

    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if self.shape.may_think {
            if let Some(rest) = text.strip_prefix(THINK[0]) {
                self.held = rest.to_owned();
                self.at = At::Thinking;
                return true;
            }
            if THINK[0].starts_with(text) {
                return false;
            }
        }
        let whole = self.shape.calls.as_ref().is_some_and(|calls| calls.format == CallFormat::Whole);
        if whole && text.starts_with('{') {
            self.at = At::Object { envelope: Envelope::default(), bare: true };
        } else {
            self.at = At::Text;
        }
        true
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        if let Some(at) = self.held.find(THINK[1]) {
            push_text(parts, &self.held[..at], Part::Reasoning);
            self.held.drain(..at + THINK[1].len());
            self.at = At::Between;
            return true;
        }
        let known = self.held.len() - beginning(&self.held, THINK[1]);
        push_text(parts, &self.held[..known], Part::Reasoning);
        self.held.drain(..known);
        false
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(format) = self.shape.calls.as_ref().map(|calls| calls.format) else {
            push_text(parts, &std::mem::take(&mut self.held), Part::Text);
            return false;
        };
        let found = format.marks().iter().filter_map(|mark| Some((self.held.find(mark)?, mark)));
        if let Some((at, mark)) = found.min_by_key(|(at, _)| *at) {
            push_text(parts, &self.held[..at], Part::Text);
            match format {
                CallFormat::Marks => {
                    self.held.drain(..at + mark.len());
                    self.at = At::Name;
                }
                CallFormat::Tags | CallFormat::Whole => {
                    // The mark stays with what it begins: together they are text if no call comes of them.
                    self.held.drain(..at);
                    self.at = At::Object { envelope: Envelope::default(), bare: false };
                }
                CallFormat::Functions => {
                    self.held.drain(..at);
                    self.at = At::Function(Function::default());
                }
            }
            return true;
        }
        let begun = format.marks().iter().map(|mark| beginning(&self.held, mark)).max().unwrap_or(0);
        let known = self.held.len() - begun;
        push_text(parts, &self.held[..known], Part::Text);
        self.held.drain(..known);
        false
    }

    /// Reads the held object from its beginning, or from where it was, once it has begun.
    fn object(&mut self, parts: &mut Vec<Part>) -> bool {
        let At::Object { envelope, bare } = &mut self.at else { return false };
        let begun = envelope.begun();
        let format = self.shape.calls.as_ref().map(|calls| calls.format);
        let mark = format.filter(|_| !*bare && !begun).map_or("", |format| format.marks()[0]);
        let skipped = if self.held.starts_with(mark) { mark.len() } else { 0 };
        if !begun {
            // What is held is read again: none of it has been given.
            *envelope = Envelope::default();
        }
        let (mut pieces, mut used) = (Vec::new(), self.held.len());
        for (at, letter) in self.held[skipped..].char_indices() {
            envelope.push(letter, &mut pieces);
            if envelope.is_done() || envelope.is_broken() {
                used = skipped + at + letter.len_utf8();
                break;
            }
        }
        let (done, broken, begun) = (envelope.is_done(), envelope.is_broken(), envelope.begun());
        let named = pieces.iter().find_map(|piece| match piece {
            Piece::Name(name) => Some(name),
            Piece::Arguments(_) => None,
        });
        let known = |name: &String| self.shape.calls.as_ref().is_some_and(|calls| calls.tools.contains_key(name));
        let unknown = *bare && named.is_some_and(|name| !known(name));
        if unknown || broken && !begun {
            push_text(parts, &std::mem::take(&mut self.held), Part::Text);
            // A whole answer that is no call stays text to its end.
            if *bare {
                self.shape.calls = None;
            }
            self.at = At::Text;
            return false;
        }
        for piece in pieces {
            match piece {
                Piece::Name(name) => {
                    self.calls += 1;
                    parts.push(Part::Call { index: self.calls - 1, name });
                }
                Piece::Arguments(text) => push_arguments(parts, self.calls - 1, &text),
            }
        }
        if begun {
            self.held.drain(..used);
        }
        if done || broken {
            self.at = At::After;
        }
        done || broken
    }

    fn name(&mut self, parts: &mut Vec<Part>) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if let Some(list) = text.strip_prefix('[') {
            self.held = list.to_owned();
            self.at = At::Object { envelope: Envelope::default(), bare: false };
            return true;
        }
        let Some(at) = self.held.find(ARGS) else { return false };
        let name = self.held[..at].split(CALL_ID).next().unwrap_or_default().trim().to_owned();
        self.held.drain(..at + ARGS.len());
        self.calls += 1;
        parts.push(Part::Call { index: self.calls - 1, name });
        self.at = At::Arguments(JsonValue::default());
        true
    }

    fn arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let At::Arguments(value) = &mut self.at else { return false };
        let mut used = self.held.len();
        for (at, letter) in self.held.char_indices() {
            if !value.push(letter) {
                used = at;
            } else if value.ended() {
                used = at + letter.len_utf8();
            }
            if value.ended() {
                break;
            }
        }
        let ended = value.ended();
        push_arguments(parts, self.calls - 1, &self.held[..used]);
        self.held.drain(..used);
        if ended {
            self.at = At::After;
        }
        ended
    }

    fn function(&mut self, parts: &mut Vec<Part>) -> bool {
        let (At::Function(function), Some(calls)) = (&mut self.at, &self.shape.calls) else { return false };
        let mut pieces = Vec::new();
        let begun = function.begun();
        let more = function.read(&mut self.held, &calls.tools, &mut pieces);
        for piece in pieces {
            match piece {
                Piece::Name(name) => {
                    self.calls += 1;
                    parts.push(Part::Call { index: self.calls - 1, name });
                }
                Piece::Arguments(text) => push_arguments(parts, self.calls - 1, &text),
            }
        }
        if function.is_done() {
            self.at = At::After;
        } else if function.is_broken() {
            if !begun {
                // What was no call is text, its first letter at least: no mark is found in it again.
                let first = self.held.chars().next().map_or(0, char::len_utf8);
                push_text(parts, &self.held[..first], Part::Text);
                self.held.drain(..first);
            }
            self.at = At::Text;
        }
        more
    }

    /// After a call: its end mark, or what stands between it and the next.
    fn after(&mut self) -> bool {
        let text = self.held.trim_start_matches(|c: char| c.is_whitespace() || ";,]".contains(c));
        let Some(Calls { format, .. }) = &self.shape.calls else { return false };
        if text.is_empty() {
            return false;
        }
        if let Some(rest) = text.strip_prefix(END_OF_CALL) {
            self.held = rest.to_owned();
            return true;
        }
        if END_OF_CALL.starts_with(text) {
            return false;
        }
        if text.starts_with('{') && [CallFormat::Whole, CallFormat::Marks].contains(format) {
            self.held = text.to_owned();
            self.at = At::Object { envelope: Envelope::default(), bare: *format == CallFormat::Whole };
        } else {
            self.held = text.to_owned();
            self.at = At::Text;
        }
        true
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str, part: fn(String) -> Part) {
    if !text.is_empty() {
        parts.push(part(text.to_owned()));
    }
}

fn push_arguments(parts: &mut Vec<Part>, index: usize, text: &str) {
    match parts.last_mut() {
        Some(Part::Arguments { index: same, text: before }) if *same == index => before.push_str(text),
        _ if text.is_empty() => {}
        _ => parts.push(Part::Arguments { index, text: text.to_owned() }),
    }
}

/// How many bytes at the end of a text may be the beginning of a mark.
fn beginning(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.is_char_boundary(length) && text.ends_with(&mark[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
