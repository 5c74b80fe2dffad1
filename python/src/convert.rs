//! What comes of questions as Python has it, and errors as exceptions.

use fuserun::serve::{Finish, Part, Piece, Refusal, TokenScores};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde_json::{Map, Value};

/// What is asked of this process is wrong.
pub fn wrong(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// What is asked is right, and cannot be done.
pub fn failed(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// A refusal as the exception that it is.
pub fn refused(refusal: &Refusal) -> PyErr {
    match refusal {
        Refusal::Asked(message) => wrong(message),
        Refusal::Model(message) => failed(message),
    }
}

/// The object that a text in JSON holds.
pub fn object(json: &str) -> PyResult<Map<String, Value>> {
    serde_json::from_str(json).map_err(|error| wrong(format!("not a JSON object: {error}")))
}

/// More of an answer: its number, tokens, text, thought, calls (index, name or none, arguments), scores, and why it has ended with the text that ended it.
pub fn piece<'py>(py: Python<'py>, piece: &Piece) -> PyResult<Bound<'py, PyAny>> {
    let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for part in &piece.parts {
        match part {
            Part::Text(more) => text += more,
            Part::Reasoning(more) => thought += more,
            Part::Call { index, name } => calls.push((*index, Some(name.as_str()), "")),
            Part::Arguments { index, text } => calls.push((*index, None, text.as_str())),
        }
    }
    let scores: Vec<Scored> = piece.scores.iter().map(score).collect();
    let (finish, stop) = match &piece.finish {
        None => (None, None),
        Some(Finish::Stop) => (Some("stop"), None),
        Some(Finish::StopText(text)) => (Some("stop"), Some(text.as_str())),
        Some(Finish::Length) => (Some("length"), None),
        Some(Finish::Calls) => (Some("tool_calls"), None),
    };
    (piece.choice, &piece.tokens, text, thought, calls, scores, finish, stop).into_bound_py_any(py)
}

/// A token, its log probability, and those of the likeliest.
type Scored = (u32, f32, Vec<(u32, f32)>);

fn score(scored: &TokenScores) -> Scored {
    (scored.token, scored.scores.chosen, scored.scores.top.clone())
}
