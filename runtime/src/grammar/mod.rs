//! Grammars that a text is held to: from a JSON schema, a regular expression or a grammar in Lark's syntax to the tokens that may come next. What the
//! tokens are is given as bytes; models and devices are not known here.

mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as State, ParserFactory};

pub use source::{Source, json_rule};

/// Stack of the thread that compiles a grammar.
const STACK: usize = 64 << 20;

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
}

/// A grammar, compiled for one model's tokens.
#[derive(Clone)]
pub struct Grammar {
    begin: Arc<Mutex<State>>,
}

/// A text that is held to a grammar, so far.
pub struct Matcher {
    state: State,
}

/// The tokens that may come next.
pub struct Allowed(SimpleVob);

impl Grammars {
    /// `words` is called once, on first use.
    pub fn new(words: impl FnOnce() -> Result<Words> + Send + 'static) -> Grammars {
        let make = move || words().and_then(factory).map_err(|error| format!("{error:#}"));
        Grammars { factory: LazyLock::new(Box::new(make)) }
    }

    /// Compiles a grammar. The first time takes up to a second.
    ///
    /// # Errors
    /// A grammar that is not understood or too large, or a tokenizer whose tokens are not known as bytes.
    pub fn compile(&self, source: &Source) -> Result<Grammar> {
        let factory = self.factory.as_ref().map_err(|message| anyhow!("{message}"))?;
        let top = source.top()?;
        // What is nested deeply takes more stack than the threads of a server have.
        let state = std::thread::scope(|scope| {
            let compile = || State::new(factory.create_parser(top));
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            let thread = thread.context("cannot start a thread that compiles the grammar")?;
            thread.join().map_err(|_| anyhow!("it cannot be compiled: give a simpler one"))
        })?;
        match state.get_error() {
            Some(message) => bail!("{}", message.trim()),
            None => Ok(Grammar { begin: Arc::new(Mutex::new(state)) }),
        }
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
    /// The beginning of a text.
    pub fn begin(&self) -> Matcher {
        // Nothing is done to it but to copy it.
        let begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
        Matcher { state: begin.deep_clone() }
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
        Arc::ptr_eq(&self.begin, &other.begin)
    }
}

impl Matcher {
    /// The tokens that may come next: one that ends the text where it is complete.
    ///
    /// # Errors
    /// A grammar that needs too much to go on.
    pub fn allowed(&mut self) -> Result<Allowed> {
        let allowed = self.state.compute_mask_or_eos().map_err(|error| anyhow!("the grammar: {error:#}"))?;
        ensure!(!allowed.is_zero(), "the grammar allows no token of this model here: change the grammar");
        Ok(Allowed(allowed))
    }

    /// Goes on with a token that was chosen.
    ///
    /// # Errors
    /// One that is not allowed.
    pub fn take(&mut self, token: u32) -> Result<()> {
        if self.state.is_stopped() {
            return Ok(());
        }
        let taken = self.state.try_consume_tokens(&[token]).map_err(|error| anyhow!("the grammar: {error:#}"))?;
        ensure!(
            taken == 1,
            "no token that the grammar allows can be chosen here: the model or the request suppresses them all"
        );
        Ok(())
    }
}

impl Allowed {
    /// Whether a token is one of them.
    pub fn has(&self, token: usize) -> bool {
        token < self.0.len() && self.0.get(token)
    }

    /// Takes all others from the choice.
    pub fn apply(&self, logits: &mut [f32]) {
        for (token, logit) in logits.iter_mut().enumerate() {
            if !self.has(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
