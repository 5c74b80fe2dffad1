//! `experts_hidden.cu`: the hidden values of the experts that up to eight rows go to.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::experts::{Gating, is_false};
use crate::family::{Family, Param, Reads, TuningKey, text_of};
use crate::matvec::ROUTER_COPIES;
use crate::route::Route;
use crate::values::{Activation, Float, Tiles, activation_code, mark};

/// `share · f(gate x) · up x` of each chosen expert, and what other [`Gating`] there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "experts_hidden.cu")]
pub struct ExpertsHidden {
    /// The packed weight of one expert.
    pub tiles: Tiles,
    /// Which experts it is.
    pub route: Route,
    /// Rows.
    pub batch: usize,
    /// Logits are sums that an earlier product computed: see [`crate::Matvec::router`].
    pub summed: bool,
    /// Warps per block.
    pub warps: usize,
    /// Pairs of tiles that a warp has in flight.
    pub depth: usize,
    /// Blocks.
    pub blocks: usize,
    /// The epsilon of the rms_norm of x, if it has one.
    pub norm: Option<f32>,
    /// See [`crate::Matvec::alike`].
    pub alike: bool,
    /// Applied to the gate, or to `up` where there is no gate.
    pub activation: Activation,
    /// What is made of the gate and `up`.
    #[serde(default, skip_serializing_if = "Gating::is_plain")]
    pub gating: Gating,
    /// The products have biases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub biased: bool,
}

impl ExpertsHidden {
    /// What is fused into the products: the first words of the stem.
    pub fn kind(&self) -> String {
        format!("{}experts{}", mark(self.norm.is_some(), "norm_"), mark(self.tiles.gated, "_gated"))
    }

    /// Copies of the sums that the logits are; 0: they are no sums.
    fn copies(&self) -> usize {
        if self.summed { ROUTER_COPIES } else { 0 }
    }

    fn eps(&self) -> Float {
        Float(self.norm.unwrap_or(0.0))
    }

    fn activation_code(&self) -> usize {
        activation_code(Some(self.activation))
    }
}

impl Family for ExpertsHidden {
    fn params(&self) -> Vec<Param> {
        let logits = if self.summed { "const u64*" } else { "const float*" };
        let mut params = vec![
            Param::weight("weights", "const Vec4*"),
            Param::read("x", "const float*"),
            Param::weight("norm_weight", "const float*").or_null(),
            Param::read("logits", logits),
            Param::write("hidden", "Out*"),
        ];
        if self.alike {
            params.push(Param::read("rms_before", "const float*"));
        }
        params.extend(self.route.bias());
        params.extend(self.route.scales());
        if self.biased {
            params.push(Param::weight("biases", "const float*"));
        }
        params.extend(Param::zeros());
        params
    }

    fn stem(&self) -> String {
        format!("{}_{}_{}_b{}", self.kind(), self.tiles.suffix(), self.route.suffix(), self.batch)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.warps
    }

    fn grid(&self, _rows: usize) -> [usize; 3] {
        [self.blocks, 1, 1]
    }

    /// The rows of x, a hi/lo split of each.
    fn shared_bytes(&self) -> usize {
        self.tiles.x_parts() * self.batch * (self.tiles.padded_k() + 32) * 2
    }

    fn reads(&self, rows: usize) -> Reads {
        Reads::of_weights(self.route.most(rows) * self.tiles.weight_bytes())
    }

    /// On an H200 a layer of Qwen3-30B-A3B loses with 75 per cent, as attention with its projection does.
    fn shared_share(&self) -> u32 {
        60
    }

    fn tuning(&self, _rows: usize) -> Option<TuningKey> {
        let row_tiles = self.route.most(self.batch) * self.tiles.count();
        Some(TuningKey::Product(self.tiles.tuned(self.kind()), self.tiles.k, row_tiles, self.batch))
    }
}
