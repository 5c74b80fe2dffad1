//! Methods of Python's str, list, tuple, dict and numbers, beyond those that the crate for it has.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::arguments::{named, refused, string};
use super::text;

/// `value.method(arguments)`.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), method, arguments)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, arguments)?,
        ValueKind::Map => match method {
            "copy" => named(arguments, []).map(|[]| Some(value.clone()))?,
            _ => None,
        },
        ValueKind::Number if method == "is_integer" && !value.is_integer() => {
            Some(Value::from(f64::try_from(value.clone())?.fract() == 0.0))
        }
        ValueKind::Number if method == "is_integer" => Some(Value::from(true)),
        ValueKind::Bool | ValueKind::Number if method == "bit_length" => {
            let magnitude = i128::try_from(value.clone())?.unsigned_abs();
            Some(Value::from(u128::BITS - magnitude.leading_zeros()))
        }
        _ => None,
    };
    own.map_or_else(|| unknown_method_callback(state, value, method, arguments), Ok)
}

/// `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// `str.center`.
pub(super) fn center(text: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    padded(left, text, missing - left, fill)
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_line_end) {
        let end = match &rest[at..] {
            tail if tail.starts_with("\r\n") => at + 2,
            tail => at + tail.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    lines.extend((!rest.is_empty()).then_some(rest));
    lines
}

fn is_line_end(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn of_text(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let made: Value = match method {
        "center" | "ljust" | "rjust" => {
            let [width, fill] = named(arguments, ["width", "fillchar"])?;
            let width = count(required(width, "width")?)?;
            let fill = fill.map(string).transpose()?.unwrap_or(" ".into());
            let mut characters = fill.chars();
            let (Some(fill), None) = (characters.next(), characters.next()) else {
                return Err(refused("the fill character must be exactly one character long"));
            };
            let missing = width.saturating_sub(text.chars().count());
            match method {
                "center" => center(text, width, fill).into(),
                "ljust" => padded(0, text, missing, fill).into(),
                _ => padded(missing, text, 0, fill).into(),
            }
        }
        "zfill" => {
            let [width] = named(arguments, ["width"])?;
            let missing = count(required(width, "width")?)?.saturating_sub(text.chars().count());
            let sign = usize::from(text.starts_with(['+', '-']));
            format!("{}{}", &text[..sign], padded(missing, &text[sign..], 0, '0')).into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let [what, start, end] = named(arguments, ["sub", "start", "end"])?;
            let what = string(required(what, "sub")?)?;
            let found = span(text, start, end)?.and_then(|(skipped, part)| {
                let at = if method.starts_with('r') { part.rfind(&what) } else { part.find(&what) }?;
                Some(skipped + part[..at].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if method.ends_with("index") => return Err(refused("substring not found")),
                None => (-1).into(),
            }
        }
        "count" => {
            let [what, start, end] = named(arguments, ["sub", "start", "end"])?;
            let what = string(required(what, "sub")?)?;
            span(text, start, end)?.map_or(0, |(_, part)| part.matches(&what).count()).into()
        }
        "startswith" | "endswith" => {
            let [what, start, end] = named(arguments, ["prefix", "start", "end"])?;
            let what = required(what, "prefix")?;
            let options = match what.kind() {
                ValueKind::String => vec![what.to_string()],
                ValueKind::Seq => what.try_iter()?.map(string).collect::<Result<_, _>>()?,
                other => return Err(refused(format!("{method} takes text or a tuple of texts, not {other}"))),
            };
            let fits = |part: &str, option: &String| match method {
                "startswith" => part.starts_with(option.as_str()),
                _ => part.ends_with(option.as_str()),
            };
            span(text, start, end)?.is_some_and(|(_, part)| options.iter().any(|option| fits(part, option))).into()
        }
        "removeprefix" | "removesuffix" => {
            let [what] = named(arguments, ["prefix"])?;
            let what = string(required(what, "prefix")?)?;
            let cut = if method == "removeprefix" { text.strip_prefix(&what) } else { text.strip_suffix(&what) };
            cut.unwrap_or(text).into()
        }
        "replace" => {
            let [old, new, most] = named(arguments, ["old", "new", "count"])?;
            let (old, new) = (string(required(old, "old")?)?, string(required(new, "new")?)?);
            match most.map(i64::try_from).transpose()?.and_then(|most| usize::try_from(most).ok()) {
                Some(most) => text.replacen(&old, &new, most).into(),
                None => text.replace(&old, &new).into(),
            }
        }
        "split" | "rsplit" => {
            let [separator, most] = named(arguments, ["sep", "maxsplit"])?;
            let separator = separator.map(string).transpose()?;
            let most = most.map(i64::try_from).transpose()?.and_then(|most| usize::try_from(most).ok());
            let parts = split(text, separator.as_deref(), most.unwrap_or(usize::MAX - 1), method == "rsplit")?;
            parts.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let [separator] = named(arguments, ["sep"])?;
            let separator = string(required(separator, "sep")?)?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            let last = method == "rpartition";
            let cut = if last { text.rsplit_once(&separator) } else { text.split_once(&separator) };
            let parts = match cut {
                Some((before, after)) => [before, &separator, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "splitlines" => {
            let [keep_ends] = named(arguments, ["keepends"])?;
            lines(text, keep_ends.is_some_and(|keep| keep.is_true())).into_iter().map(Value::from).collect()
        }
        "join" => {
            let [items] = named(arguments, ["iterable"])?;
            let texts = required(items, "iterable")?.try_iter()?.map(|item| match item.kind() {
                ValueKind::String => Ok(item.to_string()),
                other => Err(refused(format!("join takes texts, and one is a {other}"))),
            });
            texts.collect::<Result<Vec<_>, _>>()?.join(text).into()
        }
        "expandtabs" => {
            let [width] = named(arguments, ["tabsize"])?;
            let width = width.map(count).transpose()?.unwrap_or(8);
            let (mut out, mut column) = (String::new(), 0);
            for character in text.chars() {
                match character {
                    '\t' => {
                        let missing = if width == 0 { 0 } else { width - column % width };
                        out.push_str(&" ".repeat(missing));
                        column += missing;
                    }
                    other => {
                        out.push(other);
                        column = if matches!(other, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            out.into()
        }
        _ => return of_plain_text(text, method, arguments),
    };
    Ok(Some(made))
}

/// Methods that take no arguments.
fn of_plain_text(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    let made: Value = match method {
        // What folding adds to lower case in texts that people write.
        "casefold" => text.to_lowercase().replace('ß', "ss").replace('ς', "σ").into(),
        "swapcase" => {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect::<String>().into()
        }
        "title" => title(text).into(),
        "capitalize" => {
            let mut rest = text.chars();
            let first = rest.next().map(capital).unwrap_or_default();
            (first + &rest.as_str().to_lowercase()).into()
        }
        "istitle" => (text.chars().any(is_cased) && title(text) == text).into(),
        "isdecimal" => all(is_decimal).into(),
        "isidentifier" => {
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            (starts && text.chars().all(|c| c.is_alphanumeric() || c == '_')).into()
        }
        "isprintable" => text.chars().all(|c| c == ' ' || !c.is_control() && !c.is_whitespace()).into(),
        _ => return Ok(None),
    };
    named(arguments, []).map(|[]| Some(made))
}

fn of_list(value: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => named(arguments, []).map(|[]| Some(value.clone())),
        "count" => {
            let [what] = named(arguments, ["value"])?;
            let what = what.unwrap_or(Value::from(()));
            Ok(Some(value.try_iter()?.filter(|item| *item == what).count().into()))
        }
        "index" => {
            let [what] = named(arguments, ["value"])?;
            let what = what.unwrap_or(Value::from(()));
            let at = value.try_iter()?.position(|item| item == what);
            at.map(|at| Some(at.into())).ok_or_else(|| refused(format!("{} is not in the list", text::of(&what))))
        }
        _ => Ok(None),
    }
}

/// The parts between separators, or between runs of white space: `most` cuts, from the right where `last`.
fn split<'t>(text: &'t str, separator: Option<&str>, most: usize, last: bool) -> Result<Vec<&'t str>, Error> {
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(refused("empty separator")),
        Some(separator) if last => text.rsplitn(most + 1, separator).collect(),
        Some(separator) => return Ok(text.splitn(most + 1, separator).collect()),
        None => {
            let trim = if last { str::trim_end } else { str::trim_start };
            let (mut parts, mut rest) = (Vec::new(), trim(text));
            while !rest.is_empty() {
                let cut = if last { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
                let Some(cut) = cut.filter(|_| parts.len() < most) else {
                    // The last part loses the white space at its other end only where nothing was left to cut.
                    parts.push(rest);
                    break;
                };
                let (before, after) = rest.split_at(cut);
                let width = after.chars().next().map_or(0, char::len_utf8);
                let (part, left) = if last { (&after[width..], before) } else { (before, &after[width..]) };
                parts.push(part);
                rest = trim(left);
            }
            parts
        }
    };
    if last {
        parts.reverse();
    }
    Ok(parts)
}

/// The part of a text between two places counted in characters, and how many characters lie before it.
fn span(text: &str, start: Option<Value>, end: Option<Value>) -> Result<Option<(usize, &str)>, Error> {
    let length = text.chars().count() as i64;
    let place = |value: Option<Value>, default: i64| -> Result<i64, Error> {
        let place = value.map(i64::try_from).transpose()?.unwrap_or(default);
        Ok(if place < 0 { (place.saturating_add(length)).max(0) } else { place })
    };
    let (start, end) = (place(start, 0)?, place(end, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((start as usize, &text[byte(start)..byte(end)])))
}

fn padded(left: usize, text: &str, right: usize, fill: char) -> String {
    let fill = fill.to_string();
    fill.repeat(left) + text + &fill.repeat(right)
}

/// Capital letters where a word begins; what is no letter ends a word.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for character in text.chars() {
        out += &if inside { character.to_lowercase().to_string() } else { capital(character) };
        inside = is_cased(character);
    }
    out
}

/// A letter as a word begins with it: of those that become two, only the first is a capital.
fn capital(character: char) -> String {
    let mut upper = character.to_uppercase();
    let first = upper.next().map(String::from).unwrap_or_default();
    first + &upper.flat_map(char::to_lowercase).collect::<String>()
}

fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase()
}

/// A decimal digit of any script; superscripts, fractions and circled numbers are none.
fn is_decimal(character: char) -> bool {
    let others = ['\u{b2}', '\u{b3}', '\u{b9}', '\u{bc}', '\u{bd}', '\u{be}'];
    let listed = others.contains(&character) || matches!(character, '\u{2070}'..='\u{218b}' | '\u{2460}'..='\u{24ff}');
    character.is_numeric() && !listed
}

/// A width: less than nothing is nothing, and what no text needs is refused.
fn count(value: Value) -> Result<usize, Error> {
    match i64::try_from(value)? {
        wide if wide > 1 << 20 => Err(refused(format!("{wide} is too wide"))),
        width => Ok(usize::try_from(width).unwrap_or(0)),
    }
}

fn required(value: Option<Value>, name: &str) -> Result<Value, Error> {
    value.ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("the argument {name} is missing")))
}
