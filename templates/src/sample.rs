//! `sample.cu`: the next token of each row.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};

/// Tokens of a sequence that may wait for the host to read them.
pub const RING: usize = 1024;

/// Scores of a sequence that may wait for the host to read them.
pub const SCORES_RING: usize = 64;

/// Blocks that share a row of logits, where blocks may work in clusters.
pub const SAMPLE_CLUSTER: usize = 8;

/// Warps per block.
const WARPS: usize = 16;

/// Greedy, or drawn after temperature, top-k, top-p and min-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "sample.cu")]
pub struct Sample {
    /// Logits per row.
    pub vocabulary: usize,
    /// Block maxima that the head wrote; 0: none.
    pub maxima: usize,
    /// Blocks that share a row.
    pub cluster: usize,
}

impl Sample {
    fn warps(&self) -> usize {
        WARPS
    }

    fn ring(&self) -> usize {
        RING
    }

    fn scores_ring(&self) -> usize {
        SCORES_RING
    }
}

impl Family for Sample {
    fn params(&self) -> Vec<Param> {
        let maxima = Param::read("maxima", "const u32*");
        vec![
            Param::read("logits", "float*"),
            if self.maxima > 0 { maxima } else { maxima.or_null() },
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::io("parameters", "const Parameters*"),
            Param::io("next_tokens", "int*"),
            Param::io("next_positions", "int*"),
            Param::io("ring", "u64*"),
        ]
    }

    fn stem(&self) -> String {
        format!("sample_v{}", self.vocabulary)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * WARPS
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.cluster, rows, 1]
    }
}
