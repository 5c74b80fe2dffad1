//! One line, read from left to right.

use super::error::ParseError;

/// Where reading stands in a line.
pub(super) struct Scan {
    line: usize,
    chars: Vec<char>,
    next: usize,
    depth: usize,
}

/// How deep attributes nest at most: a scaling within a rope within an attention, and room.
const DEPTH: usize = 8;

/// An attribute: `name=value`, or only `name` for a flag that is set.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) name: String,
    pub(super) column: usize,
    pub(super) value: AttributeValue,
}

/// What is written after the `=`, and where.
#[derive(Debug)]
pub(super) struct AttributeValue {
    pub(super) column: usize,
    pub(super) form: Form,
}

/// The forms of an attribute's value.
#[derive(Debug)]
pub(super) enum Form {
    /// Nothing: a flag.
    Flag,
    /// A number or a name.
    Word(String),
    /// `name(attributes)`.
    Call(String, Vec<Attribute>),
    /// `[values]`.
    List(Vec<AttributeValue>),
}

impl Scan {
    /// Starts at the beginning of line `line`, counted from one.
    pub(super) fn new(line: usize, text: &str) -> Scan {
        Scan { line, chars: text.chars().collect(), next: 0, depth: 0 }
    }

    /// The column of the next thing, counted from one.
    pub(super) fn column(&mut self) -> usize {
        self.space();
        self.next + 1
    }

    /// An error at a column.
    pub(super) fn error_at(&self, column: usize, message: impl Into<String>) -> ParseError {
        ParseError { line: self.line, column, message: message.into() }
    }

    /// "expected …, found …" at the next thing.
    pub(super) fn expected(&mut self, what: &str) -> ParseError {
        let column = self.column();
        let rest: String = self.chars[self.next..].iter().take_while(|c| !c.is_whitespace()).collect();
        match self.at_end() {
            true => self.error_at(column, format!("expected {what}, found the end of the line")),
            false => self.error_at(column, format!("expected {what}, found `{rest}`")),
        }
    }

    /// Whether nothing but a comment is left.
    pub(super) fn at_end(&mut self) -> bool {
        matches!(self.peek(), None | Some(';'))
    }

    /// The next character that is no space, not consumed.
    pub(super) fn peek(&mut self) -> Option<char> {
        self.space();
        self.chars.get(self.next).copied()
    }

    /// Consumes `c` if it is next.
    pub(super) fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.next += usize::from(found);
        found
    }

    /// Consumes `c`.
    pub(super) fn expect(&mut self, c: char) -> Result<(), ParseError> {
        if self.eat(c) { Ok(()) } else { Err(self.expected(&format!("`{c}`"))) }
    }

    /// A name or a number.
    pub(super) fn word(&mut self, what: &str) -> Result<String, ParseError> {
        self.space();
        let part_of_word = |c: &&char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
        let word: String = self.chars[self.next..].iter().take_while(part_of_word).collect();
        if word.is_empty() {
            return Err(self.expected(what));
        }
        self.next += word.len();
        Ok(word)
    }

    /// A count: digits only.
    pub(super) fn count(&mut self, what: &str) -> Result<usize, ParseError> {
        let column = self.column();
        let word = self.word(what)?;
        word.parse().map_err(|_| self.error_at(column, format!("expected {what}, found `{word}`")))
    }

    /// `%name`: the name.
    pub(super) fn value_name(&mut self) -> Result<String, ParseError> {
        if !self.eat('%') {
            return Err(self.expected("a value (`%name`)"));
        }
        if self.chars.get(self.next).is_none_or(|c| c.is_whitespace()) {
            return Err(self.expected("the value's name directly after `%`"));
        }
        self.word("the value's name")
    }

    /// Text between quotes.
    pub(super) fn quoted(&mut self) -> Result<String, ParseError> {
        self.expect('"').map_err(|_| self.expected("a name in double quotes"))?;
        let start = self.next;
        let mut text = String::new();
        loop {
            let column = self.next + 1;
            match self.take() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape(column)?),
                Some(c) => text.push(c),
                None => return Err(self.error_at(start, "the double quote is not closed")),
            }
        }
    }

    /// Attributes up to `close`, which is consumed; the opening bracket is consumed already.
    pub(super) fn attributes(&mut self, close: char) -> Result<Vec<Attribute>, ParseError> {
        let mut attributes = Vec::new();
        while !self.eat(close) {
            if !attributes.is_empty() {
                self.expect(',').map_err(|_| self.expected(&format!("`,` or `{close}`")))?;
            }
            let column = self.column();
            let name = self.word("an attribute")?;
            let value = match self.eat('=') {
                true => self.nested_value()?,
                false => AttributeValue { column, form: Form::Flag },
            };
            attributes.push(Attribute { name, column, value });
        }
        Ok(attributes)
    }

    fn nested_value(&mut self) -> Result<AttributeValue, ParseError> {
        if self.depth == DEPTH {
            let column = self.column();
            return Err(self.error_at(column, format!("attributes nest more than {DEPTH} deep")));
        }
        self.depth += 1;
        let value = self.attribute_value();
        self.depth -= 1;
        value
    }

    fn attribute_value(&mut self) -> Result<AttributeValue, ParseError> {
        let column = self.column();
        if self.eat('[') {
            let mut values = Vec::new();
            while !self.eat(']') {
                if !values.is_empty() {
                    self.expect(',').map_err(|_| self.expected("`,` or `]`"))?;
                }
                values.push(self.nested_value()?);
            }
            return Ok(AttributeValue { column, form: Form::List(values) });
        }
        let word = self.word("a value")?;
        let form = if self.eat('(') { Form::Call(word, self.attributes(')')?) } else { Form::Word(word) };
        Ok(AttributeValue { column, form })
    }

    fn escape(&mut self, column: usize) -> Result<char, ParseError> {
        match self.take() {
            Some(c @ ('"' | '\\')) => return Ok(c),
            Some('n') => return Ok('\n'),
            Some('u') if self.take() == Some('{') => {
                let digits: String = self.chars[self.next..].iter().take_while(|c| c.is_ascii_hexdigit()).collect();
                self.next += digits.len();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                if let (Some(c), Some('}')) = (code, self.take()) {
                    return Ok(c);
                }
            }
            _ => {}
        }
        Err(self.error_at(column, "not an escape; there are \\\", \\\\, \\n and \\u{hex}"))
    }

    fn take(&mut self) -> Option<char> {
        let c = self.chars.get(self.next).copied();
        self.next += usize::from(c.is_some());
        c
    }

    fn space(&mut self) {
        while self.chars.get(self.next).is_some_and(|c| c.is_whitespace()) {
            self.next += 1;
        }
    }
}
