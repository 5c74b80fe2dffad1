//! The fields of a request: each is taken once, by its name and type; what nobody takes is named to who sent it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::problem::Problem;

/// An object whose fields are taken one by one. A field that is null is absent.
pub struct Fields {
    map: Map<String, Value>,
    /// What stands before the names in messages: `options.`, say.
    path: String,
}

impl Fields {
    /// Those of an object.
    pub fn new(map: Map<String, Value>) -> Fields {
        Fields { map, path: String::new() }
    }

    /// The object that a body holds.
    pub fn parse(body: &[u8]) -> Result<Fields, Problem> {
        if body.is_empty() {
            return Err(Problem::invalid("the body is empty: send a JSON object"));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map, path: String::new() }),
            Ok(other) => Err(Problem::invalid(format!("the body is {}, not a JSON object", kind(&other)))),
            Err(error) => Err(Problem::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    /// An object within a request. `path`: where it stands.
    pub fn within(value: Value, path: &str) -> Result<Fields, Problem> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(Problem::field(path, format!("`{path}` is {}; give an object", kind(&other)))),
        }
    }

    /// The name of a field as messages have it.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// A field of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(name, &other, "a string")),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.mistyped(name, &other, "true or false")),
        }
    }

    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.mistyped(name, &other, "a list")),
        }
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, Problem> {
        let path = self.name(name);
        self.take(name).map(|value| Fields::within(value, &path)).transpose()
    }

    /// A number within a range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.mistyped(name, &value, "a number"))?;
        if !range.contains(&number) {
            return Err(self.beyond(name, &value, range.start(), range.end()));
        }
        Ok(Some(number as f32))
    }

    /// A whole number within a range. `8.0` is one too.
    pub fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let whole = match (value.as_i64(), value.as_f64()) {
            (Some(whole), _) => whole,
            (None, Some(number)) if number.fract() == 0.0 => number as i64,
            _ => return Err(self.mistyped(name, &value, "a whole number")),
        };
        if !range.contains(&whole) {
            return Err(self.beyond(name, &value, range.start(), range.end()));
        }
        Ok(Some(whole))
    }

    /// Takes fields that are known and have no effect.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// The names of the fields that nobody took, in the order of the request.
    pub fn left(&self) -> Vec<String> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| self.name(name)).collect()
    }

    /// A field that is not of the type it must be.
    pub fn mistyped(&self, name: &str, found: &Value, wanted: &str) -> Problem {
        let name = self.name(name);
        let message = format!("`{name}` is {}; give {wanted}", kind(found));
        Problem::field(name, message)
    }

    fn beyond(&self, name: &str, found: &Value, least: impl ToString, most: impl ToString) -> Problem {
        let name = self.name(name);
        let message = format!("`{name}` is {found}; give {} to {}", least.to_string(), most.to_string());
        Problem::field(name, message)
    }
}

/// A number as a user would write it: 0.8, where the nearest double is 0.800000011920929.
pub fn decimal(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// What a value is, for a message.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn fields_are_taken_by_type_and_the_rest_is_named() {
        let mut some = fields(r#"{"a": 1.5, "b": 8.0, "c": null, "d": {"e": "x", "f": 1}, "g": null, "h": 1}"#);
        assert_eq!(some.number("a", 0.0..=2.0), Ok(Some(1.5)));
        assert_eq!(some.whole("b", 0..=8), Ok(Some(8)));
        assert_eq!(some.flag("c"), Ok(None));
        let mut inner = some.object("d").unwrap().unwrap();
        assert_eq!(inner.text("e"), Ok(Some("x".into())));
        assert_eq!((inner.left(), some.left()), (vec!["d.f".to_owned()], vec!["h".to_owned()]));
    }

    #[test]
    fn a_mistake_names_the_field_what_it_is_and_what_to_give() {
        let said = |problem: Problem| (problem.param.unwrap_or_default(), problem.message);
        let text = r#"{"a": "x", "b": 9, "c": 1.5, "d": []}"#;
        let of = |result: Result<_, Problem>| said(result.map(|_: Option<i64>| ()).unwrap_err());
        assert_eq!(of(fields(text).whole("a", 0..=8)), ("a".into(), "`a` is a string; give a whole number".into()));
        assert_eq!(of(fields(text).whole("b", 0..=8)), ("b".into(), "`b` is 9; give 0 to 8".into()));
        assert_eq!(of(fields(text).whole("c", 0..=8)).1, "`c` is a number; give a whole number");
        assert_eq!(said(fields(text).object("d").err().unwrap()).1, "`d` is a list; give an object");
        assert_eq!(Fields::parse(b"[1]").err().unwrap().message, "the body is a list, not a JSON object");
        assert_eq!(Fields::parse(b"").err().unwrap().message, "the body is empty: send a JSON object");
        let broken = Fields::parse(b"{\"a\": ").err().unwrap().message;
        assert!(broken.starts_with("the body is not JSON: EOF"), "{broken}");
        let deep = "[".repeat(100_000);
        assert!(Fields::parse(deep.as_bytes()).err().unwrap().message.contains("recursion limit"));
    }
}
