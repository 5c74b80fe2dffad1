//! `json.dumps`, as templates call it.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::{named, refused, string};
use super::text::{DEEPEST, number};

/// `json.dumps(value, ensure_ascii=False)`, with `indent`, `separators`, `sort_keys` and `ensure_ascii` as there.
pub(super) fn dumps(value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let [ascii, indent, separators, sorted] = named(arguments, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(i64::try_from(indent)?.clamp(0, 64)).unwrap_or(0))),
        },
    };
    let separators = separators.map(|pair| pair.try_iter()?.map(string).collect::<Result<Vec<_>, _>>());
    let (item, key) = match separators.transpose()?.as_deref() {
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refused("tojson needs two separators")),
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style { item, key, indent, ascii: truth(ascii), sorted: truth(sorted) };
    let mut out = String::new();
    style.write(value, &mut out, 0)?;
    Ok(Value::from_safe_string(out))
}

struct Style {
    item: String,
    key: String,
    /// What a level is indented by; none: all on one line.
    indent: Option<String>,
    ascii: bool,
    sorted: bool,
}

impl Style {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth == DEEPEST {
            return Err(refused("tojson: lists and objects within each other are too deep"));
        }
        match value.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => out.push_str(&scalar(value)),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut filled = false;
                for item in value.try_iter()? {
                    self.separate(out, depth, filled);
                    filled = true;
                    self.write(&item, out, depth + 1)?;
                }
                self.close(out, depth, filled, ']');
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let text = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => scalar(&key),
                        other => return Err(refused(format!("tojson: a key is a {other}, not text"))),
                    };
                    pairs.push((text, value.get_item(&key)?));
                }
                if self.sorted {
                    pairs.sort_by(|one, other| one.0.cmp(&other.0));
                }
                out.push('{');
                for (at, (key, value)) in pairs.iter().enumerate() {
                    self.separate(out, depth, at > 0);
                    self.quote(key, out);
                    out.push_str(&self.key);
                    self.write(value, out, depth + 1)?;
                }
                self.close(out, depth, !pairs.is_empty(), '}');
            }
            other => return Err(refused(format!("tojson: {other} is nothing that JSON has"))),
        }
        Ok(())
    }

    fn separate(&self, out: &mut String, depth: usize, filled: bool) {
        if filled {
            out.push_str(&self.item);
        }
        self.new_line(out, depth + 1);
    }

    fn close(&self, out: &mut String, depth: usize, filled: bool, bracket: char) {
        if filled {
            self.new_line(out, depth);
        }
        out.push(bracket);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                other if other < ' ' || self.ascii && !other.is_ascii() => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                other => out.push(other),
            }
        }
        out.push('"');
    }
}

fn scalar(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => (if value.is_true() { "true" } else { "false" }).into(),
        _ => match number(value).as_str() {
            "nan" => "NaN".into(),
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            number => number.to_owned(),
        },
    }
}
