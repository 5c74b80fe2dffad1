//! What resolving gives: operations with nothing left to evaluate.

use std::collections::BTreeMap;
use std::sync::Arc;

use fuse_kernels::Activation;

use super::diagnostics::{Code, Diagnostic, Diagnostics, Source, Span};
use super::facts::Facts;
use super::rope::Scaling;
use super::signature::OpName;

/// A description with nothing left to evaluate: the operations of one model, in order, layers unrolled.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The description's name.
    pub name: String,
    /// What the configuration says about the whole model.
    pub facts: Facts,
    /// The operations in order. Names of values may be assigned again and again.
    pub calls: Vec<Call>,
    /// Keys of config.json that the description does not read and that are not known to be harmless, sorted.
    pub unread: Vec<String>,
    /// Keys that the description reads, sorted.
    pub(super) read: Vec<String>,
    /// The description's file, for errors about calls.
    pub source: Arc<Source>,
}

impl Resolved {
    /// Errors for the keys of config.json that nothing knows: each may change what the model computes.
    ///
    /// # Errors
    /// One for each key.
    pub fn refuse_unread(&self) -> Result<(), Diagnostics> {
        let mut diagnostics = Diagnostics::new(self.source.clone());
        for key in &self.unread {
            let message = format!("nothing knows the key `{key}` of config.json");
            let known = self.read.iter().map(String::as_str);
            let help = format!(
                "let the description read `{key}`, list the values that it honours under [expect], or remove the key"
            );
            diagnostics.push(Diagnostic::new(Code::UnknownConfigKey, message).suggest(key, known).help(help));
        }
        diagnostics.into_result(())
    }

    /// One line about the keys of config.json that nothing knows, where there are some.
    pub fn unread_note(&self) -> Option<String> {
        let keys = match &self.unread[..] {
            [] => return None,
            [key] => format!("a key that nothing knows, and that may change what the model computes: {key}"),
            keys => {
                format!("keys that nothing knows, and that may change what the model computes: {}", keys.join(", "))
            }
        };
        Some(format!("config.json has {keys}"))
    }
}

/// One operation of one layer.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it computes; never [`OpName::Activation`], which becomes the activation it names.
    pub op: OpName,
    /// The values it defines.
    pub outs: Vec<String>,
    /// The values it reads, by role.
    pub values: BTreeMap<&'static str, String>,
    /// The checkpoint's tensors it reads, by role, under their whole names.
    pub weights: BTreeMap<&'static str, String>,
    /// Where the description names each of them.
    pub weight_spans: BTreeMap<&'static str, Span>,
    /// Its numbers and flags. Defaults are filled in; what is absent is not there.
    pub attributes: BTreeMap<&'static str, AttrValue>,
    /// The layer; `None` outside layers.
    pub layer: Option<usize>,
    /// The line in the description.
    pub span: Span,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// From 1 to 2^30.
    Count(usize),
    /// A number, finite in f32 too.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// An activation function.
    Activation(Activation),
    /// A scaling of RoPE.
    RopeScaling(Scaling),
    /// Of every `step` (the third) places `size` (the second) from `first` on.
    Part([usize; 3]),
}

/// The names that Hugging Face configurations use for activation functions.
pub(super) const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
];

impl Call {
    /// The attribute of that name, where it is a count.
    pub fn count(&self, name: &str) -> Option<usize> {
        match self.attributes.get(name)? {
            AttrValue::Count(count) => Some(*count),
            _ => None,
        }
    }

    /// The attribute of that name, where it is a number.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attributes.get(name)? {
            AttrValue::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The attribute of that name, where it is an activation function.
    pub fn activation(&self, name: &str) -> Option<Activation> {
        match self.attributes.get(name)? {
            AttrValue::Activation(activation) => Some(*activation),
            _ => None,
        }
    }

    /// The attribute of that name, where it is a scaling of RoPE.
    pub fn scaling(&self, name: &str) -> Option<&Scaling> {
        match self.attributes.get(name)? {
            AttrValue::RopeScaling(scaling) => Some(scaling),
            _ => None,
        }
    }

    /// The attribute of that name, where it is a part.
    pub fn part(&self, name: &str) -> Option<[usize; 3]> {
        match self.attributes.get(name)? {
            AttrValue::Part(part) => Some(*part),
            _ => None,
        }
    }

    /// Whether the flag of that name is set.
    pub fn flag(&self, name: &str) -> bool {
        self.attributes.get(name) == Some(&AttrValue::Bool(true))
    }
}

/// The operation that is an activation function.
pub(super) fn op_of(activation: Activation) -> OpName {
    match activation {
        Activation::Silu => OpName::Silu,
        Activation::Gelu => OpName::Gelu,
        Activation::GeluTanh => OpName::GeluTanh,
        Activation::Relu => OpName::Relu,
        Activation::Relu2 => OpName::Relu2,
    }
}
