//! OpenAI's API: chat completions, completions, models and responses.

pub mod chat;
pub mod completions;
pub mod models;
pub mod responses;
mod shared;
