//! Answers that are sent as they come: server-sent events, or a JSON object per line.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces that a reader may be behind before its task waits for it.
const BEHIND: usize = 64;
/// Something is sent at least this often, so that proxies keep the connection, and so that a client who has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How pieces are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `data: {…}`.
    Events,
    /// A line per object.
    Lines,
}

/// The way to the client.
pub struct Writer {
    sender: Sender<Result<Bytes, Infallible>>,
    framing: Framing,
}

/// The client has gone.
#[derive(Debug)]
pub struct Gone;

impl Writer {
    /// Sends an object.
    pub async fn send(&self, object: &Value) -> Result<(), Gone> {
        match self.framing {
            Framing::Events => self.write(format!("data: {object}\n\n")).await,
            Framing::Lines => self.write(format!("{object}\n")).await,
        }
    }

    /// Sends an object with the name of its event.
    pub async fn event(&self, name: &str, object: &Value) -> Result<(), Gone> {
        self.write(format!("event: {name}\ndata: {object}\n\n")).await
    }

    /// Sends the mark that ends OpenAI's streams.
    pub async fn done(&self) -> Result<(), Gone> {
        self.write("data: [DONE]\n\n".to_owned()).await
    }

    /// Waits for `work`; sends what means nothing meanwhile.
    pub async fn waiting<T>(&self, work: impl Future<Output = T>) -> Result<T, Gone> {
        let mut work = std::pin::pin!(work);
        loop {
            match timeout(KEEP_ALIVE, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if self.framing == Framing::Events => self.write(": waiting\n\n".to_owned()).await?,
                Err(_) => {}
            }
        }
    }

    async fn write(&self, text: String) -> Result<(), Gone> {
        self.sender.send(Ok(Bytes::from(text))).await.map_err(|_| Gone)
    }
}

/// A response whose body `work` writes. The work ends where the client goes away.
pub fn response<F, W>(framing: Framing, work: F) -> Response
where
    F: FnOnce(Writer) -> W,
    W: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = channel(BEHIND);
    let gone = sender.clone();
    let work = work(Writer { sender, framing });
    tokio::spawn(async move {
        tokio::select! {
            () = gone.closed() => {}
            // A client that has gone wants no more.
            _ = work => {}
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let kind = match framing {
        Framing::Events => "text/event-stream; charset=utf-8",
        Framing::Lines => "application/x-ndjson",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Reverse proxies of nginx's kind pass on at once what has this.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
