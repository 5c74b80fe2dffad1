//! `attention_wide.cu`: attention of rows over their caches, with heads of any size and values of another size than keys, or that are a part of them.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, text_of};
use crate::values::{Float, Splits, Storage};

/// Bytes of sums that the warps of a block merge, at most.
const MOST_SUMS: usize = 40 << 10;

/// Causal attention of one row per block, by a few query heads that share a key head. Keys and values are in the caches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "attention_wide.cu")]
pub struct AttentionWide {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and of values.
    pub key_heads: usize,
    /// Values per head of queries and keys.
    pub head_dim: usize,
    /// Values per head of values and of the result.
    pub value_dim: usize,
    /// Values are the first of their keys, and have no cache of their own.
    pub latent: bool,
    /// Query heads that are taken together; they share a key head.
    pub group: usize,
    /// How the keys are split over blocks, and how far a row sees.
    pub splits: Splits,
    /// Multiplies q · k.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A logit per head takes part in the softmax and adds no value.
    pub sinks: bool,
    /// Storage of the result; half precision where splits are to be combined.
    pub out: Storage,
}

impl AttentionWide {
    /// As many warps as a block has room for the sums of.
    fn warps(&self) -> usize {
        let sums = self.group * self.value_dim.next_multiple_of(8) * 4;
        [8, 4, 2].into_iter().find(|warps| warps * sums <= MOST_SUMS).unwrap_or(1)
    }

    fn score_scale(&self) -> Float {
        Float(self.scale)
    }

    fn score_cap(&self) -> Float {
        Float(self.softcap.unwrap_or(0.0))
    }
}

impl Family for AttentionWide {
    fn params(&self) -> Vec<Param> {
        let mut params = vec![Param::read("q", "const float*"), Param::state("key_cache", "const u16*")];
        if !self.latent {
            params.push(Param::state("value_cache", "const u16*"));
        }
        params.extend([
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::weight("sinks", "const float*").or_null(),
            Param::write("out", "Out*"),
            Param::write("statistics", "float*").or_null(),
            Param::number("context"),
            Param::number("rows"),
        ]);
        params
    }

    fn stem(&self) -> String {
        let AttentionWide { heads, key_heads, head_dim, value_dim, splits: Splits { max, window, .. }, .. } = self;
        let window = if *window > 0 { format!("_w{window}") } else { String::new() };
        let values = if value_dim == head_dim { String::new() } else { format!("_v{value_dim}") };
        format!("attention_wide_bf16_h{heads}_kv{key_heads}_d{head_dim}{values}_s{max}{window}")
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.warps()
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.heads / self.group, self.splits.max, rows]
    }

    fn reads(&self, rows: usize) -> Reads {
        let values = if self.latent { 0 } else { self.value_dim.next_multiple_of(8) };
        let per_position = 2 * rows * self.key_heads * (self.head_dim.next_multiple_of(8) + values);
        Reads { weights: 0, per_position, window: self.splits.window }
    }
}
