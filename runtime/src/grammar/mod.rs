//! Grammars that a text is held to: from a JSON schema, a regular expression or a grammar in Lark's syntax to the tokens that may come next. What the
//! tokens are is given as bytes; models and devices are not known here.

mod allowed;
mod marked;
mod source;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as State, ParserFactory};

pub use allowed::Allowed;
use allowed::take;
pub use marked::{Aside, Mark, Marked};
use marked::{Compiled, Follower};
pub use source::{Source, json_rule};

/// Stack of the thread that compiles a grammar.
const STACK: usize = 64 << 20;
/// Grammars that are kept: clients send the same tools with each turn of a conversation.
const KEPT: usize = 8;

/// The tokens of a model as a text is made of them.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// The bytes of each token, by its id; none: it never comes.
    pub words: Vec<Vec<u8>>,
    /// The tokens that are no text, but known by their names.
    pub special: Vec<u32>,
    /// The tokens that end a text.
    pub ends: Vec<u32>,
}

type Made = Result<ParserFactory, String>;

/// What compiles grammars for one model. Its tables are made when the first one is compiled.
pub struct Grammars {
    factory: LazyLock<Made, Box<dyn FnOnce() -> Made + Send>>,
    /// The latest first.
    recent: Mutex<VecDeque<(Source, Grammar)>>,
}

/// A grammar, compiled for one model's tokens, or a rule.
#[derive(Clone)]
pub struct Grammar {
    begin: Begin,
}

/// A rule of one's own for what a text may go on with.
pub trait Rule: Send {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// The text cannot go on: the message says why.
    fn allowed(&mut self) -> Result<Allowed>;

    /// Goes on with a token that was chosen.
    ///
    /// # Errors
    /// As of [`Rule::allowed`].
    fn take(&mut self, token: u32) -> Result<()>;
}

type BeginRule = dyn Fn() -> Box<dyn Rule> + Send + Sync;

#[derive(Clone)]
enum Begin {
    Held(Arc<Mutex<State>>),
    Marked(Arc<Compiled>),
    Rule(Arc<BeginRule>),
}

/// A text that is held to a grammar, so far.
pub struct Matcher {
    text: Text,
}

enum Text {
    Held(Box<State>),
    Marked(Box<Follower>),
    Rule(Box<dyn Rule>),
}

impl Grammars {
    /// `words` is called once, on first use.
    pub fn new(words: impl FnOnce() -> Result<Words> + Send + 'static) -> Grammars {
        let make = move || words().and_then(factory).map_err(|error| format!("{error:#}"));
        Grammars { factory: LazyLock::new(Box::new(make)), recent: Mutex::default() }
    }

    /// Compiles a grammar. The first time takes up to a second.
    ///
    /// # Errors
    /// A grammar that is not understood or too large, or a tokenizer whose tokens are not known as bytes.
    pub fn compile(&self, source: &Source) -> Result<Grammar> {
        let known = {
            let mut recent = self.recent();
            let at = recent.iter().position(|(known, _)| known == source);
            at.and_then(|at| recent.remove(at)).map(|known| {
                recent.push_front(known.clone());
                known.1
            })
        };
        if let Some(grammar) = known {
            return Ok(grammar);
        }
        let grammar = self.compile_anew(source)?;
        let mut recent = self.recent();
        recent.push_front((source.clone(), grammar.clone()));
        recent.truncate(KEPT);
        Ok(grammar)
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(Source, Grammar)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile_anew(&self, source: &Source) -> Result<Grammar> {
        let factory = self.factory.as_ref().map_err(|message| anyhow!("{message}"))?;
        let top = source.top()?;
        // What is nested deeply takes more stack than the threads of a server have.
        let state = std::thread::scope(|scope| {
            let compile = || State::new(factory.create_parser(top));
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            let thread = thread.context("cannot start a thread that compiles the grammar")?;
            thread.join().map_err(|_| anyhow!("it cannot be compiled: give a simpler one"))
        })?;
        if let Some(message) = state.get_error() {
            bail!("{}", message.trim());
        }
        let begin = match source {
            Source::Marked(marked) => {
                Begin::Marked(Arc::new(Compiled::new(marked.clone(), state, factory.tok_env().clone())?))
            }
            _ => Begin::Held(Arc::new(Mutex::new(state))),
        };
        Ok(Grammar { begin })
    }
}

/// The tables of a vocabulary.
fn factory(words: Words) -> Result<ParserFactory> {
    let Words { mut words, special, mut ends } = words;
    ends.retain(|&end| (end as usize) < words.len());
    let end = *ends.first().context(
        "the model's files name no token that ends a text: an answer that is held to a grammar has no end. Give eos_token_id in generation_config.json",
    )?;
    for token in special {
        if let Some(word) = words.get_mut(token as usize) {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
    }
    let count = u32::try_from(words.len()).context("the vocabulary is too large")?;
    let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

impl Grammar {
    /// Holds each text to a rule, which `begin` gives at its beginning.
    pub fn of_rule(begin: impl Fn() -> Box<dyn Rule> + Send + Sync + 'static) -> Grammar {
        Grammar { begin: Begin::Rule(Arc::new(begin)) }
    }

    /// The beginning of a text.
    pub fn begin(&self) -> Matcher {
        let text = match &self.begin {
            // Nothing is done to it but to copy it.
            Begin::Held(begin) => {
                Text::Held(Box::new(begin.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()))
            }
            Begin::Marked(marks) => Text::Marked(Box::new(Follower::new(marks.clone()))),
            Begin::Rule(begin) => Text::Rule(begin()),
        };
        Matcher { text }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

/// Whether they were compiled as one.
impl PartialEq for Grammar {
    fn eq(&self, other: &Grammar) -> bool {
        match (&self.begin, &other.begin) {
            (Begin::Held(one), Begin::Held(other)) => Arc::ptr_eq(one, other),
            (Begin::Marked(one), Begin::Marked(other)) => Arc::ptr_eq(one, other),
            (Begin::Rule(one), Begin::Rule(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Matcher {
    /// The tokens that may come next: one that ends the text where it is complete.
    ///
    /// # Errors
    /// A grammar that needs too much to go on.
    pub fn allowed(&mut self) -> Result<Allowed> {
        match &mut self.text {
            Text::Held(state) => Allowed::of(state),
            Text::Marked(text) => text.allowed(),
            Text::Rule(rule) => rule.allowed(),
        }
    }

    /// Goes on with a token that was chosen.
    ///
    /// # Errors
    /// One that is not allowed.
    pub fn take(&mut self, token: u32) -> Result<()> {
        match &mut self.text {
            Text::Held(state) => take(state, token),
            Text::Marked(text) => text.take(token),
            Text::Rule(rule) => rule.take(token),
        }
    }
}
