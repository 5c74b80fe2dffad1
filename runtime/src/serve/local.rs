//! A conversation without HTTP: the same slots, prompts and answers, in this process.

use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::answer::{Finish, Generation, Part};
use super::app::App;
use super::ask::{Ask, Settings, limit};
use super::conversation::{Conversation, messages};
use super::engine::{Inbox, Phase, connect};
use super::fields::Fields;
use super::problem::Problem;
use super::run::{Subject, app};

/// A model that is asked in this process.
pub struct Local {
    pub(super) app: Arc<App>,
    pub(super) runtime: Runtime,
    interrupted: Arc<Notify>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a model says, as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The answer.
    Text(String),
    /// What the model thinks before it.
    Thought(String),
}

/// How an answer came to its end, and what it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// It was interrupted.
    pub interrupted: bool,
    /// It has as many tokens as it may.
    pub cut: bool,
    /// Tokens of the prompt, and those of them that were there from the turn before.
    pub prompt: (usize, usize),
    /// Tokens of the answer.
    pub tokens: usize,
    /// Milliseconds for the prompt, and for the answer.
    pub milliseconds: (f64, f64),
}

impl Local {
    /// Starts the thread that runs the model, and waits until it can be asked. `subject` is called while that is loaded.
    ///
    /// # Errors
    /// A model that cannot be loaded.
    pub fn start(
        subject: impl FnOnce() -> Result<Subject>,
        load: impl FnOnce(&Inbox) -> Result<()> + Send + 'static,
    ) -> Result<Local> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (engine, inbox) = connect();
        let thread = std::thread::Builder::new().name("slots".into()).spawn(move || {
            let done = load(&inbox);
            if let Err(error) = &done {
                inbox.fail(format!("{error:#}"));
            }
            done
        })?;
        let mut local = Local {
            app: Arc::new(app(subject()?, engine.clone())),
            runtime,
            interrupted: Arc::new(Notify::new()),
            thread: Some(thread),
        };
        match local.runtime.block_on(engine.loaded()) {
            Phase::Ready => Ok(local),
            // The thread's own error says more.
            Phase::Loading | Phase::Failed(_) => match local.thread.take().map(JoinHandle::join) {
                Some(Ok(Err(error))) => Err(error),
                _ => Err(anyhow!("the thread that loads the model has ended")),
            },
        }
    }

    /// Runs `work` beside everything else: whatever waits for a signal, say.
    pub fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Ends the answer that is being given, if there is one, when its waiters are notified.
    pub fn interrupter(&self) -> Arc<Notify> {
        self.interrupted.clone()
    }

    /// Answers the messages, which are as in OpenAI's chat API. `settings` are fields of it.
    ///
    /// # Errors
    /// What a server would refuse, and a fault of the device.
    pub fn answer(
        &self,
        conversation: &[Value],
        settings: &Map<String, Value>,
        mut take: impl FnMut(Said),
    ) -> Result<Outcome> {
        let served = &self.app.served;
        let refused = |problem: Problem| anyhow!("{}", problem.message);
        let mut fields = Fields::within(Value::Object(settings.clone()), "settings").map_err(refused)?;
        let limit = limit(&mut fields, &["max_tokens"]).map_err(refused)?;
        let mut settings = Settings { limit, ..Settings::take(&mut fields, served).map_err(refused)? };
        settings.choices = 1;
        settings.stop_texts.extend(served.chat_stops.iter().cloned());
        let mut conversation =
            Conversation { messages: messages(conversation.to_vec()).map_err(refused)?, ..Conversation::default() };
        conversation.take_variables(fields).map_err(refused)?;
        let prompt = conversation.prompt(served).map_err(refused)?;
        let shape = served.shape(&prompt, &conversation);
        let ask = Ask { prompt: prompt.tokens, settings };
        self.runtime.block_on(async {
            let mut generation = Generation::start(&self.app, &ask, &shape).await.map_err(refused)?;
            let (mut interrupted, mut cut) = (false, false);
            let mut interrupt = std::pin::pin!(self.interrupted.notified());
            loop {
                let progress = tokio::select! {
                    progress = generation.next() => progress.map_err(refused)?,
                    () = &mut interrupt => {
                        interrupted = true;
                        None
                    }
                };
                let Some(progress) = progress else { break };
                for part in progress.parts {
                    match part {
                        Part::Text(text) => take(Said::Text(text)),
                        Part::Reasoning(text) => take(Said::Thought(text)),
                        // There are no tools.
                        Part::Call { .. } | Part::Arguments { .. } => {}
                    }
                }
                cut = progress.finish == Some(Finish::Length);
            }
            let summary = generation.summary();
            Ok(Outcome {
                interrupted,
                cut,
                prompt: (summary.prompt, summary.cached),
                tokens: summary.completion,
                milliseconds: summary.milliseconds(),
            })
        })
    }

    /// Checks settings without an answer.
    ///
    /// # Errors
    /// A field that is not known, or that is out of its range.
    pub fn check(&self, settings: &Map<String, Value>) -> Result<()> {
        let refused = |problem: Problem| anyhow!("{}", problem.message);
        let mut fields = Fields::within(Value::Object(settings.clone()), "settings").map_err(refused)?;
        limit(&mut fields, &["max_tokens"]).map_err(refused)?;
        Settings::take(&mut fields, &self.app.served).map_err(refused)?;
        Conversation::default().take_variables(fields).map_err(refused)
    }

    /// Ends the thread that runs the model.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn stop(mut self) -> Result<()> {
        self.app.engine.stop();
        let thread = self.thread.take().context("the thread was started")?;
        thread.join().map_err(|_| anyhow!("the thread that runs the model has ended"))?
    }
}
