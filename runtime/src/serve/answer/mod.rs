//! From the tokens of a request to the parts of its answer.

mod choice;
mod envelope;
mod generation;
mod split;

pub use choice::{Finish, TokenScores};
pub use generation::{Call, Collected, Generation, Progress, Summary};
pub use split::{CallFormat, Part, Shape};
