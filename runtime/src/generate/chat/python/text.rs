//! How Python writes values.

use minijinja::Value;
use minijinja::value::ValueKind;

/// Lists and mappings within each other that are written at most: a template may build them without end.
pub(super) const DEEPEST: usize = 200;

/// `str(value)`.
pub(super) fn of(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => representation(value),
    }
}

/// `repr(value)`.
pub(super) fn representation(value: &Value) -> String {
    let mut out = String::new();
    represent(value, &mut out, 0);
    out
}

/// `repr(value)`, added to `out`.
fn represent(value: &Value, out: &mut String, depth: usize) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => out.push_str(&format!("{value:?}")),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if depth == DEEPEST => out.push_str("..."),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                out.push_str(if count > 0 { ", " } else { "" });
                represent(&item, out, depth + 1);
                count += 1;
            }
            out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                represent(&key, out, depth + 1);
                out.push_str(": ");
                represent(&value.get_item(&key).unwrap_or_default(), out, depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// An integer, or the shortest text of a float, with an exponent from 1e16 on and below 1e-4.
pub(super) fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => of_float(float),
        _ => value.to_string(),
    }
}

fn of_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    let shortest = format!("{value:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else { return shortest };
    match exponent.parse::<i32>() {
        Ok(exponent) if (-4..16).contains(&exponent) => {
            let text = value.to_string();
            if text.contains('.') { text } else { text + ".0" }
        }
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => shortest,
    }
}
