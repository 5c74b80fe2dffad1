//! What Jinja2 parses and the crate for it does not, rewritten before it is parsed: line ends, `{% generation %}`, `%` of text, plus before a number.

/// The function that stands for `%` between two operands.
pub(super) const REMAINDER: &str = "__remainder";

/// A template's source as the crate reads it. Lines stay where they are, so that errors name them right.
pub(super) fn rewritten(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = ["{{", "{%", "{#"].into_iter().filter_map(|mark| rest.find(mark)).min() {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let copied = if rest.starts_with("{#") { rest.find("#}").map(|end| end + 2) } else { end_of_raw(rest) };
        if let Some(end) = copied {
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if let Some(tag) = Tag::of(rest) {
            out.push_str(&tag.rewritten());
            rest = &rest[tag.length..];
        } else {
            // It does not end: an error, which the parser words.
            break;
        }
    }
    out + rest
}

/// Where a `{% raw %}` block ends that `text` begins with, its `{% endraw %}` included.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut end = plain_tag(text, "raw")?;
    loop {
        end += text[end..].find("{%")?;
        match plain_tag(&text[end..], "endraw") {
            Some(length) => return Some(end + length),
            None => end += 2,
        }
    }
}

/// The length of the tag that `text` begins with, if it is this word and nothing else.
fn plain_tag(text: &str, word: &str) -> Option<usize> {
    let inside = text.strip_prefix("{%")?;
    let after = inside.trim_start_matches(['-', '+']).trim_start().strip_prefix(word)?;
    let after = after.trim_start().trim_start_matches(['-', '+']).strip_prefix("%}")?;
    Some(text.len() - after.len())
}

/// `{{ … }}` or `{% … %}`.
struct Tag<'t> {
    text: &'t str,
    tokens: Vec<Token<'t>>,
    length: usize,
}

#[derive(Clone, Copy)]
struct Token<'t> {
    text: &'t str,
    start: usize,
}

impl<'t> Tag<'t> {
    /// The tag that `text` begins with; none where it does not end, or is a comment.
    fn of(text: &'t str) -> Option<Tag<'t>> {
        if text.starts_with("{#") {
            return None;
        }
        let close = if text.starts_with("{{") { "}}" } else { "%}" };
        let signed = text[2..].starts_with(['-', '+']);
        let (mut at, mut depth, mut tokens) = (if signed { 3 } else { 2 }, 0, Vec::new());
        loop {
            at += text[at..].len() - text[at..].trim_start().len();
            let rest = &text[at..];
            if depth == 0 && rest.trim_start_matches(['-', '+']).starts_with(close) && rest.find(close) <= Some(1) {
                let length = at + rest.find(close)? + 2;
                return Some(Tag { text, tokens, length });
            }
            let length = token_length(rest)?;
            let token = Token { text: &rest[..length], start: at };
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" if depth > 0 => depth -= 1,
                _ => {}
            }
            tokens.push(token);
            at += length;
        }
    }

    fn rewritten(&self) -> String {
        let block = self.text.starts_with("{%");
        let mut writer = Writer::default();
        let mut written = 0;
        for (index, token) in self.tokens.iter().enumerate() {
            let gap = &self.text[written..token.start];
            written = token.start + token.text.len();
            let text = match token.text {
                "generation" if block && self.tokens.len() == 1 => "if true",
                "endgeneration" if block && self.tokens.len() == 1 => "endif",
                text => text,
            };
            if block && index == 0 {
                writer.out += &format!("{gap}{text}");
            } else {
                writer.write(gap, text);
            }
        }
        writer.end_term();
        writer.out + &self.text[written..self.length]
    }
}

/// The length of the token that `text` begins with: a text, a word or a number, an operator.
fn token_length(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    match first {
        '"' | '\'' => {
            let mut escaped = false;
            for (at, character) in text.char_indices().skip(1) {
                match character {
                    _ if escaped => escaped = false,
                    '\\' => escaped = true,
                    other if other == first => return Some(at + 1),
                    _ => {}
                }
            }
            None
        }
        _ if is_of_word(first) => Some(text.find(|c| !is_of_word(c)).unwrap_or(text.len())),
        _ => Some(
            ["**", "//", "==", "!=", "<=", ">="]
                .iter()
                .find(|two| text.starts_with(**two))
                .map_or(first.len_utf8(), |_| 2),
        ),
    }
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// An expression as it is written, operand by operand.
#[derive(Default)]
struct Writer {
    out: String,
    /// That of the outermost expression, and of each bracket that is open.
    outer: Vec<Term>,
    term: Term,
    /// The token before the last one, and the last one.
    before: [String; 2],
}

/// Operands that `*`, `/`, `//`, `%` and `**` join.
#[derive(Clone, Copy, Default)]
struct Term {
    /// Where it begins in what is written.
    start: Option<usize>,
    /// Whether an operand stands last, so that a sign joins two.
    has_operand: bool,
    /// Whether the right operand of a `%` is being written.
    open: bool,
}

impl Writer {
    fn write(&mut self, gap: &str, token: &str) {
        let [second, last] = &self.before;
        let of_test = last == "is" || second == "is" && last == "not";
        let named = of_test || last == "." || last == "|";
        let is_word = token.starts_with(is_of_word) || token.starts_with(['"', '\'']);
        match token {
            "%" if self.term.has_operand => {
                self.close();
                let start = self.term.start.unwrap_or(self.out.len());
                self.out.insert_str(start, &format!("{REMAINDER}("));
                self.out += &format!("{gap},");
                self.term.open = true;
                self.term.has_operand = false;
            }
            "*" | "/" | "//" => {
                self.close();
                self.out += &format!("{gap}{token}");
                self.term.has_operand = false;
            }
            "**" => {
                self.out += &format!("{gap}{token}");
                self.term.has_operand = false;
            }
            "+" if !self.term.has_operand => self.out += &format!("{gap} "),
            "-" if !self.term.has_operand => self.operand(gap, token, false),
            "(" | "[" | "{" => {
                self.operand(gap, token, false);
                self.outer.push(std::mem::take(&mut self.term));
            }
            ")" | "]" | "}" => {
                self.end_term();
                self.out += &format!("{gap}{token}");
                self.term = self.outer.pop().unwrap_or_default();
                self.term.has_operand = true;
            }
            "." | "|" | "is" => self.operand(gap, token, true),
            _ if named && is_word => self.operand(gap, token, true),
            "and" | "or" | "not" | "in" | "if" | "else" => self.between(gap, token),
            _ if is_word => self.operand(gap, token, true),
            _ => self.between(gap, token),
        }
        self.before = [std::mem::take(&mut self.before[1]), token.to_owned()];
    }

    /// A part of an operand.
    fn operand(&mut self, gap: &str, token: &str, whole: bool) {
        self.out.push_str(gap);
        self.term.start.get_or_insert(self.out.len());
        self.term.has_operand = whole;
        self.out.push_str(token);
    }

    /// What stands between two terms.
    fn between(&mut self, gap: &str, token: &str) {
        self.end_term();
        self.out += &format!("{gap}{token}");
    }

    fn end_term(&mut self) {
        self.close();
        self.term = Term::default();
    }

    /// Ends the right operand of a `%`.
    fn close(&mut self) {
        if std::mem::take(&mut self.term.open) {
            self.out.push(')');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_become_calls_and_the_rest_stays() {
        for (source, expected) in [
            ("{{ a % b }}", "{{ __remainder(a , b) }}"),
            ("{{ '%s' % 'x' | upper ~ '%' }}", "{{ __remainder('%s' , 'x' | upper) ~ '%' }}"),
            ("{{ a * b % c % d * e + f }}", "{{ __remainder(__remainder(a * b , c) , d) * e + f }}"),
            ("{{ -a % -b ** 2 - c }}", "{{ __remainder(-a , -b ** 2) - c }}"),
            (
                "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}",
                "{%- if (m.role == 'user') != (__remainder(loop.index0 , 2) == 0) -%}",
            ),
            (
                "{{ f(x % 2, y=[a[i % 3] % 4]) }}",
                "{{ f(__remainder(x , 2), y=[__remainder(a[__remainder(i , 3)] , 4)]) }}",
            ),
            (
                "{{ 1 if x is not in [2] and a.not % 3 else b % 2 }}",
                "{{ 1 if x is not in [2] and __remainder(a.not , 3) else __remainder(b , 2) }}",
            ),
            ("{% set ns.x = a %\n  b %}", "{% set ns.x = __remainder(a ,\n  b) %}"),
            ("{{ {'a': {'b': 1 % 2}} }}", "{{ {'a': {'b': __remainder(1 , 2)}} }}"),
            ("{{ + a - + b + c }}", "{{   a -   b + c }}"),
            ("{%+ if true +%}+ 1{{- ' % ' -}}\r\n %\r", "{%+ if true +%}+ 1{{- ' % ' -}}\n %\n"),
            (
                "{# {% #}{% generation %}{% raw %}{{ a % b }}{% generation %}{%- endraw %}",
                "{# {% #}{% if true %}{% raw %}{{ a % b }}{% generation %}{%- endraw %}",
            ),
            ("{%- generation -%}{%endgeneration%}{{ generation }}", "{%- if true -%}{%endif%}{{ generation }}"),
            ("{{ '\\'%}}' % a }}", "{{ __remainder('\\'%}}' , a) }}"),
            ("{{ 'a", "{{ 'a"),
            ("{# a", "{# a"),
            ("{{ a % ", "{{ a % "),
        ] {
            assert_eq!(rewritten(source), expected, "{source}");
        }
    }
}
