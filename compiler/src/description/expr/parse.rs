//! Text to expression: a lexer and a precedence climber.

use super::super::diagnostics::{Code, Diagnostic, Span};
use super::super::value::Value;
use super::tree::{Expr, Function, Kind, Operator};

/// Deeper nesting than this is refused: no sane expression has it, and the reader recurses.
const DEPTH: usize = 48;

/// More words than this are refused for the same reason: `1 + 1 + …` nests too.
const LENGTH: usize = 500;

/// Maps the bytes of a string's value to the bytes of the file.
#[derive(Clone, Debug)]
pub struct Locator {
    start: Option<usize>,
    whole: Span,
}

impl Locator {
    /// For the TOML string at `whole` (its quotes included) in `file`, whose value is `value`. A string with escapes is located as a whole.
    pub fn of_string(file: &str, whole: Span, value: &str) -> Self {
        let raw = &file[whole.clone()];
        let quotes = if raw.starts_with("\"\"\"") || raw.starts_with("'''") { 3 } else { 1 };
        let exact = raw.get(quotes..raw.len().saturating_sub(quotes)) == Some(value);
        Self { start: exact.then_some(whole.start + quotes), whole }
    }

    /// The file's span of the bytes `range` of the string's value.
    pub fn at(&self, range: Span) -> Span {
        match self.start {
            Some(start) => start + range.start..start + range.end,
            None => self.whole.clone(),
        }
    }
}

pub(super) fn parse(text: &str, locator: &Locator) -> Result<Expr, Diagnostic> {
    let tokens = lex(text, locator)?;
    if tokens.len() > LENGTH {
        return Err(syntax(locator.at(0..text.len()), "the expression is too long"));
    }
    let mut parser = Parser { tokens, next: 0, end: text.len(), locator, depth: 0 };
    let expr = parser.choice()?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(parser.error(token.span.clone(), format!("`{}` is not expected here", token.text))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TokenKind {
    Number,
    Text,
    Word,
    Symbol,
}

#[derive(Clone, Debug)]
struct Token<'a> {
    kind: TokenKind,
    text: &'a str,
    /// In the expression's own text.
    span: Span,
}

const SYMBOLS: &[&str] =
    &["**", "//", "==", "!=", "<=", ">=", "??", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", ",", "."];

fn lex<'a>(text: &'a str, locator: &Locator) -> Result<Vec<Token<'a>>, Diagnostic> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let taken = |more: fn(char) -> bool| rest.find(|c| !more(c)).unwrap_or(rest.len());
        let (kind, length) = if first.is_ascii_alphabetic() || first == '_' {
            (TokenKind::Word, taken(|c| c.is_ascii_alphanumeric() || c == '_'))
        } else if first.is_ascii_digit() {
            (TokenKind::Number, number_length(rest))
        } else if first == '\'' || first == '"' {
            let Some(end) = rest[1..].find(first) else {
                return Err(syntax(locator.at(at..text.len()), "this text has no closing quote"));
            };
            (TokenKind::Text, end + 2)
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            (TokenKind::Symbol, symbol.len())
        } else {
            let error =
                syntax(locator.at(at..at + first.len_utf8()), format!("`{first}` has no meaning in an expression"));
            return Err(match first {
                '=' => error.help("write `==` to compare"),
                '&' => error.help("write `and`"),
                '|' => error.help("write `or`"),
                '!' => error.help("write `not`"),
                '?' | ':' => error.help("write `a if condition else b`"),
                _ => error,
            });
        };
        tokens.push(Token { kind, text: &rest[..length], span: at..at + length });
        at += length;
    }
    Ok(tokens)
}

/// Digits, a fraction, an exponent; letters that follow directly are taken too, so that `2x` is one wrong number.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let fraction = *byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
        let sign = matches!(byte, b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E');
        if byte.is_ascii_alphanumeric() || *byte == b'_' || fraction || sign {
            at += 1;
        } else {
            break;
        }
    }
    at
}

fn syntax(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Code::ExpressionSyntax, message).at(span, "")
}

struct Parser<'a, 'l> {
    tokens: Vec<Token<'a>>,
    next: usize,
    end: usize,
    locator: &'l Locator,
    depth: usize,
}

/// Left-associative levels, loosest first; `not`, `??`, sign and power are between them by hand.
const LOGIC: [&[(&str, Operator)]; 2] = [&[("or", Operator::Or)], &[("and", Operator::And)]];
const COMPARE: &[(&str, Operator)] = &[
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    ("<=", Operator::LessEqual),
    (">", Operator::Greater),
    (">=", Operator::GreaterEqual),
    ("in", Operator::In),
];
const ARITHMETIC: [&[(&str, Operator)]; 2] = [
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("//", Operator::FloorDivide), ("%", Operator::Remainder)],
];
const RESERVED: &[&str] = &["if", "else", "and", "or", "not", "in"];

impl<'a> Parser<'a, '_> {
    fn choice(&mut self) -> Result<Expr, Diagnostic> {
        self.deeper(|parser| {
            let then = parser.logic(0)?;
            if !parser.take("if") {
                return Ok(then);
            }
            let condition = parser.logic(0)?;
            parser.need("else", "`a if condition else b` needs its `else`")?;
            let otherwise = parser.choice()?;
            let span = join(&then, &otherwise);
            let kind =
                Kind::Choice { condition: Box::new(condition), then: Box::new(then), otherwise: Box::new(otherwise) };
            Ok(Expr { kind, span })
        })
    }

    fn logic(&mut self, level: usize) -> Result<Expr, Diagnostic> {
        let Some(operators) = LOGIC.get(level) else { return self.negation() };
        let mut left = self.logic(level + 1)?;
        while let Some(operator) = self.take_one(operators) {
            let right = self.logic(level + 1)?;
            left = binary(operator, left, right);
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Expr, Diagnostic> {
        let Some(token) = self.peek().filter(|token| token.text == "not").cloned() else { return self.comparison() };
        self.next += 1;
        let operand = self.deeper(Self::negation)?;
        let span = self.locator.at(token.span).start..operand.span.end;
        Ok(Expr { kind: Kind::Not(Box::new(operand)), span })
    }

    fn comparison(&mut self) -> Result<Expr, Diagnostic> {
        let left = self.default()?;
        let Some(operator) = self.comparator() else { return Ok(left) };
        let right = self.default()?;
        let compared = binary(operator, left, right);
        let again = self.peek().map(|token| token.span.clone());
        match (self.comparator(), again) {
            (Some(_), Some(span)) => {
                Err(self.error(span, "comparisons do not chain").help("join two comparisons with `and`"))
            }
            _ => Ok(compared),
        }
    }

    fn comparator(&mut self) -> Option<Operator> {
        let follows = self.tokens.get(self.next + 1).is_some_and(|token| token.text == "in");
        if follows && self.peek().is_some_and(|token| token.text == "not") {
            self.next += 2;
            return Some(Operator::NotIn);
        }
        self.take_one(COMPARE)
    }

    fn default(&mut self) -> Result<Expr, Diagnostic> {
        self.deeper(|parser| {
            let left = parser.arithmetic(0)?;
            if !parser.take("??") {
                return Ok(left);
            }
            let right = parser.default()?;
            let span = join(&left, &right);
            Ok(Expr { kind: Kind::Default(Box::new(left), Box::new(right)), span })
        })
    }

    fn arithmetic(&mut self, level: usize) -> Result<Expr, Diagnostic> {
        let Some(operators) = ARITHMETIC.get(level) else { return self.sign() };
        let mut left = self.arithmetic(level + 1)?;
        while let Some(operator) = self.take_one(operators) {
            let right = self.arithmetic(level + 1)?;
            left = binary(operator, left, right);
        }
        Ok(left)
    }

    fn sign(&mut self) -> Result<Expr, Diagnostic> {
        let Some(token) = self.peek().filter(|token| token.text == "-").cloned() else { return self.power() };
        self.next += 1;
        let operand = self.deeper(Self::sign)?;
        let span = self.locator.at(token.span).start..operand.span.end;
        Ok(Expr { kind: Kind::Negate(Box::new(operand)), span })
    }

    fn power(&mut self) -> Result<Expr, Diagnostic> {
        let base = self.part()?;
        if !self.take("**") {
            return Ok(base);
        }
        let exponent = self.deeper(Self::sign)?;
        Ok(binary(Operator::Power, base, exponent))
    }

    fn part(&mut self) -> Result<Expr, Diagnostic> {
        let mut whole = self.atom()?;
        loop {
            if self.take("[") {
                let index = self.choice()?;
                let end = self.need("]", "this index has no closing `]`")?;
                let span = whole.span.start..end.end;
                whole = Expr { kind: Kind::Index(Box::new(whole), Box::new(index)), span };
            } else if self.take(".") {
                let token = self.peek().filter(|token| token.kind == TokenKind::Word).cloned();
                let Some(token) = token else { return Err(self.here("a key is expected after `.`")) };
                self.next += 1;
                let span = whole.span.start..self.locator.at(token.span).end;
                whole = Expr { kind: Kind::Member(Box::new(whole), token.text.to_owned()), span };
            } else {
                return Ok(whole);
            }
        }
    }

    fn atom(&mut self) -> Result<Expr, Diagnostic> {
        let Some(token) = self.peek().cloned() else { return Err(self.here("the expression ends too early")) };
        let span = self.locator.at(token.span.clone());
        self.next += 1;
        let kind = match token.kind {
            TokenKind::Number => Kind::Literal(self.number(&token)?),
            TokenKind::Text => Kind::Literal(token.text[1..token.text.len() - 1].into()),
            TokenKind::Word if RESERVED.contains(&token.text) => {
                return Err(self.error(token.span, format!("a value is expected here, not `{}`", token.text)));
            }
            TokenKind::Word if self.take("(") => return self.call(&token),
            TokenKind::Word => match token.text {
                "true" => Kind::Literal(Value::Bool(true)),
                "false" => Kind::Literal(Value::Bool(false)),
                "null" => Kind::Literal(Value::Null),
                "layer" => Kind::Layer,
                name => Kind::Key(name.to_owned()),
            },
            TokenKind::Symbol if token.text == "(" => {
                let mut inner = self.choice()?;
                let end = self.need(")", "this `(` has no closing `)`")?;
                inner.span = span.start..end.end;
                return Ok(inner);
            }
            TokenKind::Symbol if token.text == "[" => {
                let (items, end) = self.list("]")?;
                return Ok(Expr { kind: Kind::List(items), span: span.start..end.end });
            }
            TokenKind::Symbol => {
                return Err(self.error(token.span, format!("a value is expected here, not `{}`", token.text)));
            }
        };
        Ok(Expr { kind, span })
    }

    fn call(&mut self, name: &Token<'a>) -> Result<Expr, Diagnostic> {
        let (mut arguments, end) = self.list(")")?;
        let span = self.locator.at(name.span.clone()).start..end.end;
        let (function, least, most) = match name.text {
            "min" => (Some(Function::Min), 1, usize::MAX),
            "max" => (Some(Function::Max), 1, usize::MAX),
            "sqrt" => (Some(Function::Sqrt), 1, 1),
            "log" => (Some(Function::Log), 1, 1),
            "exp" => (Some(Function::Exp), 1, 1),
            "len" => (Some(Function::Len), 1, 1),
            "int" => (Some(Function::Int), 1, 1),
            "default" | "given" => (None, 2, 2),
            other => {
                let error = self.error(name.span.clone(), format!("there is no function `{other}`"));
                return Err(
                    error.suggest(other, ["min", "max", "sqrt", "log", "exp", "len", "int", "default", "given"])
                );
            }
        };
        if arguments.len() < least || arguments.len() > most {
            let message = format!("`{}` takes {}, not {}", name.text, counted(least), arguments.len());
            return Err(syntax(span, message));
        }
        let kind = match function {
            Some(function) => Kind::Call(function, arguments),
            None => {
                let fallback = Box::new(arguments.remove(1));
                let first = arguments.remove(0);
                match first.kind {
                    Kind::Key(key) if name.text == "given" => Kind::Given(key, fallback),
                    _ if name.text == "given" => {
                        return Err(syntax(first.span, "`given` needs a configuration key first"));
                    }
                    _ => Kind::Default(Box::new(first), fallback),
                }
            }
        };
        Ok(Expr { kind, span })
    }

    fn list(&mut self, close: &str) -> Result<(Vec<Expr>, Span), Diagnostic> {
        let mut items = Vec::new();
        loop {
            if let Some(token) = self.peek().filter(|token| token.text == close).cloned() {
                self.next += 1;
                return Ok((items, self.locator.at(token.span)));
            }
            items.push(self.choice()?);
            if !self.take(",") {
                let end = self.need(close, &format!("`,` or `{close}` is expected here"))?;
                return Ok((items, end));
            }
        }
    }

    fn number(&self, token: &Token<'_>) -> Result<Value, Diagnostic> {
        let wrong = || self.error(token.span.clone(), format!("`{}` is not a number", token.text));
        if token.text.bytes().all(|byte| byte.is_ascii_digit()) {
            return token.text.parse().map(Value::Int).map_err(|_| wrong());
        }
        token.text.parse().ok().filter(|value: &f64| value.is_finite()).map(Value::Float).ok_or_else(wrong)
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Diagnostic>) -> Result<T, Diagnostic> {
        if self.depth == DEPTH {
            return Err(self.here("the expression is nested too deeply"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.next)
    }

    /// Text literals never match: `'if'` carries its quotes.
    fn take(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.text == text);
        self.next += usize::from(found);
        found
    }

    fn take_one(&mut self, operators: &[(&str, Operator)]) -> Option<Operator> {
        let text = self.peek()?.text;
        let (_, operator) = operators.iter().find(|(symbol, _)| *symbol == text)?;
        self.next += 1;
        Some(*operator)
    }

    fn need(&mut self, text: &str, message: &str) -> Result<Span, Diagnostic> {
        match self.peek().filter(|token| token.text == text).cloned() {
            Some(token) => {
                self.next += 1;
                Ok(self.locator.at(token.span))
            }
            None => Err(self.here(message)),
        }
    }

    fn here(&self, message: &str) -> Diagnostic {
        let span = self.peek().map_or(self.end..self.end, |token| token.span.clone());
        self.error(span, message)
    }

    fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        syntax(self.locator.at(span), message)
    }
}

fn binary(operator: Operator, left: Expr, right: Expr) -> Expr {
    let span = join(&left, &right);
    Expr { kind: Kind::Binary(operator, Box::new(left), Box::new(right)), span }
}

fn join(left: &Expr, right: &Expr) -> Span {
    left.span.start..right.span.end
}

fn counted(count: usize) -> String {
    if count == 1 { "1 argument".to_owned() } else { format!("{count} arguments") }
}
