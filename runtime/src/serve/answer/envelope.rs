//! A call in JSON, `{"name": …, "arguments": {…}}`, read letter by letter: its arguments are given as they are written.

/// What a letter has completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The name, once the arguments have begun too.
    Name(String),
    /// More of the text of the arguments.
    Arguments(String),
}

/// An object that may be a call.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    at: At,
    key: String,
    value: JsonValue,
    /// The text of the value that is being read, where it is not given as it comes.
    text: String,
    /// Whether that value is a string.
    quoted: bool,
    name: Option<String>,
    /// Arguments that are held until the name is known.
    held: String,
    begun: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Key,
    Colon,
    Value,
    Comma,
    Done,
    Broken,
}

impl Envelope {
    /// Takes a letter.
    pub fn push(&mut self, letter: char, out: &mut Vec<Piece>) {
        match self.at {
            At::Key if !self.value.begun() && letter == '}' && self.key.is_empty() => self.at = At::Done,
            At::Key | At::Value if self.value.begun() => self.within(letter, out),
            At::Start | At::Colon | At::Comma | At::Key | At::Value if letter.is_whitespace() => {}
            At::Start if letter == '{' => self.at = At::Key,
            At::Key if letter == '"' => self.within(letter, out),
            At::Colon if letter == ':' => self.at = At::Value,
            At::Value => self.within(letter, out),
            At::Comma if letter == ',' => {
                self.key.clear();
                self.at = At::Key;
            }
            At::Comma if letter == '}' => self.at = At::Done,
            _ => self.at = At::Broken,
        }
    }

    /// Whether the object has ended, and is a call.
    pub fn is_done(&self) -> bool {
        self.at == At::Done && self.begun
    }

    /// Whether it can become no call any more.
    pub fn is_broken(&self) -> bool {
        self.at == At::Broken || self.at == At::Done && !self.begun
    }

    /// Whether the name has been given.
    pub fn begun(&self) -> bool {
        self.begun
    }

    fn within(&mut self, letter: char, out: &mut Vec<Piece>) {
        if !self.value.begun() {
            self.quoted = letter == '"';
        }
        let part = self.value.push(letter);
        if part {
            self.text.push(letter);
            self.stream(out);
        }
        if !self.value.ended() {
            return;
        }
        self.value = JsonValue::default();
        let text = std::mem::take(&mut self.text);
        self.end_value(text, out);
        if !part {
            self.push(letter, out);
        }
    }

    /// Gives what there is of an object of arguments.
    fn stream(&mut self, out: &mut Vec<Piece>) {
        let arguments = self.at == At::Value && ["arguments", "parameters"].contains(&self.key.as_str());
        // Arguments within a string are decoded when they end.
        if arguments && !self.quoted {
            self.held.push_str(&std::mem::take(&mut self.text));
            self.give(out);
        }
    }

    fn end_value(&mut self, text: String, out: &mut Vec<Piece>) {
        if self.at == At::Key {
            match serde_json::from_str(&text) {
                Ok(key) => (self.key, self.at) = (key, At::Colon),
                Err(_) => self.at = At::Broken,
            }
            return;
        }
        self.at = At::Comma;
        let decoded = serde_json::from_str::<String>(&text);
        match (self.key.as_str(), decoded) {
            ("name", Ok(name)) => self.name = Some(name),
            ("arguments" | "parameters", Ok(arguments)) if !text.is_empty() => self.held.push_str(&arguments),
            _ => return,
        }
        self.give(out);
    }

    fn give(&mut self, out: &mut Vec<Piece>) {
        if self.held.is_empty() {
            return;
        }
        if let Some(name) = self.name.as_ref().filter(|_| !self.begun) {
            self.begun = true;
            out.push(Piece::Name(name.clone()));
        }
        if self.begun {
            out.push(Piece::Arguments(std::mem::take(&mut self.held)));
        }
    }
}

/// Where a JSON value ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonValue {
    depth: usize,
    quoted: bool,
    escaped: bool,
    bare: bool,
    begun: bool,
    ended: bool,
}

impl JsonValue {
    /// Takes a letter; whether it is a part of the value.
    pub fn push(&mut self, letter: char) -> bool {
        if self.ended {
            return false;
        }
        let first = !std::mem::replace(&mut self.begun, true);
        if self.quoted {
            match letter {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.quoted = false;
                    self.ended = self.depth == 0;
                }
                _ => {}
            }
            return true;
        }
        match letter {
            '"' => self.quoted = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                self.ended = self.depth == 0;
            }
            ',' | '}' | ']' if self.depth == 0 => {
                self.ended = true;
                return false;
            }
            _ if self.depth == 0 && self.bare && letter.is_whitespace() => {
                self.ended = true;
                return false;
            }
            _ if first => self.bare = true,
            _ => {}
        }
        true
    }

    pub fn begun(&self) -> bool {
        self.begun
    }

    pub fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name and the arguments, in how many pieces they came, and what became of it.
    fn read(text: &str) -> (Option<String>, String, usize, &'static str) {
        let (mut envelope, mut pieces) = (Envelope::default(), Vec::new());
        text.chars().for_each(|letter| envelope.push(letter, &mut pieces));
        let name = pieces.iter().find_map(|piece| match piece {
            Piece::Name(name) => Some(name.clone()),
            Piece::Arguments(_) => None,
        });
        let arguments: Vec<&str> = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Arguments(text) => Some(text.as_str()),
                Piece::Name(_) => None,
            })
            .collect();
        let state = match (envelope.is_done(), envelope.is_broken()) {
            (true, false) => "done",
            (false, true) => "broken",
            _ => "open",
        };
        (name, arguments.concat(), arguments.len(), state)
    }

    #[test]
    fn arguments_are_given_as_they_are_written() {
        let written = r#"{"a" : [1, {"b":"}\" ]"}],  "c":1.50}"#;
        let (name, arguments, pieces, state) = read(&format!(r#" {{"name": "f", "arguments": {written} }}"#));
        assert_eq!((name.as_deref(), arguments.as_str(), state), (Some("f"), written, "done"));
        assert_eq!(pieces, written.chars().count(), "each letter at once");
        let (name, arguments, _, state) = read(&format!(r#"{{"parameters":{written},"type":"function","name":"f"}}"#));
        assert_eq!((name.as_deref(), arguments.as_str(), state), (Some("f"), written, "done"));
        let (_, arguments, pieces, _) = read(r#"{"name": "f", "arguments": "{\"a\": \"\\n\"}", "id": 5}"#);
        assert_eq!((arguments.as_str(), pieces), (r#"{"a": "\n"}"#, 1), "within a string");
    }

    #[test]
    fn what_is_no_call_is_told_apart() {
        for text in ["[", "{}", r#"{"name": "f"}"#, r#"{"a": 1, "b": {}}"#, r#"{"name" 1"#, r#"{"arguments": {}}"#, "x"]
        {
            let (name, arguments, _, state) = read(text);
            assert_eq!((name, arguments.as_str(), state), (None, "", "broken"), "{text}");
        }
        assert_eq!(read(r#"{"name": "f", "arguments": {"a"#).3, "open");
        assert_eq!(read(r#"{"name": "f", "n": -1.5e3 , "arguments": {}}"#).3, "done");
    }
}
