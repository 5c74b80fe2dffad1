//! `elementwise.cu`: one expression of one or two operands, element by element.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{Activation, Float, ROW_THREADS, Storage, activation_code};

/// An expression over rows of `size` values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "elementwise.cu")]
pub struct Elementwise {
    /// What is computed.
    pub kind: Expression,
    /// Values per row.
    pub size: usize,
    /// Storage of the result.
    pub out: Storage,
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expression {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `a` times this.
    Scale(f32),
    /// `cap · tanh(a / cap)`.
    Softcap(f32),
    /// `a`, at most this and at least minus this.
    Clamp(f32),
    /// `a · sigmoid(b)`.
    Glu {
        /// b is one value per row.
        per_row: bool,
    },
    /// An activation function of `a`.
    Activate(Activation),
    /// `b` plus the sum of that many rows of `a`.
    Sum(usize),
    /// Another function of `a`.
    Apply(Function),
    /// `a` and `b`, each value of which is for several of `a`.
    Spread {
        /// What is computed.
        of: Spread,
        /// Values of a row of `a` for one of `b`.
        each: usize,
        /// b is a weight, the same for all rows.
        weight: bool,
    },
}

/// Functions that no product has after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `e^x`.
    Exp,
}

impl Function {
    /// All of them.
    pub const ALL: [Function; 3] = [Function::Sigmoid, Function::Softplus, Function::Exp];

    /// The name in descriptions and in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Function::Sigmoid => "sigmoid",
            Function::Softplus => "softplus",
            Function::Exp => "exp",
        }
    }

    /// The function of that name.
    pub fn parse(name: &str) -> Option<Function> {
        Function::ALL.into_iter().find(|function| function.name() == name)
    }
}

/// What is computed of two values, one of which is for several of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `a · sigmoid(b)`.
    Glu,
    /// `-e^b · a`.
    Decay,
}

impl Expression {
    fn name(self) -> &'static str {
        match self {
            Expression::Add => "add",
            Expression::Mul => "mul",
            Expression::Scale(_) => "scale",
            Expression::Softcap(_) => "softcap",
            Expression::Clamp(_) => "clamp",
            Expression::Glu { per_row: false } => "glu",
            Expression::Glu { per_row: true } => "glu_row",
            Expression::Activate(activation) => activation.name(),
            Expression::Sum(_) => "sum",
            Expression::Apply(function) => function.name(),
            Expression::Spread { of: Spread::Add, .. } => "add_each",
            Expression::Spread { of: Spread::Mul, .. } => "mul_each",
            Expression::Spread { of: Spread::Glu, .. } => "glu_each",
            Expression::Spread { of: Spread::Decay, .. } => "decay",
        }
    }

    /// The number by which the template knows it.
    fn code(self) -> usize {
        match self {
            Expression::Add => 0,
            Expression::Mul => 1,
            Expression::Scale(_) => 2,
            Expression::Softcap(_) => 3,
            Expression::Activate(_) => 4,
            Expression::Clamp(_) => 5,
            Expression::Glu { per_row: false } => 6,
            Expression::Glu { per_row: true } => 7,
            Expression::Sum(_) => 8,
            Expression::Apply(Function::Sigmoid) => 9,
            Expression::Apply(Function::Softplus) => 10,
            Expression::Apply(Function::Exp) => 11,
            Expression::Spread { of: Spread::Add, .. } => 12,
            Expression::Spread { of: Spread::Mul, .. } => 13,
            Expression::Spread { of: Spread::Glu, .. } => 14,
            Expression::Spread { of: Spread::Decay, .. } => 15,
        }
    }

    fn is_applied(self) -> bool {
        matches!(self, Expression::Apply(_))
    }

    /// Values of a row for one of `b`, and whether `b` is the same for all rows; where one is for several.
    fn spread(self) -> Option<(usize, bool)> {
        match self {
            Expression::Spread { each, weight, .. } => Some((each, weight)),
            _ => None,
        }
    }

    fn activation(self) -> usize {
        activation_code(if let Expression::Activate(activation) = self { Some(activation) } else { None })
    }

    fn factor(self) -> Float {
        Float(match self {
            Expression::Scale(factor) | Expression::Softcap(factor) | Expression::Clamp(factor) => factor,
            _ => 0.0,
        })
    }

    fn count(self) -> usize {
        if let Expression::Sum(count) = self { count } else { 1 }
    }
}

impl Family for Elementwise {
    fn params(&self) -> Vec<Param> {
        let two =
            matches!(self.kind, Expression::Add | Expression::Mul | Expression::Glu { .. } | Expression::Spread { .. });
        let b = match self.kind {
            Expression::Spread { weight: true, .. } => Param::weight("b", "const float*"),
            _ => Param::read("b", "const float*"),
        };
        vec![Param::read("a", "const float*"), if two { b } else { b.or_null() }, Param::write("out", "Out*")]
    }

    fn stem(&self) -> String {
        format!("{}_{}_k{}", self.kind.name(), self.out.name(), self.size)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        ROW_THREADS
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, 1, 1]
    }
}
