//! What the kernels of routed experts share.

use serde::{Deserialize, Serialize};

use crate::values::Float;

/// What makes shares of a router's logits, in fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
}

impl Scoring {
    /// All of them.
    pub const ALL: [Scoring; 2] = [Scoring::Softmax, Scoring::Sigmoid];

    /// `softmax` or `sigmoid`.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Softmax => "softmax",
            Scoring::Sigmoid => "sigmoid",
        }
    }
}

/// What an expert makes of its two products, a gate `g` and `u`: `f(slope · g) / slope · (u + offset)`, where `g` is at most `limit` and `u` within ±`limit`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gating {
    /// The bound, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f32>,
    /// How steep the activation function is.
    pub slope: f32,
    /// Added to the product that is not the gate.
    pub offset: f32,
}

impl Default for Gating {
    fn default() -> Gating {
        Gating { limit: None, slope: 1.0, offset: 0.0 }
    }
}

impl Gating {
    /// Whether it is `f(g) · u`.
    pub fn is_plain(&self) -> bool {
        *self == Gating::default()
    }

    pub(crate) fn bound(&self) -> Float {
        Float(self.limit.unwrap_or(f32::MAX))
    }

    pub(crate) fn steepness(&self) -> Float {
        Float(self.slope)
    }

    pub(crate) fn addend(&self) -> Float {
        Float(self.offset)
    }
}

pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}
