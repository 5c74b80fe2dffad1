//! What outlives a step.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A state: of each sequence what one step leaves to the next, such as the keys of a layer.
///
/// A node of it is the state before the step. The op that makes the state after it names both in
/// [`Op::next_states`](super::Op::next_states).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its name: `keys.N` and `values.N` are the caches of layer N.
    pub name: String,
    /// What a sequence begins with.
    pub start: Start,
    /// What running a step again does.
    pub replay: Replay,
}

/// What a sequence's state is before its first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Anything: no step reads what no step has written.
    #[default]
    Any,
    /// Zeros.
    Zeros,
}

/// What a step that is run again with the same tokens at the same positions leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// The same: each position has a place of its own. A sequence can go back to any position, and another can begin with a part of it.
    #[default]
    Same,
    /// Something else: each step changes the whole state. A sequence that goes back begins anew, or from a copy.
    Once,
}

impl State {
    /// A cache by position: [`Start::Any`] and [`Replay::Same`].
    pub fn cache(name: impl Into<String>) -> State {
        State { name: name.into(), start: Start::Any, replay: Replay::Same }
    }
}

impl Start {
    /// All of them.
    pub const ALL: [Start; 2] = [Start::Any, Start::Zeros];

    /// Its name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Start::Any => "any",
            Start::Zeros => "zeros",
        }
    }
}

impl Replay {
    /// All of them.
    pub const ALL: [Replay; 2] = [Replay::Same, Replay::Once];

    /// Its name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Replay::Same => "same",
            Replay::Once => "once",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
