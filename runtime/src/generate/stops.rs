//! Texts that end a generation, also when they arrive in pieces.

/// Holds back the text that may be the beginning of a stop text.
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
    reached: bool,
}

impl StopTexts {
    /// Watches for these texts; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopTexts {
        StopTexts {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            held: String::new(),
            reached: false,
        }
    }

    /// Takes a piece of text and returns what may be shown: nothing of a stop text, nor of what may become one.
    pub fn pass(&mut self, piece: &str) -> String {
        if self.reached {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.reached = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let may_become = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(may_become).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when no more text comes.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop text has appeared.
    pub fn reached(&self) -> bool {
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut watched = StopTexts::new(&stops);
        let mut shown: String = pieces.iter().map(|piece| watched.pass(piece)).collect();
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
}
