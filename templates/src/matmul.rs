//! `matmul.cu`: products of many rows.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::experts::{Gating, is_false};
use crate::family::{Family, Param, Reads, text_of};
use crate::values::{Activation, Tiles, activation_code, mark};

/// `y = W x` for many rows of x, or for those that go to each expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "matmul.cu")]
pub struct Matmul {
    /// The weight.
    pub tiles: Tiles,
    /// Row tiles per warp.
    pub row_tiles: usize,
    /// Groups of eight rows of x per warp.
    pub columns: usize,
    /// Warps side by side over the row tiles.
    pub row_warps: usize,
    /// Warps that take the pairs of the same row tiles in turn.
    pub split: usize,
    /// x is a hi/lo split.
    pub paired: bool,
    /// Of the products, or of the gate.
    pub activation: Option<Activation>,
    /// What is made of a gate and the other product.
    #[serde(default, skip_serializing_if = "Gating::is_plain")]
    pub gating: Gating,
    /// One weight per expert, for the rows that go to it.
    pub gather: Option<Gather>,
    /// One weight per head of x, that many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
}

/// A product of each expert with the rows that go to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gather {
    /// How many experts there are.
    pub experts: usize,
    /// Experts per row.
    pub top_k: usize,
    /// x has a row for each expert of a row. Else a row for all of them, and results are multiplied by the row's share.
    pub by_pair: bool,
    /// Each product has a bias. By pair it counts by the expert's share, which x has already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub biased: bool,
}

impl Matmul {
    fn activation_code(&self) -> usize {
        activation_code(self.activation)
    }

    /// Whether each expert has biases.
    fn expert_biases(&self) -> bool {
        self.gather.is_some_and(|gather| gather.biased)
    }

    /// Whether they are multiplied by shares.
    fn shared_biases(&self) -> bool {
        self.gather.is_some_and(|gather| gather.biased && gather.by_pair)
    }
}

impl Family for Matmul {
    fn params(&self) -> Vec<Param> {
        let mut params = vec![
            Param::weight("weights", "const Vec4*"),
            Param::read("x", "const u16*"),
            Param::weight("bias", "const float*").or_null(),
            Param::read("residual", "const float*").or_null(),
            Param::write("out0", "Out*"),
            Param::write("out1", "Out*").or_null(),
            Param::write("out2", "Out*").or_null(),
            Param::number("rows"),
        ];
        if self.gather.is_some() {
            params.extend([Param::read("shares", "const float*"), Param::read("slots", "const int*")]);
            params.push(Param::read("bits", "const u32*"));
        }
        params
    }

    fn stem(&self) -> String {
        let [gated, paired] = [mark(self.tiles.gated, "_gated"), mark(self.paired, "_paired")];
        let experts = self.gather.map_or(String::new(), |gather| format!("_e{}", gather.experts));
        let heads = self.heads.map_or(String::new(), |heads| format!("_h{heads}"));
        format!("matmul{gated}{paired}_{}{experts}{heads}_m{}", self.tiles.suffix(), 8 * self.columns)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.row_warps * self.split
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        let row_tiles = self.tiles.count().div_ceil(self.row_tiles * self.row_warps);
        [
            row_tiles,
            rows.div_ceil(8 * self.columns),
            self.gather.map_or(self.heads.unwrap_or(1), |gather| gather.experts),
        ]
    }

    fn reads(&self, rows: usize) -> Reads {
        let weights = self.gather.map_or(self.heads.unwrap_or(1), |gather| (rows * gather.top_k).min(gather.experts));
        Reads::of_weights(weights * self.tiles.weight_bytes())
    }
}
