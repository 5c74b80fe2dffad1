//! A server from its start to its end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::answer::CallFormat;
use super::app::App;
use super::connections;
use super::engine::{Engine, Inbox, connect};
use super::metrics::Metrics;
use super::routes::router;
use super::served::{Served, now};
use crate::generate::chat::ChatTemplate;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;

/// Threads for requests; the model has its own.
const THREADS: usize = 4;
/// How long answers that are cut off have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a server is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0: one that is free.
    pub address: SocketAddr,
    /// Any of these lets a request in; none: all are let in.
    pub keys: Vec<String>,
    /// Pages of these origins may ask, beside those of this machine; `*`: all.
    pub origins: Vec<String>,
    /// How long answers may go on once the server is to end.
    pub deadline: Duration,
}

/// The model that is served, before it is loaded.
pub struct Subject {
    /// What answers call it.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: Option<ChatTemplate>,
    /// What it says of how its texts are made.
    pub defaults: GenerationDefaults,
    /// Texts that end an answer of a chat.
    pub chat_stops: Vec<String>,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences side by side.
    pub slots: usize,
    /// The architecture of its configuration.
    pub architecture: Option<String>,
    /// How its weights are stored.
    pub dtype: Option<String>,
    /// Where it runs, in a few words.
    pub device: String,
}

/// Serves a model until the process is told to end (SIGINT or SIGTERM). `load` runs in a thread of its own: it loads the model and gives its slots to
/// the inbox; `subject` is called meanwhile. `listening` is told the address first.
///
/// # Errors
/// An address that cannot be listened at, a model that cannot be loaded, a fault of the device.
pub fn run(
    subject: impl FnOnce() -> Result<Subject>,
    options: Options,
    load: impl FnOnce(&Inbox) -> Result<()> + Send + 'static,
    listening: impl FnOnce(SocketAddr),
) -> Result<()> {
    let address = options.address;
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen at {address}: give another --host or --port"))?;
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    listening(local);
    let (engine, inbox) = connect();
    let thread = std::thread::Builder::new().name("slots".into()).spawn(move || {
        let done = load(&inbox);
        if let Err(error) = &done {
            inbox.fail(format!("{error:#}"));
        }
        done
    })?;
    let deadline = options.deadline;
    let app = Arc::new(App { keys: options.keys, origins: options.origins, ..app(subject()?, engine.clone()) });
    let ended = runtime.block_on(async move {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (stop, stopped) = watch::channel(false);
        let engine = app.engine.clone();
        let cut = move || engine.stop();
        let mut serving = tokio::spawn(connections::serve(listener, router(app.clone()), stopped, deadline, cut));
        let failure = tokio::select! {
            message = app.engine.failure() => Some(message),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        stop.send_replace(true);
        if let Some(message) = failure {
            // Nothing more will come: those who wait hear of it, and are not waited for long.
            let _ = tokio::time::timeout(LAST_WORDS, &mut serving).await;
            bail!(message);
        }
        tokio::select! {
            _ = &mut serving => {}
            // Told again: at once.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    });
    engine.stop();
    drop(engine);
    runtime.shutdown_timeout(LAST_WORDS);
    ended?;
    match thread.join() {
        Ok(done) => done,
        Err(_) => Err(anyhow!("the thread that runs the model has ended")),
    }
}

/// What requests share, with no keys.
pub(super) fn app(subject: Subject, engine: Engine) -> App {
    App { served: served(subject), engine, metrics: Metrics::default(), keys: Vec::new(), origins: Vec::new() }
}

fn served(subject: Subject) -> Served {
    let Subject { name, tokenizer, template, defaults, chat_stops, context, slots, architecture, dtype, device } =
        subject;
    let tokenizer = Arc::new(tokenizer);
    Served {
        name,
        grammars: tokenizer.grammars(),
        tokenizer,
        calls: template.as_ref().and_then(CallFormat::of),
        thinks: template.as_ref().is_some_and(|template| template.mentions("</think>")),
        template: template.map(Arc::new),
        defaults,
        chat_stops,
        context,
        slots,
        started: now(),
        architecture,
        dtype,
        device,
    }
}
