//! GGUF: one file with metadata, the tokenizer and (quantised) tensors.
//!
//! The format, little-endian: magic `GGUF`, version u32, tensor count u64, metadata count u64; the metadata as (key, type u32, value); per tensor
//! its name, dimension count u32, dimensions u64 fastest first, type u32 and offset u64; padding to the alignment; the tensors' bytes, each offset
//! from there. A string is a length u64 and UTF-8 bytes.

mod families;
mod read;
mod split;

use super::{Dtype, Tensor};
use crate::map::map_file;
use anyhow::{Context, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::Path;

/// The key-value part of a GGUF file: what the model is, and its tokenizer.
#[derive(Debug, Default)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
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
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// A parsed file: metadata and where each tensor lies, under its name in the file.
struct Contents {
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor as the file lists it.
struct Entry {
    /// Slowest dimension first.
    shape: Vec<usize>,
    dtype: Dtype,
    /// Which part of a model in several files.
    file: usize,
    /// From the start of the file; empty where the type is not read.
    bytes: std::ops::Range<usize>,
}

/// What a checkpoint needs of a GGUF file: config.json in transformers' form, its metadata, and its tensors under transformers' names.
pub(super) struct Opened {
    pub config: serde_json::Value,
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads the header of the GGUF file at `path`, whose bytes are `file`, and those of the other parts where it is one of several. Returns the bytes of
/// all parts, in the order that the tensors count them.
pub(super) fn open(path: &Path, file: Mmap) -> Result<(Opened, Vec<Mmap>)> {
    let contents = read::read(&file).with_context(|| format!("{}: not a usable GGUF file", path.display()))?;
    let count = contents.metadata.unsigned("split.count").filter(|count| *count > 1);
    let (contents, files) = match count {
        Some(count) => split::join(path, file, contents, count).with_context(|| path.display().to_string())?,
        None => (contents, vec![file]),
    };
    let bytes: Vec<&[u8]> = files.iter().map(|file| &file[..]).collect();
    let opened = families::adapt(contents, &bytes).with_context(|| path.display().to_string())?;
    Ok((opened, files))
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
    /// The metadata of a GGUF file, whatever its architecture and with or without tensors.
    ///
    /// # Errors
    /// One message that names the file where it cannot be read, is no GGUF file, or is truncated within its metadata.
    pub fn open(path: &Path) -> Result<Metadata> {
        let file = map_file(path)?;
        read::metadata(&file).with_context(|| format!("{}: not a usable GGUF file", path.display()))
    }

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

#[cfg(test)]
pub(crate) mod test_file;
