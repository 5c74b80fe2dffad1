//! The body of a request, read within limits of size and time.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use super::fields::Fields;
use super::problem::{Kind, Problem};

/// Bytes of a body at most.
pub const MOST_BYTES: usize = 8 << 20;
/// How long a body may take to arrive.
const TIME: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read, so that its sender gets to read the answer.
const DISCARDED: usize = 64 << 20;
/// Bytes of a body that nobody wants, and how long they may take.
const UNWANTED: usize = 64 << 10;
const UNWANTED_TIME: Duration = Duration::from_secs(1);

/// The object that a request holds, whatever its content type.
pub async fn fields(request: Request) -> Result<Fields, Problem> {
    let end = Instant::now() + TIME;
    let mut stream = request.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(piece) = next(&mut stream, end).await? {
        body.extend_from_slice(&piece);
        if body.len() > MOST_BYTES {
            let mut discarded = body.len();
            drop(body);
            while let Ok(Some(piece)) = next(&mut stream, end).await {
                discarded += piece.len();
                if discarded > DISCARDED {
                    break;
                }
            }
            let message = format!("the body has more than {} MiB, the most that is read", MOST_BYTES >> 20);
            return Err(Problem::new(Kind::TooLarge, message));
        }
    }
    Fields::parse(&body)
}

/// Reads a short body that nobody wants, so that the connection can be used again.
pub async fn discard(request: Request) {
    let end = Instant::now() + UNWANTED_TIME;
    let mut stream = request.into_body().into_data_stream();
    let mut length = 0;
    while let Ok(Some(piece)) = next(&mut stream, end).await {
        length += piece.len();
        if length > UNWANTED {
            break;
        }
    }
}

async fn next(stream: &mut BodyDataStream, end: Instant) -> Result<Option<axum::body::Bytes>, Problem> {
    match timeout_at(end, stream.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(Problem::invalid(format!("the body did not arrive whole: {error}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} seconds", TIME.as_secs());
            Err(Problem::new(Kind::Timeout, message))
        }
    }
}
