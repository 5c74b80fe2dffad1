//! Connections: how many, how slow they may be, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once; more wait to be accepted.
const MOST: usize = 1024;
/// How long the head of a request may take, from the moment that one can come.
const HEAD: Duration = Duration::from_secs(30);

/// How long answers that are cut off have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves connections until `stop` is set, and then those that have a request until `deadline` is over; `cut` ends what they still wait for.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    mut stop: watch::Receiver<bool>,
    deadline: Duration,
    cut: impl FnOnce(),
) {
    let places = Arc::new(Semaphore::new(MOST));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
            _ = stop.wait_for(|stop| *stop) => break,
        };
        while tasks.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            // No more files may be open, say: later ones may.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (router, stop) = (router.clone(), stop.clone());
        tasks.spawn(async move {
            connection(stream, router, stop).await;
            drop(place);
        });
    }
    drop(listener);
    let mut ended = async || while tasks.join_next().await.is_some() {};
    let in_time = timeout(deadline, ended()).await;
    cut();
    if in_time.is_err() {
        // Who is not done by then is not waited for.
        let _ = timeout(LAST_WORDS, ended()).await;
    }
}

async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Tokens are small and wait for nothing. A connection without this is a slow one.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let stopped = tokio::select! {
        // However it ends, nobody is left to tell.
        _ = connection.as_mut() => return,
        stopped = stop.wait_for(|stop| *stop) => stopped.is_ok(),
    };
    if stopped {
        connection.as_mut().graceful_shutdown();
    }
    let _ = connection.await;
}
