//! Metadata keys under the architecture's prefix, and which of them were read.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::super::contents::{Metadata, Value};
use super::family::INSTEAD;
use anyhow::{Context, Result, bail, ensure};

/// Keys that change nothing about a model: what they say, tensors say too, or no family has it.
const WITHOUT_EFFECT: &[&str] = &[
    "vocab_size",
    "tensor_data_layout",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
];

/// The keys of one file. Each that is asked for is noted, so that those which nothing reads can be refused.
pub(super) struct Keys<'a> {
    architecture: &'static str,
    metadata: &'a Metadata,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(architecture: &'static str, metadata: &'a Metadata) -> Keys<'a> {
        Keys { architecture, metadata, read: RefCell::default() }
    }

    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        let full = self.full(key);
        let value = self.metadata.get(&full);
        self.read.borrow_mut().insert(full);
        value
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<u64> {
        self.required(key, self.optional(key)?)
    }

    pub(super) fn optional(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "one whole number", Value::unsigned)
    }

    /// A number rounded to the f32 that the file stores, as the shortest decimal of it: 1e-5, not 9.99999974e-6.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let decimal = |value: f64| (value as f32).to_string().parse().ok();
        self.typed(key, "one number", |value| value.float().and_then(decimal))
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::boolean)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "text", Value::text)
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.with_context(|| format!("the metadata key {} is missing", self.full(key)))
    }

    /// Fails where the key is there with another value: only this one is what the model computes anyway.
    pub(super) fn expect(&self, key: &str, expected: f64) -> Result<()> {
        match self.float(key)? {
            Some(found) if found != expected => {
                bail!("the metadata key {} is {found}, and only {expected} is honoured; {INSTEAD}", self.full(key))
            }
            _ => Ok(()),
        }
    }

    /// Fails where the file has keys of the architecture that were not read and may matter.
    pub(super) fn all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let prefix = self.full("");
        let matters = |(full, value): &(&String, &Value)| {
            let Some(key) = full.strip_prefix(&prefix) else { return false };
            // Zero stands for none: no experts, no window.
            let zero = |value: &Value| matches!(value, Value::Unsigned(0) | Value::Signed(0));
            let none = zero(value) || matches!(value, Value::List(items) if items.iter().all(zero));
            !none && !read.contains(*full) && !WITHOUT_EFFECT.contains(&key)
        };
        let left: Vec<&str> = self.metadata.values.iter().filter(matters).map(|(full, _)| full.as_str()).collect();
        ensure!(left.is_empty(), "the metadata keys {} are not honoured; {INSTEAD}", left.join(", "));
        Ok(())
    }

    /// The value of a key; of a list with the same for each layer, that.
    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let value = match value {
            Value::List(items) if self.is_per_layer(items) => items.first().unwrap_or(value),
            one => one,
        };
        read(value).map(Some).with_context(|| format!("the metadata key {} is not {what}", self.full(key)))
    }

    fn is_per_layer(&self, items: &[Value]) -> bool {
        let layers = self.metadata.unsigned(&self.full("block_count"));
        layers == Some(items.len() as u64) && items.iter().all(|item| *item == items[0])
    }
}
