//! What all requests share.

use super::engine::{Engine, Phase};
use super::metrics::Metrics;
use super::problem::{Kind, Problem};
use super::served::Served;

/// The model, the way to the thread that runs it, and what is counted.
pub struct App {
    pub served: Served,
    pub engine: Engine,
    pub metrics: Metrics,
    /// Any of these lets a request in; where there are none, all are let in.
    pub keys: Vec<String>,
    /// Pages of these origins may ask, beside those of this machine; `*`: all.
    pub origins: Vec<String>,
}

impl App {
    /// Refuses while no request can be served.
    pub fn check_ready(&self) -> Result<(), Problem> {
        match self.engine.phase() {
            Phase::Ready => Ok(()),
            Phase::Loading => Err(Problem::new(Kind::Unavailable, "the model is being loaded: try again in a moment")),
            Phase::Failed(message) => Err(Problem::new(Kind::Unavailable, message)),
        }
    }
}
