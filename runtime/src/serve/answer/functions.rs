//! A call whose parameters are tags, `<function=name><parameter=key>value</parameter></function>`: its arguments become a JSON object.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::envelope::Piece;

/// What ends a parameter.
pub const END_OF_PARAMETER: &str = "</parameter>";
const TAG: &str = "<tool_call>";
const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const END: &str = "</function>";
/// References that are followed, one after another.
const REFERENCES: usize = 8;

/// How a value is written in a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// As it is: a string.
    Text,
    /// As JSON.
    Json,
    /// As JSON where it is some, else as it is.
    Either,
}

impl ValueKind {
    /// That of a schema within another one.
    pub fn of(schema: &Value, root: &Value) -> ValueKind {
        let mut schema = schema;
        for _ in 0..REFERENCES {
            let Some(reference) = schema["$ref"].as_str() else { break };
            match reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
                Some(found) => schema = found,
                None => return ValueKind::Either,
            }
        }
        let of_list = |list: &[Value], is_text: &dyn Fn(&Value) -> bool| match (
            list.iter().all(is_text),
            list.iter().any(is_text),
        ) {
            (true, _) => ValueKind::Text,
            (false, true) => ValueKind::Either,
            (false, false) => ValueKind::Json,
        };
        match (&schema["enum"], &schema["const"], &schema["type"]) {
            (Value::Array(list), ..) => of_list(list, &|value| value.is_string()),
            (_, Value::String(_), _) => ValueKind::Text,
            (_, _, Value::String(name)) => of_list(&[json!(name)], &|name| name == "string"),
            (_, _, Value::Array(list)) => of_list(list, &|name| name == "string"),
            _ => ValueKind::Either,
        }
    }

    /// A value as JSON.
    fn json(self, text: &str) -> String {
        let read = || serde_json::from_str::<Value>(text).is_ok();
        match self {
            ValueKind::Json | ValueKind::Either if read() => text.to_owned(),
            _ => json!(text).to_string(),
        }
    }
}

/// A call that is read.
#[derive(Clone, Debug, Default)]
pub struct Function {
    name: Option<String>,
    parameters: usize,
    at: At,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Within,
    Done,
    Broken,
}

impl Function {
    /// Whether its name has been given.
    pub fn begun(&self) -> bool {
        self.name.is_some()
    }

    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether it is no call, or none any more.
    pub fn is_broken(&self) -> bool {
        self.at == At::Broken
    }

    /// Takes what is known from what is held, which begins with the call; whether there may be more.
    pub fn read(&mut self, held: &mut String, tools: &BTreeMap<String, Value>, out: &mut Vec<Piece>) -> bool {
        match &self.name {
            None => self.begin(held, out),
            Some(name) => {
                let schema = tools.get(name).unwrap_or(&Value::Null).clone();
                self.go_on(held, &schema, out)
            }
        }
    }

    fn begin(&mut self, held: &mut String, out: &mut Vec<Piece>) -> bool {
        let text = held.strip_prefix(TAG).unwrap_or(held).trim_start();
        if let Some(rest) = text.strip_prefix(FUNCTION) {
            let Some(end) = rest.find(['>', '\n']) else { return false };
            let name = rest[..end].trim().to_owned();
            if rest.as_bytes()[end] == b'>' && !name.is_empty() {
                let rest = rest[end + 1..].to_owned();
                out.extend([Piece::Name(name.clone()), Piece::Arguments("{".into())]);
                self.name = Some(name);
                *held = rest;
                return true;
            }
        } else if FUNCTION.starts_with(text) {
            return false;
        }
        self.at = At::Broken;
        true
    }

    fn go_on(&mut self, held: &mut String, schema: &Value, out: &mut Vec<Piece>) -> bool {
        let text = held.trim_start();
        if let Some(rest) = text.strip_prefix(END) {
            out.push(Piece::Arguments("}".into()));
            self.at = At::Done;
            *held = rest.to_owned();
            return true;
        }
        if let Some(rest) = text.strip_prefix(PARAMETER) {
            let Some(end) = rest.find('>') else { return false };
            let (name, rest) = (rest[..end].trim(), &rest[end + 1..]);
            let kind = ValueKind::of(&schema["properties"][name], schema);
            let Some((value, after)) = value(rest, kind) else { return false };
            let comma = if self.parameters == 0 { "" } else { ", " };
            out.push(Piece::Arguments(format!("{comma}{}: {value}", json!(name))));
            self.parameters += 1;
            *held = after.to_owned();
            return true;
        }
        if PARAMETER.starts_with(text) || END.starts_with(text) {
            return false;
        }
        // The arguments end where nothing of them follows: what there is of them is whole.
        out.push(Piece::Arguments("}".into()));
        self.at = At::Broken;
        true
    }
}

/// The value of a parameter as JSON, and what comes after its end; nothing while there is no end.
fn value(text: &str, kind: ValueKind) -> Option<(String, &str)> {
    let mut ends = text.match_indices(END_OF_PARAMETER);
    let (end, value) = ends.find_map(|(end, _)| {
        let value = &text[..end];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        // A string within JSON may have the tag in it.
        let after = text[end + END_OF_PARAMETER.len()..].trim_start();
        let whole = kind != ValueKind::Json
            || text[..end].ends_with('\n')
            || serde_json::from_str::<Value>(value).is_ok()
            || after.starts_with(PARAMETER)
            || after.starts_with(END);
        whole.then_some((end, value))
    })?;
    Some((kind.json(value), &text[end + END_OF_PARAMETER.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_say_how_values_are_written() {
        let root = json!({"$defs": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/b"}}});
        for (schema, kind) in [
            (json!({"type": "string"}), ValueKind::Text),
            (json!({"type": ["string", "null"]}), ValueKind::Either),
            (json!({"type": "integer"}), ValueKind::Json),
            (json!({"enum": ["a", "b"]}), ValueKind::Text),
            (json!({"enum": ["a", 1]}), ValueKind::Either),
            (json!({"const": "a"}), ValueKind::Text),
            (json!({"$ref": "#/$defs/a"}), ValueKind::Json),
            (json!({"$ref": "#/$defs/b"}), ValueKind::Either),
            (json!({"$ref": "#/nowhere"}), ValueKind::Either),
            (json!({}), ValueKind::Either),
            (Value::Null, ValueKind::Either),
        ] {
            assert_eq!(ValueKind::of(&schema, &root), kind, "{schema}");
        }
    }
}
