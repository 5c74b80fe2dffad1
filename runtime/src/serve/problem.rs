//! Why a request is not served, in the words of each API.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

/// A request that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: Kind,
    /// What is wrong and what to do, in a sentence.
    pub message: String,
    /// The field that is at fault.
    pub param: Option<String>,
    /// A word that programs look for.
    pub code: Option<&'static str>,
}

/// What sort of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    Unauthorized,
    NotFound,
    Method,
    Timeout,
    TooLarge,
    Busy,
    Fault,
    Unsupported,
    Unavailable,
}

/// Whose words an answer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// The API that a path is of.
    pub fn of(path: &str) -> Dialect {
        match path {
            _ if path.starts_with("/v1/messages") => Dialect::Anthropic,
            _ if path.starts_with("/api/") => Dialect::Ollama,
            _ => Dialect::OpenAi,
        }
    }
}

impl Problem {
    pub fn new(kind: Kind, message: impl Into<String>) -> Problem {
        Problem { kind, message: message.into(), param: None, code: None }
    }

    /// The request is at fault.
    pub fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(Kind::Invalid, message)
    }

    /// A field of the request is at fault.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { param: Some(param.into()), ..Problem::invalid(message) }
    }

    /// This server is at fault.
    pub fn fault(message: impl Into<String>) -> Problem {
        Problem::new(Kind::Fault, message)
    }

    pub fn with_code(self, code: &'static str) -> Problem {
        Problem { code: Some(code), ..self }
    }

    pub fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Busy => StatusCode::TOO_MANY_REQUESTS,
            Kind::Fault => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The object that says it.
    pub fn object(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": self.message, "type": self.openai_type(), "param": self.param, "code": self.code,
            }}),
            Dialect::Anthropic => {
                json!({"type": "error", "error": {"type": self.anthropic_type(), "message": self.message}})
            }
            Dialect::Ollama => json!({"error": self.message}),
        }
    }

    pub fn response(&self, dialect: Dialect) -> Response {
        let mut response = json_response(self.status(), &self.object(dialect));
        if matches!(self.kind, Kind::Busy | Kind::Unavailable) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.kind == Kind::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn openai_type(&self) -> &'static str {
        match self.kind {
            Kind::Unauthorized => "authentication_error",
            Kind::Busy => "rate_limit_error",
            Kind::Fault => "server_error",
            Kind::Unsupported => "not_supported_error",
            Kind::Unavailable => "service_unavailable_error",
            Kind::NotFound => "not_found_error",
            Kind::Invalid | Kind::Method | Kind::Timeout | Kind::TooLarge => "invalid_request_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.kind {
            Kind::Unauthorized => "authentication_error",
            Kind::NotFound => "not_found_error",
            Kind::TooLarge => "request_too_large",
            Kind::Busy => "rate_limit_error",
            Kind::Fault => "api_error",
            Kind::Unavailable => "overloaded_error",
            Kind::Invalid | Kind::Method | Kind::Timeout | Kind::Unsupported => "invalid_request_error",
        }
    }
}

/// A response that is one object.
pub fn json_response(status: StatusCode, object: &Value) -> Response {
    let mut response = Response::new(Body::from(object.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The response of a request that was served.
pub fn done(object: &Value) -> Response {
    json_response(StatusCode::OK, object)
}
