//! JSON as Python reads it: `Infinity`, `-Infinity` and `NaN` stand where numbers do, and a number that is too large for a float is infinite.

use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// The key of the table that holds a number that JSON has no form for, under its name in Python: `{"$float": "Infinity"}`.
pub const FLOAT: &str = "$float";

/// The key of the same table as transformers 5 writes it.
const FLOAT_OF_TRANSFORMERS: &str = "__float__";

/// Reads JSON text. Numbers that are not finite become tables under [`FLOAT`], so that only what reads such a number has to refuse it.
///
/// ```
/// let config = fusec::json::parse(r#"{"limit": Infinity, "text": "NaN"}"#)?;
/// assert_eq!(config, serde_json::json!({"limit": {"$float": "Infinity"}, "text": "NaN"}));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # Errors
/// Text that is no JSON otherwise, at its line and column.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| serde_json::from_str(&quoted(text)).map_err(|_| error))
}

/// The number that a table under [`FLOAT`] stands for.
pub fn float(value: &Value) -> Option<f64> {
    let table = value.as_object().filter(|table| table.len() == 1)?;
    match table.get(FLOAT).or_else(|| table.get(FLOAT_OF_TRANSFORMERS))?.as_str()? {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => None,
    }
}

/// A value as its file has it: such numbers by their names.
pub fn shown(value: &Value) -> String {
    let named = |text: String, name| text.replace(&json!({ FLOAT: name }).to_string(), name);
    ["Infinity", "-Infinity", "NaN"].into_iter().fold(value.to_string(), named)
}

/// The text with each such number outside of strings as a table.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.find(|c| matches!(c, '"' | '-' | 'I' | 'N' | '0'..='9')) {
        out.push_str(&rest[..next]);
        rest = &rest[next..];
        if rest.starts_with('"') {
            let (string, after) = rest.split_at(string_length(rest));
            out.push_str(string);
            rest = after;
        } else if let Some(name) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|name| rest.starts_with(name)) {
            out.push_str(&format!("{{\"{FLOAT}\":\"{name}\"}}"));
            rest = &rest[name.len()..];
        } else {
            let (number, after) = rest.split_at(number_length(rest).max(1));
            match infinity(number) {
                Some(name) => out.push_str(&format!("{{\"{FLOAT}\":\"{name}\"}}")),
                None => out.push_str(number),
            }
            rest = after;
        }
    }
    out + rest
}

/// The bytes of the number that `text` begins with.
fn number_length(text: &str) -> usize {
    text.find(|c| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')).unwrap_or(text.len())
}

/// The name of what a number of JSON's form is that no float holds.
fn infinity(number: &str) -> Option<&'static str> {
    serde_json::from_str::<IgnoredAny>(number).ok()?;
    match number.parse::<f64>() {
        Ok(f64::INFINITY) => Some("Infinity"),
        Ok(f64::NEG_INFINITY) => Some("-Infinity"),
        _ => None,
    }
}

/// The bytes of the string that `text` begins with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_read_outside_of_strings() {
        let text =
            r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN, "d": "\"NaN, \\", "Infinity": -1, "e": "-Infinity"}"#;
        let value = parse(text).expect("Python reads it");
        assert_eq!(float(&value["a"][1]), Some(f64::INFINITY));
        assert_eq!(float(&value["b"]), Some(f64::NEG_INFINITY));
        assert!(float(&value["c"]).is_some_and(f64::is_nan));
        assert_eq!(
            [&value["d"], &value["Infinity"], &value["e"]],
            [&json!("\"NaN, \\"), &json!(-1), &json!("-Infinity")]
        );
        assert_eq!(float(&json!({"$float": "Infinity", "more": 1})), None);
        assert_eq!(float(&json!({"__float__": "Infinity"})), Some(f64::INFINITY));
        assert_eq!(shown(&value["a"]), "[0.0,Infinity]");
        assert_eq!([shown(&value["b"]), shown(&value["c"])], ["-Infinity", "NaN"]);
    }

    #[test]
    fn numbers_beyond_every_float_are_infinite() {
        let text = format!(
            r#"{{"a": [1e400,-1.5E+999], "b": "1e400", "c": {}, "d": 1e308, "e": -0, "f": [NaN, 2]}}"#,
            "9".repeat(400)
        );
        let value = parse(&text).expect("Python reads it");
        assert_eq!([0, 1].map(|at| float(&value["a"][at])), [Some(f64::INFINITY), Some(f64::NEG_INFINITY)]);
        assert_eq!(float(&value["c"]), Some(f64::INFINITY));
        assert_eq!([&value["b"], &value["d"], &value["f"][1]], [&json!("1e400"), &json!(1e308), &json!(2)]);
    }

    #[test]
    fn broken_text_is_an_error_at_its_own_place() {
        for text in [
            "{",
            "{\"a\": 01e400}",
            "[+1e400]",
            "[1.e400]",
            "[1e400 1]",
            "[1e400x]",
            "1e",
            "{\"a\": Infinit}",
            "{\"a\": NaN",
            "{\"a\": \"NaN}",
            "Infinity2",
            "{\"a\": InfinityNaN}",
            "\u{fc}NaN",
        ] {
            let error = parse(text).expect_err(text);
            let direct = serde_json::from_str::<Value>(text).expect_err(text);
            assert_eq!(error.to_string(), direct.to_string());
        }
    }
}
