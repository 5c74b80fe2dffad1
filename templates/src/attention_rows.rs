//! `attention_rows.cu`: attention of many rows of one sequence, after their keys and values are in the caches.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{Float, Storage};

/// A tile of queries against one tile of keys after the other, on tensor cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "attention_rows.cu")]
pub struct AttentionRows {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and of values.
    pub key_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Keys that a row sees; 0: all.
    pub window: usize,
    /// Multiplies q · k.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A logit per head takes part in the softmax and adds no value.
    pub sinks: bool,
    /// Warps with 16 queries each.
    pub row_warps: usize,
    /// Warps with the same queries, which share the keys of a tile.
    pub parts: usize,
    /// Keys per tile.
    pub keys: usize,
    /// Storage of the result.
    pub out: Storage,
}

impl AttentionRows {
    /// Queries per block: a query is a row and one of the heads that share a key head.
    pub fn queries(&self) -> usize {
        16 * self.row_warps
    }

    fn score_scale(&self) -> Float {
        Float(self.scale)
    }

    fn score_cap(&self) -> Float {
        Float(self.softcap.unwrap_or(0.0))
    }
}

impl Family for AttentionRows {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("q", "const float*"),
            Param::state("key_cache", "const u16*"),
            Param::state("value_cache", "const u16*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::weight("sinks", "const float*").or_null(),
            Param::write("out", "Out*"),
            Param::number("context"),
            Param::number("rows"),
        ]
    }

    fn stem(&self) -> String {
        let AttentionRows { heads, key_heads, head_dim, window, .. } = self;
        let window = if *window > 0 { format!("_w{window}") } else { String::new() };
        format!("attention_rows_bf16_h{heads}_kv{key_heads}_d{head_dim}_m{}{window}", self.queries())
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.row_warps * self.parts
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.key_heads, (rows * self.heads / self.key_heads).div_ceil(self.queries()), 1]
    }

    /// Tiles of keys and values, then the queries if they are wide; in the end sums in their place.
    fn shared_bytes(&self) -> usize {
        let chunks = self.head_dim.div_ceil(8);
        let tiles = 2 * self.keys * (chunks | 1) * 16;
        let queries = if chunks > 16 { self.row_warps * chunks.div_ceil(4) * 32 * 64 } else { 0 };
        (tiles + queries).max(self.row_warps * self.parts * 16 * (8 * chunks + 8) * 4)
    }
}
