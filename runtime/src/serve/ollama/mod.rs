//! Ollama's API: chat and generate, a JSON object per line, and what it tells of models.

mod generate;
mod models;

pub use generate::{chat, generate};
pub use models::{ps, show, tags, version};
