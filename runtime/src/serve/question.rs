//! Questions to a model in this process, by the fields of the HTTP API, many at once; what comes of each is told to a function of its own.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tokio::task::AbortHandle;

use super::answer::{Finish, Generation, Part, Progress, Shape, TokenScores};
use super::ask::{Ask, Settings, limit, scores};
use super::conversation::{Conversation, messages, tools};
use super::engine::Phase;
use super::fields::Fields;
use super::forms::Form;
use super::local::Local;
use super::openai::chat;
use super::problem::{Kind, Problem};
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;
use crate::sampling::check_prompt;

/// A prompt and how it is to go on.
#[derive(Clone)]
pub struct Question {
    ask: Ask,
    shape: Shape,
    warnings: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What is asked cannot be answered: the message says why.
    Asked(String),
    /// The model cannot answer: the message says why.
    Model(String),
}

/// What has come of a question.
#[derive(Clone, Debug)]
pub enum Came {
    /// More of one of its answers.
    Piece(Piece),
    /// All answers have ended.
    Ended(Taken),
    /// There is no more of an answer.
    Failed(Refusal),
}

/// More of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Which of the answers.
    pub choice: usize,
    /// Its tokens, one that ends it among them.
    pub tokens: Vec<u32>,
    /// What it adds to the answer.
    pub parts: Vec<Part>,
    /// How likely its tokens were, where that was asked for.
    pub scores: Vec<TokenScores>,
    /// Why the answer has ended, with this.
    pub finish: Option<Finish>,
}

/// What all answers to a question took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// Tokens of the prompt, and those of them that were there from another request.
    pub prompt: (usize, usize),
    /// Tokens of the answers.
    pub tokens: usize,
    /// What fixed the draws.
    pub seed: u64,
    /// Milliseconds for the prompt, waiting included, and for the answers.
    pub milliseconds: (f64, f64),
}

/// A question that is being answered. It is taken back when this is dropped.
pub struct Answering(AbortHandle);

impl Question {
    /// The tokens of its prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.ask.prompt
    }

    /// How many answers it wants.
    pub fn choices(&self) -> usize {
        self.ask.settings.choices
    }

    /// What fixes the draws.
    pub fn seed(&self) -> u64 {
        self.ask.settings.sampling.seed
    }

    /// What of it has no effect.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Piece {
    /// Takes what comes after it of the same answer.
    pub fn append(&mut self, next: Piece) {
        self.tokens.extend(next.tokens);
        self.parts.extend(next.parts);
        self.scores.extend(next.scores);
        self.finish = next.finish;
    }
}

impl Local {
    /// A text to go on with, by its tokens. `fields` are those of `/v1/completions` but for the prompt, and `response_format` of a chat.
    ///
    /// # Errors
    /// A field that is not known, or that is out of its range; a form that is not understood.
    pub fn completion(&self, prompt: Vec<u32>, fields: Map<String, Value>) -> Result<Question, Refusal> {
        self.check_prompt(&prompt)?;
        let (served, mut fields) = (&self.app.served, Fields::new(fields));
        let (limit, scores) = (limit(&mut fields, &["max_tokens"])?, scores(&mut fields, "logprobs")?);
        let form = Form::of_response(&mut fields, "response_format")?;
        let form = Form::only(form.into_iter().chain(Form::of_extras(&mut fields)?))?;
        let mut settings = Settings { limit, scores, ..Settings::take(&mut fields, served)? };
        if let Some(name) = fields.left().first() {
            return Err(Refusal::Asked(format!("`{name}` is not known")));
        }
        if let Some(form) = form {
            settings.hold(form, served)?;
        }
        let shape = Shape { goes_on: true, ..Shape::default() };
        Ok(Question { ask: Ask { prompt, settings }, shape, warnings: Vec::new() })
    }

    /// A conversation to answer: the fields of `/v1/chat/completions`. Those that have no effect are warned of.
    ///
    /// # Errors
    /// A field that is out of its range, a form that is not understood, messages that the chat template refuses.
    pub fn chat(&self, fields: Map<String, Value>) -> Result<Question, Refusal> {
        let (ask, shape, warnings) = chat::question(Fields::new(fields), &self.app.served)?;
        self.check_prompt(&ask.prompt)?;
        Ok(Question { ask, shape, warnings })
    }

    /// The text and the tokens that the chat template makes of messages. `begins`: with the start of the answer; else as they stand.
    ///
    /// # Errors
    /// A model without a template, messages that it refuses.
    pub fn rendered(
        &self,
        conversation: Vec<Value>,
        functions: Vec<Value>,
        variables: Map<String, Value>,
        begins: bool,
    ) -> Result<(String, Vec<u32>), Refusal> {
        let served = &self.app.served;
        let mut conversation = Conversation { messages: messages(conversation)?, ..Conversation::default() };
        conversation.take_tools(tools(functions)?, None)?;
        if begins {
            conversation.take_variables(Fields::new(variables))?;
            let prompt = conversation.prompt(served)?;
            return Ok((prompt.text, prompt.tokens));
        }
        let Some(template) = &served.template else {
            return Err(Refusal::Asked(format!("{} has no chat template", served.name)));
        };
        let mut variables = variables;
        if !conversation.tools.is_empty() {
            variables.insert("tools".into(), json!(conversation.tools));
        }
        let asked = |error: anyhow::Error| Refusal::Asked(format!("{error:#}"));
        let text = template.render_json(json!(conversation.messages), false, variables).map_err(asked)?;
        let tokens = served.tokenizer.encode(&text, false).map_err(asked)?;
        Ok((text, tokens))
    }

    /// Puts a question into the queue, however long that is. `take` is given what comes of it, in a thread of its own kind: it is not to wait.
    pub fn ask(&self, question: Question, mut take: impl FnMut(Came) + Send + 'static) -> Answering {
        let app = self.app.clone();
        self.until_dropped(async move {
            let Question { ask, shape, .. } = question;
            let mut generation = match Generation::start_patiently(&app, &ask, &shape).await {
                Ok(generation) => generation,
                Err(problem) => return take(Came::Failed(problem.into())),
            };
            loop {
                match generation.next().await {
                    Ok(Some(progress)) => take(Came::Piece(progress.into())),
                    Ok(None) => break,
                    Err(problem) => return take(Came::Failed(problem.into())),
                }
            }
            let summary = generation.summary();
            take(Came::Ended(Taken {
                prompt: (summary.prompt, summary.cached),
                tokens: summary.completion,
                seed: summary.seed,
                milliseconds: summary.milliseconds(),
            }));
        })
    }

    /// The logits after each of the tokens, `[tokens, vocabulary]`, once the questions before them are answered.
    ///
    /// # Errors
    /// No tokens, more than the context holds, one beyond the vocabulary; a fault of the device.
    pub fn logits(&self, tokens: Vec<u32>, take: impl FnOnce(Result<Vec<f32>>) + Send + 'static) -> Answering {
        let engine = self.app.engine.clone();
        self.until_dropped(async move { take(engine.logits(tokens).await) })
    }

    /// Runs `work` beside everything else.
    pub(super) fn until_dropped(&self, work: impl Future<Output = ()> + Send + 'static) -> Answering {
        Answering(self.runtime.spawn(work).abort_handle())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.app.served.tokenizer
    }

    /// Positions of a sequence.
    pub fn context(&self) -> usize {
        self.app.served.context
    }

    /// Sequences side by side.
    pub fn slots(&self) -> usize {
        self.app.served.slots
    }

    /// What answers call the model.
    pub fn name(&self) -> &str {
        &self.app.served.name
    }

    /// Where it runs, in a few words.
    pub fn device(&self) -> &str {
        &self.app.served.device
    }

    /// What the model says of how its texts are made.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.app.served.defaults
    }

    /// Whether it has a chat template.
    pub fn chats(&self) -> bool {
        self.app.served.template.is_some()
    }

    /// Why the model cannot be asked any more; none: it can.
    pub fn failure(&self) -> Option<String> {
        match self.app.engine.phase() {
            Phase::Failed(message) => Some(message),
            Phase::Loading | Phase::Ready => None,
        }
    }

    /// Refuses tokens that no question may have.
    ///
    /// # Errors
    /// None, more than the context holds, one beyond the vocabulary.
    pub fn check_prompt(&self, tokens: &[u32]) -> Result<(), Refusal> {
        let (count, context) = (tokens.len(), self.context());
        if count > context {
            return Err(Refusal::Asked(format!(
                "the prompt has {count} tokens and the context holds {context}: shorten it, or load the model with a longer context"
            )));
        }
        let asked = |error: anyhow::Error| Refusal::Asked(format!("{error:#}"));
        check_prompt(tokens, self.app.served.tokenizer.vocabulary_size(), context).map_err(asked)
    }

    /// Ends the thread that runs the model, whatever it does.
    pub fn end(&self) {
        self.app.engine.stop();
    }
}

impl Refusal {
    /// The same, of what it is said of.
    pub fn of(self, what: &str) -> Refusal {
        match self {
            Refusal::Asked(message) => Refusal::Asked(format!("{what}: {message}")),
            Refusal::Model(message) => Refusal::Model(format!("{what}: {message}")),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<Progress> for Piece {
    fn from(progress: Progress) -> Piece {
        let Progress { choice, tokens, parts, scores, finish } = progress;
        Piece { choice, tokens, parts, scores: scores.into_iter().collect(), finish }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        match problem.kind {
            Kind::Busy | Kind::Fault | Kind::Unavailable => Refusal::Model(problem.message),
            _ => Refusal::Asked(problem.message),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Asked(message) | Refusal::Model(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Refusal {}
