//! From the tokens of a request to the parts of its answer.

mod choice;
mod envelope;
mod functions;
mod generation;
mod split;

pub use choice::{Finish, TokenScores};
pub use functions::{END_OF_PARAMETER, ValueKind};
pub use generation::{Call, Collected, Generation, Progress, Summary};
#[cfg(test)]
pub use split::Splitter;
pub use split::{CallFormat, Calls, Part, Shape};
