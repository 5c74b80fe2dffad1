//! A description as its file has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diagnostics::{Source, Span};
use super::expr::Expr;
use super::signature::Signature;
use super::value::Value;

/// A description as its file has it: checked in itself, expressions not yet evaluated.
#[derive(Clone, Debug)]
pub struct Description {
    /// The family's name, an identifier.
    pub name: String,
    /// The `architectures` of config.json that it describes.
    pub serves: Vec<String>,
    pub(super) source: Arc<Source>,
    /// Each value with its key's place.
    pub(super) preset: Option<BTreeMap<String, (Value, Span)>>,
    /// What a configuration without the key has, by its `model_type`; of the keys that the description reads.
    pub(super) defaults: BTreeMap<String, BTreeMap<String, Value>>,
    pub(super) derive: BTreeMap<String, Expr>,
    pub(super) expect: Vec<Expectation>,
    pub(super) count: Expr,
    pub(super) sections: Vec<Section>,
    /// Every configuration key that the file names.
    pub(super) mentioned: BTreeSet<String>,
    /// Those that it takes for lists.
    pub(super) lists: BTreeSet<String>,
}

impl Description {
    /// Whether the description names this configuration key, or the facts of every model do.
    pub fn reads(&self, key: &str) -> bool {
        // The two spellings of one thing.
        let twin = match key {
            "rope_theta" | "rope_scaling" | "rope_local_base_freq" | "rope_local_scaling" | "partial_rotary_factor" => {
                "rope_parameters"
            }
            "torch_dtype" => "dtype",
            "attention_types" => "attention_layers",
            "rope_parameters" => return true,
            _ => key,
        };
        self.mentioned.contains(key) || self.mentioned.contains(twin)
    }

    /// The file's name and text.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }
}

/// A configuration key that must have one of some values.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub path: Vec<String>,
    pub allowed: Vec<Value>,
    pub span: Span,
}

/// `[embed]`, `[layer]` or `[head]`.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub place: Place,
    pub prefix: String,
    pub lines: Vec<Line>,
    /// Where the section begins.
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Embed,
    Layer,
    Head,
}

/// One operation as written.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub signature: &'static Signature,
    pub out: (String, Span),
    pub values: Vec<(&'static str, String, Span)>,
    pub weights: Vec<(&'static str, Given<(String, Span)>)>,
    pub attributes: Vec<(&'static str, Given<Expr>)>,
    pub when: Option<Expr>,
    pub span: Span,
}

/// Something given outright or by `{ if, then, else }`.
#[derive(Clone, Debug)]
pub(super) enum Given<T> {
    One(T),
    Choice { condition: Expr, then: Box<Given<T>>, otherwise: Option<Box<Given<T>>> },
}

impl<T> Given<T> {
    pub fn visit<'a>(&'a self, condition: &mut dyn FnMut(&'a Expr), one: &mut dyn FnMut(&'a T)) {
        match self {
            Given::One(value) => one(value),
            Given::Choice { condition: expr, then, otherwise } => {
                condition(expr);
                then.visit(condition, one);
                if let Some(otherwise) = otherwise {
                    otherwise.visit(condition, one);
                }
            }
        }
    }
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Place::Embed => "embed",
            Place::Layer => "layer",
            Place::Head => "head",
        }
    }
}
