//! The thread that owns the slots, and the way to it: requests go in over one channel, and what comes of each over one of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow};
use tokio::sync::{mpsc, oneshot, watch};

use crate::slots::{Event, Occupant, QUEUE, Refused, Request, Slots, Steps, Ticket};

/// What has become of one of a job's requests, and when.
#[derive(Clone, Debug)]
pub struct Update {
    /// Which of the job's requests.
    pub choice: usize,
    pub event: Event,
    pub at: Instant,
}

/// How far the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The model is being loaded.
    Loading,
    /// Requests are served.
    Ready,
    /// Nothing is served any more; the message says why.
    Failed(String),
}

/// What the slots hold, as of the latest step.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub slots: Vec<Option<Occupant>>,
    pub waiting: usize,
}

/// The way to the thread that owns the slots.
#[derive(Clone)]
pub struct Engine {
    commands: Sender<Command>,
    phase: watch::Receiver<Phase>,
    snapshot: Arc<Mutex<Snapshot>>,
}

/// The thread's side.
pub struct Inbox {
    commands: Receiver<Command>,
    phase: watch::Sender<Phase>,
    snapshot: Arc<Mutex<Snapshot>>,
}

enum Command {
    Submit {
        requests: Vec<Request>,
        /// Whether they wait in the queue however long that is.
        patient: bool,
        updates: mpsc::UnboundedSender<Update>,
        taken: oneshot::Sender<Result<u64, Refused>>,
    },
    Logits(LogitsWanted),
    Leave {
        job: u64,
        choice: Option<usize>,
    },
    Stop,
}

/// Tokens whose logits somebody waits for: the device is theirs until they are there.
pub struct LogitsWanted {
    tokens: Vec<u32>,
    answer: oneshot::Sender<Result<Vec<f32>>>,
}

impl LogitsWanted {
    /// Computes them, and tells who waits.
    pub fn answer(self, compute: impl FnOnce(&[u32]) -> Result<Vec<f32>>) {
        // Who no longer waits has dropped the other end.
        let _ = self.answer.send(compute(&self.tokens));
    }
}

/// The requests of one job, which leave their slots when this is dropped.
pub struct Running {
    job: u64,
    commands: Sender<Command>,
    updates: mpsc::UnboundedReceiver<Update>,
}

/// A channel to a thread that is yet to be started.
pub fn connect() -> (Engine, Inbox) {
    let (commands, inbox) = channel();
    let (phase, phases) = watch::channel(Phase::Loading);
    let snapshot = Arc::new(Mutex::new(Snapshot::default()));
    let engine = Engine { commands, phase: phases, snapshot: snapshot.clone() };
    (engine, Inbox { commands: inbox, phase, snapshot })
}

impl Engine {
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits until the model is loaded, or cannot be.
    pub async fn loaded(&self) -> Phase {
        let mut phase = self.phase.clone();
        phase.wait_for(|phase| *phase != Phase::Loading).await.map_or(Phase::Loading, |phase| phase.clone())
    }

    /// Waits until the engine has failed; why.
    pub async fn failure(&self) -> String {
        let mut phase = self.phase.clone();
        let failed = phase.wait_for(|phase| matches!(phase, Phase::Failed(_))).await;
        match failed.as_deref() {
            Ok(Phase::Failed(message)) => message.clone(),
            _ => "the thread that runs the model has ended".into(),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        locked(&self.snapshot).clone()
    }

    /// Puts requests into the queue, all or none. `patient`: however long it is.
    pub async fn submit(&self, requests: Vec<Request>, patient: bool) -> Result<Running, Refused> {
        let gone = || Refused::Invalid("the model is not running".into());
        let (updates, receiver) = mpsc::unbounded_channel();
        let (taken, answer) = oneshot::channel();
        self.commands.send(Command::Submit { requests, patient, updates, taken }).map_err(|_| gone())?;
        let job = answer.await.map_err(|_| gone())??;
        Ok(Running { job, commands: self.commands.clone(), updates: receiver })
    }

    /// The logits after each of the tokens, once the requests before them have been answered.
    pub async fn logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>> {
        let gone = || anyhow!("the model is not running");
        let (answer, logits) = oneshot::channel();
        self.commands.send(Command::Logits(LogitsWanted { tokens, answer })).map_err(|_| gone())?;
        logits.await.map_err(|_| gone())?
    }

    /// Ends the thread, whatever is running.
    pub fn stop(&self) {
        // A thread that has ended needs no word.
        let _ = self.commands.send(Command::Stop);
    }
}

impl Running {
    /// What comes next; none when nothing comes any more.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Ends one of the requests.
    pub fn leave(&self, choice: usize) {
        // A thread that has ended holds no slot.
        let _ = self.commands.send(Command::Leave { job: self.job, choice: Some(choice) });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // As above.
        let _ = self.commands.send(Command::Leave { job: self.job, choice: None });
    }
}

impl Inbox {
    /// Serves requests with these slots until it is stopped (none), or until logits are wanted and the slots are free: then it is to be called again, with
    /// other slots. Calls `ready` once requests are taken.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn serve<S: Steps>(&self, slots: Slots<S>, ready: impl FnOnce()) -> Result<Option<LogitsWanted>> {
        self.phase.send_replace(Phase::Ready);
        ready();
        let mut serving = Serving { slots, jobs: BTreeMap::new(), logits: None, snapshot: &self.snapshot };
        while serving.take(&self.commands)? {
            serving.go_on()?;
        }
        Ok(serving.logits)
    }

    /// Says that nothing is served any more.
    pub fn fail(&self, message: String) {
        self.phase.send_replace(Phase::Failed(message));
    }
}

/// Names jobs, over all that serve: one that leaves late names nobody else's.
static JOBS: AtomicU64 = AtomicU64::new(0);

struct Serving<'a, S> {
    slots: Slots<S>,
    jobs: BTreeMap<Ticket, Job>,
    /// What is computed when the slots are free; no command is taken before that.
    logits: Option<LogitsWanted>,
    snapshot: &'a Mutex<Snapshot>,
}

/// Where the events of a request go.
struct Job {
    job: u64,
    choice: usize,
    updates: mpsc::UnboundedSender<Update>,
}

impl<S: Steps> Serving<'_, S> {
    /// Takes the commands that are there; waits for one where nothing else is to do. Whether to go on.
    fn take(&mut self, commands: &Receiver<Command>) -> Result<bool> {
        loop {
            if self.logits.is_some() {
                return Ok(!self.slots.is_idle());
            }
            let command = if self.slots.is_idle() {
                self.publish();
                let Ok(command) = commands.recv() else { return Ok(false) };
                command
            } else {
                match commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return Ok(true),
                    Err(TryRecvError::Disconnected) => return Ok(false),
                }
            };
            match command {
                Command::Submit { requests, patient, updates, taken } => {
                    let job = self.submit(requests, patient, updates)?;
                    // Who no longer waits for the answer has dropped the other end: the next event finds that out.
                    let _ = taken.send(job);
                }
                Command::Leave { job, choice } => self.leave(job, choice)?,
                Command::Logits(wanted) => self.logits = Some(wanted),
                Command::Stop => return Ok(false),
            }
        }
    }

    fn submit(
        &mut self,
        requests: Vec<Request>,
        patient: bool,
        updates: mpsc::UnboundedSender<Update>,
    ) -> Result<Result<u64, Refused>> {
        if !patient && self.slots.load().1 + requests.len() > QUEUE {
            return Ok(Err(Refused::Busy));
        }
        let job = JOBS.fetch_add(1, Ordering::Relaxed);
        for (choice, request) in requests.into_iter().enumerate() {
            match self.slots.submit_patiently(request) {
                Ok(ticket) => {
                    self.jobs.insert(ticket, Job { job, choice, updates: updates.clone() });
                }
                Err(refused) => {
                    self.leave(job, None)?;
                    return Ok(Err(refused));
                }
            }
        }
        Ok(Ok(job))
    }

    fn leave(&mut self, job: u64, choice: Option<usize>) -> Result<()> {
        let asked = |of: &Job| of.job == job && choice.is_none_or(|choice| of.choice == choice);
        let tickets: Vec<Ticket> = self.jobs.iter().filter(|(_, of)| asked(of)).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            self.jobs.remove(&ticket);
            self.slots.leave(ticket)?;
        }
        Ok(())
    }

    fn publish(&self) {
        *locked(self.snapshot) = Snapshot { slots: self.slots.occupants().collect(), waiting: self.slots.load().1 };
    }

    fn go_on(&mut self) -> Result<()> {
        let events = self.slots.poll()?;
        // Before anybody hears of what it shows.
        self.publish();
        for (ticket, event) in events {
            let Some(Job { choice, updates, .. }) = self.jobs.get(&ticket) else { continue };
            let ended = matches!(event, Event::Ended(_) | Event::Failed(_));
            let sent = updates.send(Update { choice: *choice, event, at: Instant::now() });
            if ended || sent.is_err() {
                self.jobs.remove(&ticket);
                self.slots.leave(ticket)?;
            }
        }
        Ok(())
    }
}

fn locked(snapshot: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    // It is replaced whole.
    snapshot.lock().unwrap_or_else(PoisonError::into_inner)
}
