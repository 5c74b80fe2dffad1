//! Jinja2's filters where the crate's differ from them or are absent.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value, filters as of_crate};

use super::arguments::{named, refused, string};
use super::{json, methods, percent, text};

/// Replaces and adds filters.
pub(super) fn add(environment: &mut Environment<'static>) {
    let mut add = |name: &'static str, filter: fn(&mut State<'_, '_>, &Value, &[Value]) -> Result<Value, Error>| {
        environment.add_filter(
            name,
            move |state: &mut State<'_, '_>, value: &Value, arguments: Rest<ValueOrKwargs>| {
                filter(state, value, &arguments.into_values())
            },
        );
    };
    add("abs", |_, value, arguments| named(arguments, []).and_then(|[]| of_crate::abs(as_number(value))));
    add("center", |_, value, arguments| {
        let [width] = named(arguments, ["width"])?;
        let width = width.map(usize::try_from).transpose()?.unwrap_or(80).min(1 << 20);
        Ok(methods::center(&text::of(value), width, ' ').into())
    });
    for name in ["default", "d"] {
        add(name, |_, value, arguments| {
            let [other, boolean] = named(arguments, ["default_value", "boolean"])?;
            let absent = value.is_undefined() || boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
            Ok(if absent { other.unwrap_or("".into()) } else { value.clone() })
        });
    }
    add("dictsort", |_, value, arguments| {
        of_crate::dictsort(value, by_keyword(arguments, ["case_sensitive", "by", "reverse"])?)
    });
    for name in ["e", "escape", "forceescape"] {
        add(name, |_, value, arguments| named(arguments, []).map(|[]| escape(value)));
    }
    add("format", |_, value, arguments| {
        let (positional, by_keyword): (&[Value], Kwargs) = from_args(arguments)?;
        let keys: Vec<&str> = by_keyword.args().collect();
        let values = match (positional, &keys[..]) {
            (positional, []) => Tuple::from(positional.to_vec()).into(),
            ([], keys) => {
                let named = keys.iter().map(|key| Ok((*key, by_keyword.get::<Value>(key)?)));
                Value::from(named.collect::<Result<BTreeMap<&str, Value>, Error>>()?)
            }
            _ => return Err(refused("format takes values in turn or by name, not both")),
        };
        percent::format(&text::of(value), &values).map(Value::from)
    });
    add("float", |state, value, arguments| {
        let [default] = named(arguments, ["default"])?;
        let default = default.unwrap_or(0.0.into());
        of_crate::float(state, &trimmed(value), Some(default), Kwargs::from_iter::<[(&str, Value); 0]>([]))
    });
    add("int", |state, value, arguments| {
        let [default, base] = named(arguments, ["default", "base"])?;
        let base = base.map(u32::try_from).transpose()?;
        of_crate::int(
            state,
            &trimmed(value),
            Some(default.unwrap_or(0.into())),
            base,
            Kwargs::from_iter::<[(&str, Value); 0]>([]),
        )
    });
    add("indent", |_, value, arguments| {
        let [width, first, blank] = named(arguments, ["width", "first", "blank"])?;
        let indent = match width {
            None => "    ".to_owned(),
            Some(width) if width.kind() == ValueKind::String => width.to_string(),
            Some(width) => " ".repeat(usize::try_from(i64::try_from(width)?.clamp(0, 1 << 16)).unwrap_or(0)),
        };
        let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        Ok(indented(&text::of(value), &indent, truth(first), truth(blank)).into())
    });
    add("pprint", |_, value, arguments| {
        let shown = if value.kind() == ValueKind::String { format!("{value:?}") } else { text::of(value) };
        named(arguments, []).map(|[]| shown.into())
    });
    add("round", |_, value, arguments| {
        let [precision, method] = named(arguments, ["precision", "method"])?;
        let precision = precision.map(i32::try_from).transpose()?;
        let method = method.map(string).transpose()?;
        let common = method.as_deref().is_none_or(|method| method == "common");
        let value = as_number(value);
        let value = if common { value } else { f64::try_from(value)?.into() };
        of_crate::round(value, precision, method.as_deref(), Kwargs::from_iter::<[(&str, Value); 0]>([]))
    });
    add("sort", |state, value, arguments| {
        of_crate::sort(state, value.clone(), by_keyword(arguments, ["reverse", "case_sensitive", "attribute"])?)
    });
    add("string", |_, value, arguments| {
        named(arguments, []).map(|[]| if value.is_safe() { value.clone() } else { text::of(value).into() })
    });
    add("tojson", |_, value, arguments| json::dumps(value, arguments));
    add("truncate", |_, value, arguments| {
        let [length, kill_words, end, leeway] = named(arguments, ["length", "killwords", "end", "leeway"])?;
        let number = |value: Option<Value>, default| value.map_or(Ok(default), usize::try_from);
        let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
        let end = end.map_or_else(|| "...".to_owned(), |end| text::of(&end));
        let whole = text::of(value);
        let Some(kept) = length.checked_sub(end.chars().count()) else {
            return Err(refused(format!("truncate: {length} characters do not hold {end:?}")));
        };
        if whole.chars().count() <= length.saturating_add(leeway) {
            return Ok(whole.into());
        }
        let cut: String = whole.chars().take(kept).collect();
        let words = if kill_words.is_some_and(|kill| kill.is_true()) { None } else { cut.rsplit_once(' ') };
        Ok((words.map_or(cut.as_str(), |(words, _)| words).to_owned() + &end).into())
    });
    add("unique", |state, value, arguments| {
        of_crate::unique(state, value.clone(), by_keyword(arguments, ["case_sensitive", "attribute"])?)
    });
    add("urlencode", |_, value, arguments| {
        let quoted = text::of(value).bytes().fold(String::new(), |quoted, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                quoted + &char::from(byte).to_string()
            }
            other => quoted + &format!("%{other:02X}"),
        });
        named(arguments, []).map(|[]| quoted.into())
    });
    add("wordcount", |_, value, arguments| {
        let whole = text::of(value);
        let words = whole.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        named(arguments, []).map(|[]| words.count().into())
    });
}

/// Positional arguments as those by keyword that they stand for.
fn by_keyword<const N: usize>(arguments: &[Value], names: [&'static str; N]) -> Result<Kwargs, Error> {
    let given = named(arguments, names)?;
    Ok(names.into_iter().zip(given).filter_map(|(name, value)| Some((name, value?))).collect())
}

/// In Python a truth is a number.
fn as_number(value: &Value) -> Value {
    if value.kind() == ValueKind::Bool { i64::from(value.is_true()).into() } else { value.clone() }
}

/// Text without the white space that Python's numbers may have around them.
fn trimmed(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| text.trim().into())
}

fn indented(text: &str, indent: &str, first: bool, blank: bool) -> String {
    let whole = format!("{text}\n");
    let mut out = String::new();
    for (at, line) in methods::lines(&whole, false).into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(indent);
        }
        out.push_str(line);
    }
    out
}

fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for character in text::of(value).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            other => out.push(other),
        }
    }
    Value::from_safe_string(out)
}
