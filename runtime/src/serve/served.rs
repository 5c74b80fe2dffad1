//! The model that is served, as far as requests need to know it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::answer::CallFormat;
use crate::generate::chat::ChatTemplate;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;
use crate::grammar::Grammars;

/// What texts are made with.
pub struct Served {
    /// What answers call the model.
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    /// What answers are held to.
    pub grammars: Grammars,
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
    /// How a call is written that must be made, whether or not the template knows any.
    pub fn call_format(&self) -> CallFormat {
        self.calls.unwrap_or(CallFormat::Whole)
    }

    /// The text of a token; as the vocabulary spells it where it is a part of a character only.
    pub fn token_text(&self, token: u32) -> String {
        let decoded = self.decoded(token);
        if self.is_whole(token) { decoded } else { self.tokenizer.id_to_token(token).unwrap_or(decoded) }
    }

    /// Whether the characters of a token are whole.
    pub fn is_whole(&self, token: u32) -> bool {
        !self.decoded(token).contains(char::REPLACEMENT_CHARACTER)
    }

    fn decoded(&self, token: u32) -> String {
        self.tokenizer.decode(&[token], false).unwrap_or_default()
    }
}

/// A moment as RFC 3339 has it, in UTC.
pub fn rfc3339(since_1970: Duration) -> String {
    let (days, second) = (since_1970.as_secs() / 86_400, since_1970.as_secs() % 86_400);
    // Years that begin in March, in eras of 400: a leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since_1970.subsec_micros())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// The time since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(Duration::from_micros(1_000_007)), "1970-01-01T00:00:01.000007Z");
    }
}
