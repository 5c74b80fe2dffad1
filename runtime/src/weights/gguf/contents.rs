//! What a GGUF file holds.

use super::super::dtype::Dtype;
use super::super::stored::Tensor;
use std::collections::BTreeMap;

/// The key-value part of a GGUF file: what the model is, and its tokenizer.
#[derive(Debug, Default)]
pub struct Metadata {
    pub(super) values: BTreeMap<String, Value>,
}

/// One metadata value, widened to the largest type of its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Text that is not UTF-8, under a key that nothing reads.
    Unreadable,
    /// A list whose elements are of one type.
    List(Vec<Value>),
}

/// The bytes that start every GGUF file.
pub(in crate::weights) const MAGIC: &[u8; 4] = b"GGUF";

/// A parsed file: metadata and where each tensor lies, under its name in the file.
pub(super) struct Contents {
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, Entry>,
}

/// A tensor as the file lists it.
pub(super) struct Entry {
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// Which part of a model in several files.
    pub file: usize,
    /// From the start of the file; empty where the type is not read.
    pub bytes: std::ops::Range<usize>,
}

/// What a checkpoint needs of a GGUF file: config.json in transformers' form, its metadata, and its tensors under transformers' names.
pub(in crate::weights) struct Opened {
    pub config: serde_json::Value,
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Value {
    /// The text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, where it is not negative.
    pub fn unsigned(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The number, as a float.
    pub fn float(&self) -> Option<f64> {
        match *self {
            Value::Float(value) => Some(value),
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            _ => None,
        }
    }

    /// The boolean.
    pub fn boolean(&self) -> Option<bool> {
        match *self {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The text under a key; `None` where it is absent or no text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// The non-negative integer under a key.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        self.get(key)?.unsigned()
    }

    /// The number under a key, as a float.
    pub fn float(&self, key: &str) -> Option<f64> {
        self.get(key)?.float()
    }

    /// The boolean under a key.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.get(key)?.boolean()
    }

    /// The list under a key.
    pub fn list(&self, key: &str) -> Option<&[Value]> {
        match self.get(key)? {
            Value::List(values) => Some(values),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(crate) fn from_pairs(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Metadata {
        Metadata { values: pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
    }
}
