//! Who may ask: keys, and the pages that a browser may let ask.

use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;
use subtle::{Choice, ConstantTimeEq};

use super::app::App;
use super::problem::{Kind, Problem};

/// Refuses a request without one of the keys, `Authorization: Bearer KEY` or `x-api-key: KEY`. How long it takes does not depend on what a key begins with.
pub fn check_key(app: &App, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
    if app.keys.is_empty() || ["/", "/health"].contains(&path) {
        return Ok(());
    }
    let bearer = |value: &HeaderValue| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().as_bytes().to_vec())
    };
    let given = headers.get(header::AUTHORIZATION).and_then(bearer);
    let given = given.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes().to_vec()));
    let Some(given) = given else {
        let message = "no key was given: send the header `Authorization: Bearer KEY`, or `x-api-key: KEY`";
        return Err(Problem::new(Kind::Unauthorized, message).with_code("invalid_api_key"));
    };
    // Each key is compared, so that none shows by being the first.
    let right = app.keys.iter().fold(Choice::from(0), |right, key| right | key.as_bytes().ct_eq(&given));
    if !bool::from(right) {
        return Err(
            Problem::new(Kind::Unauthorized, "the key is not one of this server's").with_code("invalid_api_key")
        );
    }
    Ok(())
}

/// Whether a browser may let a page of this origin read answers: pages of this machine, those that were named, and with a key all.
fn allowed(app: &App, origin: &str) -> bool {
    let host = origin.split_once("://").map_or("", |(_, rest)| rest);
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.split_once(']'))
        .map_or_else(|| host.split(':').next().unwrap_or_default().to_owned(), |(inside, _)| inside.to_owned());
    let local = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
    local || !app.keys.is_empty() || app.origins.iter().any(|allowed| allowed == "*" || allowed == origin)
}

/// The answer to a browser that asks beforehand whether it may ask.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Response> {
    let asks = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let mut response = Response::default();
        *response.status_mut() = axum::http::StatusCode::NO_CONTENT;
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, HEAD, OPTIONS"));
        // Clients send headers of their own, `x-stainless-os` and others.
        if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        response
    })
}

/// Tells a browser that the page may read the answer, where it may.
pub fn let_read(app: &App, origin: Option<&HeaderValue>, response: &mut Response) {
    let Some(origin) = origin else { return };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Origin"));
    if origin.to_str().is_ok_and(|origin| allowed(app, origin)) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
}
