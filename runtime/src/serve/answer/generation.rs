//! All answers to a request, as they come or whole.

use std::sync::Arc;
use std::time::Instant;

use super::choice::{Choice, Finish, TokenScores};
use super::split::{Part, Shape};
use crate::serve::app::App;
use crate::serve::ask::{Ask, random};
use crate::serve::engine::{Phase, Running, Update};
use crate::serve::problem::{Kind, Problem};
use crate::slots::{Event, Refused};

/// The answers to a request. They end when this is dropped.
pub struct Generation {
    app: Arc<App>,
    running: Running,
    choices: Vec<Choice>,
    summary: Summary,
    latest: Option<Instant>,
}

/// What has been added to one of the answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub choice: usize,
    /// The tokens since the one before.
    pub tokens: Vec<u32>,
    pub parts: Vec<Part>,
    pub scores: Option<TokenScores>,
    /// Why it has ended, with this.
    pub finish: Option<Finish>,
}

/// What a request has taken.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub prompt: usize,
    /// Tokens of the prompt that were there from another request.
    pub cached: usize,
    /// Tokens of all answers.
    pub completion: usize,
    pub reasoning: usize,
    pub seed: u64,
    pub begin: Instant,
    /// When the prompt had been read.
    pub read: Option<Instant>,
    pub end: Instant,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// An answer as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub scores: Vec<TokenScores>,
    pub finish: Option<Finish>,
}

impl Generation {
    /// Puts a request into the queue.
    pub async fn start(app: &Arc<App>, ask: &Ask, shape: &Shape) -> Result<Generation, Problem> {
        Generation::begin(app, ask, shape, false).await
    }

    /// As [`Generation::start`], however long the queue is.
    pub async fn start_patiently(app: &Arc<App>, ask: &Ask, shape: &Shape) -> Result<Generation, Problem> {
        Generation::begin(app, ask, shape, true).await
    }

    async fn begin(app: &Arc<App>, ask: &Ask, shape: &Shape, patient: bool) -> Result<Generation, Problem> {
        app.check_ready()?;
        let served = &app.served;
        let requests = ask.requests(served.context)?;
        let begin = Instant::now();
        let running = match app.engine.submit(requests, patient).await {
            Ok(running) => running,
            Err(refused @ Refused::Busy) => return Err(Problem::new(Kind::Busy, refused.to_string())),
            Err(Refused::Invalid(message)) => {
                return Err(match app.engine.phase() {
                    Phase::Ready => Problem::invalid(message),
                    Phase::Loading | Phase::Failed(_) => Problem::new(Kind::Unavailable, message),
                });
            }
        };
        app.metrics.requests.inc();
        let choice = |_| Choice::new(&served.tokenizer, &ask.prompt, &ask.settings, shape);
        Ok(Generation {
            app: app.clone(),
            running,
            choices: (0..ask.settings.choices).map(choice).collect(),
            summary: Summary {
                prompt: ask.prompt.len(),
                cached: 0,
                completion: 0,
                reasoning: 0,
                seed: ask.settings.sampling.seed,
                begin,
                read: None,
                end: begin,
            },
            latest: None,
        })
    }

    /// What comes next; none when all answers have ended.
    pub async fn next(&mut self) -> Result<Option<Progress>, Problem> {
        while self.choices.iter().any(|choice| choice.finish().is_none()) {
            let Some(update) = self.running.next().await else {
                return Err(Problem::new(Kind::Unavailable, "the server is stopping: the answer is cut off"));
            };
            if let Some(progress) = self.take(update)? {
                return Ok(Some(progress));
            }
        }
        Ok(None)
    }

    /// What it has taken so far.
    pub fn summary(&self) -> Summary {
        let (completion, reasoning) =
            self.choices.iter().map(Choice::tokens).fold((0, 0), |(all, some), (a, b)| (all + a, some + b));
        Summary { completion, reasoning, ..self.summary }
    }

    /// All answers, whole.
    pub async fn collect(mut self) -> Result<(Vec<Collected>, Summary), Problem> {
        let mut answers = vec![Collected::default(); self.choices.len()];
        while let Some(progress) = self.next().await? {
            let answer = &mut answers[progress.choice];
            answer.scores.extend(progress.scores);
            answer.finish = progress.finish;
            for part in progress.parts {
                match part {
                    Part::Text(text) => answer.text += &text,
                    Part::Reasoning(text) => answer.reasoning += &text,
                    Part::Call { name, .. } => {
                        answer.calls.push(Call { id: self.app.call_id(), name, arguments: String::new() });
                    }
                    Part::Arguments { index, text } => {
                        if let Some(call) = answer.calls.get_mut(index) {
                            call.arguments += &text;
                        }
                    }
                }
            }
        }
        Ok((answers, self.summary()))
    }

    fn take(&mut self, update: Update) -> Result<Option<Progress>, Problem> {
        let Update { choice: index, event, at } = update;
        let Some(choice) = self.choices.get_mut(index).filter(|choice| choice.finish().is_none()) else {
            return Ok(None);
        };
        let broken = |error: anyhow::Error| Problem::fault(format!("{error:#}"));
        self.summary.end = at;
        let (parts, scores) = match event {
            Event::Read { reused } => {
                if self.summary.read.is_none() {
                    self.summary.read = Some(at);
                    self.summary.cached = reused;
                    self.app.metrics.read(self.summary.prompt, reused);
                }
                return Ok(None);
            }
            Event::Scores(scores) => {
                choice.take_scores(scores);
                return Ok(None);
            }
            Event::Token(token) => {
                self.app.metrics.token(at - self.summary.begin, self.latest.replace(at).map(|before| at - before));
                choice.take(token).map_err(broken)?
            }
            Event::Ended(end) => (choice.end(end).map_err(broken)?, None),
            Event::Failed(message) => return Err(Problem::fault(message)),
        };
        let finish = choice.finish().cloned();
        if finish.is_some() {
            self.running.leave(index);
        }
        let empty = parts.is_empty() && scores.is_none() && finish.is_none();
        Ok((!empty).then(|| Progress { choice: index, tokens: choice.fresh(), parts, scores, finish }))
    }
}

impl Summary {
    /// Of this and of another one that came after it.
    pub fn and(self, other: &Summary) -> Summary {
        Summary {
            prompt: self.prompt + other.prompt,
            cached: self.cached + other.cached,
            completion: self.completion + other.completion,
            reasoning: self.reasoning + other.reasoning,
            end: other.end,
            ..self
        }
    }

    /// Milliseconds until the prompt was read, and from then on.
    pub fn milliseconds(&self) -> (f64, f64) {
        let read = self.read.unwrap_or(self.end);
        let between = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        (between(self.begin, read), between(read, self.end))
    }
}

impl App {
    /// A name for a call: Mistral's templates want nine letters or digits.
    pub fn call_id(&self) -> String {
        if self.served.calls == Some(super::split::CallFormat::Marks) {
            return format!("{:09}", random() % 1_000_000_000);
        }
        format!("call_{:016x}", random())
    }
}
