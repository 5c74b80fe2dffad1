//! The page at `/`: one file, which asks this server only.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("page.html");
/// The page loads nothing, and asks nobody but this server.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page for browsers; a line for programs, which look here whether a server runs.
pub fn front(headers: &HeaderMap) -> Response {
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|kinds| kinds.contains("text/html"));
    let mut response = if headers.get_all(header::ACCEPT).iter().any(accepts) {
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)], PAGE)
            .into_response()
    } else {
        "fuserun is running\n".into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
