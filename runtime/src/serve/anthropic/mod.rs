//! Anthropic's API: messages, and their tokens counted.

mod convert;
mod messages;

pub use messages::{count_tokens, create};
