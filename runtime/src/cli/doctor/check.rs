//! What a check says.

use serde_json::{Value, json};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Pass,
    /// Models run, though slower or not all of them.
    Warn,
    /// What is there does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub said: String,
    /// What to do, where there is something to do.
    pub fix: Option<String>,
}

impl Check {
    pub fn pass(name: &str, said: impl Into<String>) -> Check {
        Check { name: name.to_owned(), state: State::Pass, said: said.into(), fix: None }
    }

    pub fn warn(name: &str, said: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name: name.to_owned(), state: State::Warn, said: said.into(), fix: Some(fix.into()) }
    }

    pub fn fail(name: &str, said: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name: name.to_owned(), state: State::Fail, said: said.into(), fix: Some(fix.into()) }
    }

    pub fn to_json(&self) -> Value {
        json!({ "name": self.name, "state": self.state.word().to_lowercase(), "said": self.said, "fix": self.fix })
    }
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Pass => "PASS",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        }
    }
}
