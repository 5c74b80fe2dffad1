//! The model that is served, as far as requests need to know it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::answer::{CallFormat, Shape};
use crate::generate::chat::ChatTemplate;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;

/// What texts are made with.
pub struct Served {
    /// What answers call the model.
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<Arc<ChatTemplate>>,
    pub defaults: GenerationDefaults,
    /// Texts that end an answer of a chat, beside those of `defaults`.
    pub chat_stops: Vec<String>,
    /// How it writes calls of tools.
    pub calls: Option<CallFormat>,
    /// Whether its template has marks around what it thinks.
    pub thinks: bool,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences side by side.
    pub slots: usize,
    /// The architecture of its configuration.
    pub architecture: Option<String>,
    /// How its weights are stored.
    pub dtype: Option<String>,
    /// When the server was started, in seconds since 1970.
    pub started: u64,
    /// Where it runs, in a few words.
    pub device: String,
}

impl Served {
    /// What to look for in an answer of a chat. `tools`: the names of those that may be called.
    pub fn shape(&self, thinks: bool, goes_on: bool, tools: BTreeSet<String>) -> Shape {
        let calls = self.calls.filter(|_| !tools.is_empty()).map(|format| (format, tools));
        Shape { thinks, goes_on, may_think: self.thinks, calls }
    }

    /// The text of a token, as bytes would have it where it is not whole.
    pub fn token_text(&self, token: u32) -> String {
        let decoded = self.tokenizer.decode(&[token], false).unwrap_or_default();
        if decoded.contains(char::REPLACEMENT_CHARACTER) {
            return self.tokenizer.id_to_token(token).unwrap_or(decoded);
        }
        decoded
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
