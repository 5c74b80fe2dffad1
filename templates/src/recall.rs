//! `recall.cu`: a recurrent memory of each head, token after token.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, text_of};

/// Columns of a memory that a block has: one per lane of a warp.
const COLUMNS: usize = 32;

/// A memory over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "recall.cu")]
pub struct Recall {
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v.
    pub heads: usize,
    /// Values per head of q and k.
    pub key_dim: usize,
    /// Values per head of v.
    pub dim: usize,
    /// The delta rule.
    pub delta: bool,
    /// A decay for each place of a key; otherwise one for each head.
    pub per_channel: bool,
    /// Rows follow each other in one sequence; otherwise each is of another one.
    pub prompt: bool,
}

impl Recall {
    /// Warps of a block, which share the rows of a memory: 16 or fewer each, as far as eight warps reach.
    fn warps(&self) -> usize {
        self.key_dim.div_ceil(16).clamp(1, 8)
    }

    /// Rows of a memory that a warp has.
    fn part(&self) -> usize {
        self.key_dim.div_ceil(self.warps())
    }
}

impl Family for Recall {
    fn params(&self) -> Vec<Param> {
        let beta = Param::read("beta", "const float*");
        vec![
            Param::read("q", "const float*"),
            Param::read("k", "const float*"),
            Param::read("v", "const float*"),
            Param::read("decay", "const float*"),
            if self.delta { beta } else { beta.or_null() },
            Param::state("memory", "float*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::write("out", "float*"),
            Param::number("rows"),
        ]
    }

    fn stem(&self) -> String {
        let rule = if self.delta { "recall_delta" } else { "recall" };
        let rows = if self.prompt { "_rows" } else { "" };
        let decay = if self.per_channel { "_per_channel" } else { "" };
        format!("{rule}{decay}{rows}_h{}_kv{}_k{}_d{}", self.heads, self.key_heads, self.key_dim, self.dim)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        COLUMNS * self.warps()
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.heads, self.dim.div_ceil(COLUMNS), if self.prompt { 1 } else { rows }]
    }

    fn reads(&self, rows: usize) -> Reads {
        let sequences = if self.prompt { 1 } else { rows };
        Reads { weights: 0, per_position: sequences * self.heads * self.key_dim * self.dim * 4, window: 1 }
    }
}
