//! `append.cu`: norms, RoPE and cache writes between a product's q, k and v and the attention that reads q and the caches.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{Float, NormKind, ROW_THREADS, RopeTable, Turns, mark, norm_code, norm_eps};

/// Heads of q and k normalised and rotated, keys and values into the caches, row by row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "append.cu")]
pub struct Append {
    /// Query heads; 0: q stays as it is.
    pub heads: usize,
    /// Heads of keys and of values.
    pub key_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// The norm of each head of q.
    pub q_norm: Option<(NormKind, f32)>,
    /// The norm of each head of k.
    pub k_norm: Option<(NormKind, f32)>,
    /// The rotation of q and k.
    pub rope: Option<RopeTable>,
}

impl Append {
    fn warps(&self) -> usize {
        ROW_THREADS / 32
    }

    fn norm_q(&self) -> usize {
        norm_code(self.q_norm)
    }

    fn norm_k(&self) -> usize {
        norm_code(self.k_norm)
    }

    fn eps_q(&self) -> Float {
        norm_eps(self.q_norm)
    }

    fn eps_k(&self) -> Float {
        norm_eps(self.k_norm)
    }

    fn turns(&self) -> Turns {
        Turns::of(self.rope.as_ref())
    }
}

impl Family for Append {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("q", "const float*"),
            Param::read("k", "const float*"),
            Param::read("v", "const float*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::weight("q_weight", "const float*").or_null(),
            Param::weight("k_weight", "const float*").or_null(),
            Param::write("q_out", "float*"),
            Param::state("key_cache", "u16*"),
            Param::state("value_cache", "u16*"),
            Param::number("context"),
        ]
    }

    fn stem(&self) -> String {
        let norm = mark(self.q_norm.is_some() || self.k_norm.is_some(), "norm_");
        let rope = mark(self.rope.is_some(), "rope_");
        format!("{norm}{rope}append_bf16_h{}_kv{}_d{}", self.heads, self.key_heads, self.head_dim)
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

    /// Each warp of a block has a head.
    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, (self.heads + 2 * self.key_heads).div_ceil(self.warps()), 1]
    }
}
