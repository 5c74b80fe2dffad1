//! Model descriptions: TOML and config.json to a checked, flat list of operations. Errors carry the file's line and column.
//!
//! A description is read ([`Description::parse`]) and then resolved ([`Description::resolve`]); what comes out has no expressions left.
//! [`SIGNATURES`] is the table of operations. The language:
//!
#![doc = include_str!("../../../docs/description.md")]

mod call;
mod config;
mod diagnostics;
mod expr;
mod facts;
mod features;
mod flow;
mod inert;
mod lacking;
mod line;
mod quantised;
mod read;
mod reference;
mod resolve;
mod rope;
mod schema;
mod shipped;
mod signature;
mod text_config;
mod user;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use call::{Activation, AttrValue, Call, Resolved};
pub use config::view as config_view;
pub use diagnostics::{Code, Diagnostic, Diagnostics, Help, Source, Span};
pub use facts::{Beyond, Facts, Spare};
pub use lacking::{also_served, lacking, lacking_in_gguf};
pub use quantised::{QUANTISED_INSTEAD, quantised_tensor};
pub use reference::operations;
pub use resolve::MAX_LAYERS;
pub use rope::RopeScaling;
pub use schema::json_schema;
pub use shipped::{find_for, shipped};
pub use signature::{Attribute, Default, INPUTS, Kind, OpName, RESULT, Role, SIGNATURES, Signature};
pub use text_config::{architectures, language_model_config, language_model_names};
pub use user::{find_named, find_serving, user_folder};
pub use value::Value;

use expr::Expr;

/// A description as its file has it: checked in itself, expressions not yet evaluated.
#[derive(Clone, Debug)]
pub struct Description {
    /// The family's name, an identifier.
    pub name: String,
    /// The `architectures` of config.json that it describes.
    pub serves: Vec<String>,
    source: Arc<Source>,
    /// Each value with its key's place.
    preset: Option<BTreeMap<String, (Value, Span)>>,
    /// What a configuration without the key has, by its `model_type`; of the keys that the description reads.
    defaults: BTreeMap<String, BTreeMap<String, Value>>,
    derive: BTreeMap<String, Expr>,
    expect: Vec<Expectation>,
    count: Expr,
    sections: Vec<Section>,
    /// Every configuration key that the file names.
    mentioned: BTreeSet<String>,
    /// Those that it takes for lists.
    lists: BTreeSet<String>,
}

impl Description {
    /// Reads a description. `file_name` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with the file in itself, as far as it can be told without a configuration.
    pub fn parse(text: &str, file_name: &str) -> Result<Description, Diagnostics> {
        read::read(text, file_name)
    }

    /// Evaluates the description for `config`, a checkpoint's config.json; for the file's preset where it is `None`. A checkpoint's configuration
    /// is never completed from the preset.
    ///
    /// # Errors
    /// A key that is missing, an expression without a value, an architecture that the file does not serve, a feature that it does not honour.
    pub fn resolve(&self, config: Option<&serde_json::Value>) -> Result<Resolved, Diagnostics> {
        resolve::resolve(self, config)
    }

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
struct Expectation {
    path: Vec<String>,
    allowed: Vec<Value>,
    span: Span,
}

/// `[embed]`, `[layer]` or `[head]`.
#[derive(Clone, Debug)]
struct Section {
    place: Place,
    prefix: String,
    lines: Vec<Line>,
    /// Where the section begins.
    span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Embed,
    Layer,
    Head,
}

/// One operation as written.
#[derive(Clone, Debug)]
struct Line {
    signature: &'static Signature,
    out: (String, Span),
    values: Vec<(&'static str, String, Span)>,
    weights: Vec<(&'static str, Given<(String, Span)>)>,
    attributes: Vec<(&'static str, Given<Expr>)>,
    when: Option<Expr>,
    span: Span,
}

/// Something given outright or by `{ if, then, else }`.
#[derive(Clone, Debug)]
enum Given<T> {
    One(T),
    Choice { condition: Expr, then: Box<Given<T>>, otherwise: Option<Box<Given<T>>> },
}

impl<T> Given<T> {
    fn visit<'a>(&'a self, condition: &mut dyn FnMut(&'a Expr), one: &mut dyn FnMut(&'a T)) {
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
    fn name(self) -> &'static str {
        match self {
            Place::Embed => "embed",
            Place::Layer => "layer",
            Place::Head => "head",
        }
    }
}
