//! What an expression can yield and a configuration can hold.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::json;

/// A typed value. Cloning is cheap.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing: an attribute that yields it is absent.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A real number.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// Values in order.
    List(Arc<[Value]>),
    /// Values by key.
    Table(Arc<BTreeMap<String, Value>>),
}

impl Value {
    /// The type's name, as messages write it, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The number, be it an int or a float.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Str(value) => Some(value),
            _ => None,
        }
    }

    /// The table.
    pub fn table(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Value::Table(value) => Some(value),
            _ => None,
        }
    }

    /// Equality in which `1` equals `1.0`.
    pub fn same(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.same(b)),
            _ => match (self.number(), other.number()) {
                (Some(a), Some(b)) => a == b,
                _ => self == other,
            },
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.into())
    }
}

impl From<&serde_json::Value> for Value {
    fn from(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => text.as_str().into(),
            serde_json::Value::Array(items) => Value::List(items.iter().map(Value::from).collect()),
            serde_json::Value::Object(items) => {
                if let Some(number) = json::float(value) {
                    return Value::Float(number);
                }
                Value::Table(Arc::new(items.iter().map(|(key, value)| (key.clone(), value.into())).collect()))
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => out.write_str("null"),
            Value::Bool(value) => write!(out, "{value}"),
            Value::Int(value) => write!(out, "{value}"),
            Value::Float(value) if value.is_nan() => out.write_str("NaN"),
            Value::Float(value) if value.is_infinite() => {
                write!(out, "{}Infinity", if *value < 0.0 { "-" } else { "" })
            }
            Value::Float(value) => write!(out, "{value:?}"),
            Value::Str(value) => write!(out, "{value:?}"),
            Value::List(items) => {
                out.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    if index == 4 && items.len() > 6 {
                        write!(out, ", … {} in all", items.len())?;
                        break;
                    }
                    write!(out, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                out.write_str("]")
            }
            Value::Table(items) => {
                out.write_str("{")?;
                for (index, (key, item)) in items.iter().enumerate() {
                    write!(out, "{}{key}: {item}", if index == 0 { "" } else { ", " })?;
                }
                out.write_str("}")
            }
        }
    }
}

/// Sizes are at most this, so that the product of two of them, in bytes, is far from overflowing.
pub(super) const MAX_COUNT: i64 = 1 << 30;

/// A size: an int from 1 to 2^30.
pub(super) fn count_of(value: &Value) -> Option<usize> {
    match value {
        Value::Int(count) if (1..=MAX_COUNT).contains(count) => usize::try_from(*count).ok(),
        _ => None,
    }
}
