//! The server's routes without a socket: requests of whatever speaks HTTP in this process.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio_stream::StreamExt;

use super::local::Local;
use super::question::{Answering, Refusal};
use super::routes::router;

/// A request, whole.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// GET, POST and so on.
    pub method: String,
    /// The path, with what is asked after `?`.
    pub path: String,
    /// Names and values.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A piece of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// What comes first: its status, and names and values of headers.
    Head(u16, Vec<(Vec<u8>, Vec<u8>)>),
    /// A part of the body.
    Body(Vec<u8>),
    /// There is no more.
    End,
}

impl Local {
    /// Answers a request as the server would, without keys. `take` is given the response as it comes; it is not to wait.
    ///
    /// # Errors
    /// A method, a path or a header that HTTP does not have.
    pub fn request(&self, asked: Asked, mut take: impl FnMut(Sent) + Send + 'static) -> Result<Answering, Refusal> {
        let request = request(asked)?;
        let service = TowerToHyperService::new(router(self.app.clone()));
        Ok(self.until_dropped(async move {
            // The error is one that cannot be.
            let Ok(response) = service.call(request).await;
            let (head, body) = response.into_parts();
            let header = |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().into(), value.as_bytes().into());
            take(Sent::Head(head.status.as_u16(), head.headers.iter().map(header).collect()));
            let mut pieces = body.into_data_stream();
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(piece) => take(Sent::Body(piece.to_vec())),
                    Err(_) => break,
                }
            }
            take(Sent::End);
        }))
    }
}

fn request(asked: Asked) -> Result<Request<Body>, Refusal> {
    let wrong = |what: String| Refusal::Asked(format!("not a request of HTTP: {what}"));
    let Asked { method, path, headers, body } = asked;
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| wrong(error.to_string()))?;
    for (name, value) in headers {
        let name = HeaderName::from_bytes(&name).map_err(|error| wrong(error.to_string()))?;
        request.headers_mut().append(name, HeaderValue::from_bytes(&value).map_err(|error| wrong(error.to_string()))?);
    }
    Ok(request)
}
