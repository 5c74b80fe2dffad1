//! What resolving gives: operations with nothing left to evaluate.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::diagnostics::{Source, Span};
use super::facts::Facts;
use super::rope::RopeScaling;
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
    /// Keys of config.json that nothing read and that are not known to matter, sorted.
    pub unread: Vec<String>,
    /// The description's file, for errors about calls.
    pub source: Arc<Source>,
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
    RopeScaling(RopeScaling),
    /// Of every `step` (the third) places `size` (the second) from `first` on.
    Part([usize; 3]),
}

/// An activation function, by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
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

impl Activation {
    pub(super) fn op(self) -> OpName {
        match self {
            Activation::Silu => OpName::Silu,
            Activation::Gelu => OpName::Gelu,
            Activation::GeluTanh => OpName::GeluTanh,
            Activation::Relu => OpName::Relu,
            Activation::Relu2 => OpName::Relu2,
        }
    }
}
