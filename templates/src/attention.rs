//! `attention.cu`: attention of few rows over their caches, keys split over blocks.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, TuningKey, text_of};
use crate::values::{Float, RopeTable, Splits, Storage, Turns, mark};

/// Causal attention of one row per block, by a few query heads that share a key head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "attention.cu")]
pub struct Attention {
    /// What both attentions of few rows have.
    #[serde(flatten)]
    pub attention: Heads,
    /// Storage of the result; half precision where parts of it are to be combined.
    pub out: Storage,
}

/// What `attention.cuh` is specialised by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and of values.
    pub key_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Query heads that are taken together; they share a key head.
    pub group: usize,
    /// Warps per block.
    pub warps: usize,
    /// How the keys are split over blocks, and how far a row sees.
    pub splits: Splits,
    /// Sums that a product with keys is computed in: 1 or 2.
    pub chains: usize,
    /// Tiles of 16 keys that a warp has in flight.
    pub held: usize,
    /// Triggers dependents after `griddepcontrol.wait`, not at the start.
    pub late: bool,
    /// Multiplies q · k.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Normalises, rotates and stores the row's key and value first.
    pub append: bool,
    /// Epsilons of the rms_norm of each head of q and of k; under `append`.
    pub norm: Option<(f32, f32)>,
    /// The rotation of q and k; under `append`.
    pub rope: Option<RopeTable>,
    /// A logit per head takes part in the softmax and adds no value.
    pub sinks: bool,
}

impl Heads {
    pub(crate) fn turns(&self) -> Turns {
        Turns::of(self.rope.as_ref())
    }

    pub(crate) fn score_scale(&self) -> Float {
        Float(self.scale)
    }

    pub(crate) fn score_cap(&self) -> Float {
        Float(self.softcap.unwrap_or(0.0))
    }

    pub(crate) fn eps_q(&self) -> Float {
        Float(self.norm.map_or(0.0, |(eps, _)| eps))
    }

    pub(crate) fn eps_k(&self) -> Float {
        Float(self.norm.map_or(0.0, |(_, eps)| eps))
    }

    /// Values of a cache row: the head's, padded to 16 bytes.
    pub(crate) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }

    pub(crate) fn stem(&self) -> String {
        let [norm, rope] = [mark(self.norm.is_some(), "norm_"), mark(self.rope.is_some(), "rope_")];
        let append = mark(self.append, "append_");
        let Heads { heads, key_heads, head_dim, splits: Splits { max, window, .. }, .. } = self;
        let window = if *window > 0 { format!("_w{window}") } else { String::new() };
        format!("{norm}{rope}{append}attention_bf16_h{heads}_kv{key_heads}_d{head_dim}_s{max}{window}")
    }

    /// Keys and values of `rows` rows.
    pub(crate) fn reads(&self, rows: usize, weights: usize) -> Reads {
        Reads { weights, per_position: 2 * 2 * rows * self.key_heads * self.padded(), window: self.splits.window }
    }

    pub(crate) fn tuning(&self, rows: usize) -> TuningKey {
        TuningKey::Attention(self.heads, self.key_heads, self.head_dim, self.splits.window, rows)
    }

    /// q, k and v; the caches; where the rows stand; norms and sinks.
    pub(crate) fn params(&self) -> Vec<Param> {
        vec![
            Param::read("q", "const float*"),
            Param::read("k", "const float*").or_null(),
            Param::read("v", "const float*").or_null(),
            Param::state("key_cache", "u16*"),
            Param::state("value_cache", "u16*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::weight("q_weight", "const float*").or_null(),
            Param::weight("k_weight", "const float*").or_null(),
            Param::weight("sinks", "const float*").or_null(),
        ]
    }
}

impl Family for Attention {
    fn params(&self) -> Vec<Param> {
        let mut params = self.attention.params();
        params.extend([Param::write("out", "Out*"), Param::write("statistics", "float*").or_null()]);
        params.push(Param::number("context"));
        params.extend(Param::zeros());
        params
    }

    fn stem(&self) -> String {
        self.attention.stem()
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.attention.warps
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.attention.splits.max, self.attention.heads / self.attention.group, rows]
    }

    fn reads(&self, rows: usize) -> Reads {
        self.attention.reads(rows, 0)
    }

    fn tuning(&self, rows: usize) -> Option<TuningKey> {
        Some(self.attention.tuning(rows))
    }
}
