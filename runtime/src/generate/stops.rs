//! Texts that end a generation, also when they arrive in pieces, and also when they are special tokens or hold some.

use std::ops::Range;

/// Holds back the text that may be the beginning of a stop text. It watches the text with special tokens in it and gives the one without.
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
    /// The parts of `held` that are not shown.
    hidden: Vec<Range<usize>>,
    reached: Option<String>,
}

impl StopTexts {
    /// Watches for these texts; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopTexts {
        StopTexts {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            held: String::new(),
            hidden: Vec::new(),
            reached: None,
        }
    }

    /// Takes a piece of text and returns what may be shown: nothing of a stop text, nor of what may become one.
    pub fn pass(&mut self, piece: &str) -> String {
        if self.reached() {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.reached = Some(stop.clone());
            let shown = self.release(at);
            self.held.clear();
            return shown;
        }
        let may_become = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(may_become).unwrap_or(self.held.len());
        self.release(keep)
    }

    /// As [`StopTexts::pass`], of a piece that is watched and never shown: a special token.
    pub fn pass_hidden(&mut self, piece: &str) -> String {
        if !self.stops.is_empty() && !piece.is_empty() {
            self.hidden.push(self.held.len()..self.held.len() + piece.len());
            return self.pass(piece);
        }
        String::new()
    }

    /// What was held back, when no more text comes.
    pub fn rest(&mut self) -> String {
        self.release(self.held.len())
    }

    /// Whether a stop text has appeared.
    pub fn reached(&self) -> bool {
        self.reached.is_some()
    }

    /// The stop text that has appeared.
    pub fn found(&self) -> Option<&str> {
        self.reached.as_deref()
    }

    /// Takes the first bytes of what is held and returns what of them is shown.
    fn release(&mut self, end: usize) -> String {
        let (mut shown, mut at) = (String::new(), 0);
        for hidden in &self.hidden {
            shown.push_str(&self.held[at..hidden.start.clamp(at, end)]);
            at = hidden.end.clamp(at, end);
        }
        shown.push_str(&self.held[at..end]);
        self.held.drain(..end);
        self.hidden.retain_mut(|hidden| {
            *hidden = hidden.start.saturating_sub(end)..hidden.end.saturating_sub(end);
            hidden.start < hidden.end
        });
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces in angle brackets are special tokens.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut watched = StopTexts::new(&stops);
        let mut pass = |piece: &&str| match piece.strip_prefix('<') {
            Some(_) => watched.pass_hidden(piece),
            None => watched.pass(piece),
        };
        let mut shown: String = pieces.iter().map(&mut pass).collect();
        if !watched.reached() {
            shown += &watched.rest();
        }
        (shown, watched.reached())
    }

    #[test]
    fn a_stop_text_in_pieces_is_found_and_not_shown() {
        assert_eq!(run(&["END"], &["abc E", "N", "D def"]), ("abc ".into(), true));
        assert_eq!(run(&["END"], &["abc E", "NOD"]), ("abc ENOD".into(), false));
        assert_eq!(run(&["é!"], &["caf", "é", "!x"]), ("caf".into(), true));
    }

    #[test]
    fn the_earliest_of_several_wins_and_empty_ones_do_nothing() {
        assert_eq!(run(&["", "zz", "b"], &["abzz"]), ("a".into(), true));
        assert_eq!(run(&[""], &["abc"]), ("abc".into(), false));
    }

    #[test]
    fn beginnings_that_overlap_are_held_as_long_as_one_may_go_on() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), true));
        assert_eq!(run(&["abab!"], &["ab", "abab", "!"]), ("ab".into(), true));
        assert_eq!(run(&["abc", "bd"], &["ab", "d"]), ("a".into(), true));
        assert_eq!(run(&["日本語"], &["日", "日本", "語"]), ("日".into(), true));
    }

    #[test]
    fn a_special_token_is_watched_and_not_shown() {
        assert_eq!(run(&["<|tool|>"], &["a", "<|tool|>", "b"]), ("a".into(), true));
        assert_eq!(run(&["x"], &["a", "<|tool|>", "b"]), ("ab".into(), false));
        assert_eq!(run(&["b<|tool|>c"], &["ab", "<|tool|>", "cd"]), ("a".into(), true));
        assert_eq!(run(&["b<|tool|>c"], &["ab", "<|tool|>", "d"]), ("abd".into(), false));
        assert_eq!(run(&["<|a|><|b|>"], &["x", "<|a|>", "<|a|>", "<|b|>"]), ("x".into(), true));
        assert_eq!(run(&["ab"], &["a", "<|tool|>", "b"]), ("ab".into(), false), "the token stands between them");
        assert_eq!(run(&["ool"], &["a", "<|tool|>", "b"]), ("a".into(), true), "a part of its name");
        assert_eq!(run(&["<|tool|>"], &["<|to", "x", "<|tool|>y"]), ("x".into(), true));
        assert_eq!(run(&[], &["a", "<|tool|>", "b"]), ("ab".into(), false));
    }
}
