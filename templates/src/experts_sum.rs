//! `experts_sum.cu`: the sum of the experts that up to eight rows go to.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::experts::is_false;
use crate::family::{Family, Param, Reads, TuningKey, text_of};
use crate::matvec::ROUTER_COPIES;
use crate::route::Route;
use crate::values::{MOST_STAGED, Tiles};

/// The products of the chosen experts' hidden values, added in the order of the experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "experts_sum.cu")]
pub struct ExpertsSum {
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
    /// Blocks that share the columns of a row tile: 1, or 2 that add to one sum.
    pub split: usize,
    /// Hidden values pass through shared memory.
    pub staged: bool,
    /// Blocks.
    pub blocks: usize,
    /// Triggers dependents after `griddepcontrol.wait`, not at the start.
    pub late: bool,
    /// Each product has a bias, which counts by the expert's share.
    #[serde(default, skip_serializing_if = "is_false")]
    pub biased: bool,
}

impl ExpertsSum {
    /// Whether the hidden values are few enough to pass through shared memory.
    pub fn can_stage(&self) -> bool {
        self.stage_bytes() <= MOST_STAGED
    }

    fn stage_bytes(&self) -> usize {
        self.batch
            * (self.route.most(self.batch) * self.tiles.steps().div_ceil(self.split) * self.tiles.packed().columns + 32)
            * 2
    }

    /// Copies of the sums that the logits are; 0: they are no sums.
    fn copies(&self) -> usize {
        if self.summed { ROUTER_COPIES } else { 0 }
    }
}

impl Family for ExpertsSum {
    fn params(&self) -> Vec<Param> {
        let logits = if self.summed { "const u64*" } else { "const float*" };
        let out = if self.split > 1 { Param::sum("out", "Out*") } else { Param::write("out", "Out*") };
        let mut params = vec![
            Param::weight("weights", "const Vec4*"),
            Param::read("hidden", "const u16*"),
            Param::read("logits", logits),
            Param::read("residual", "const float*").or_null(),
            out,
        ];
        params.extend(self.route.bias());
        if self.biased {
            params.extend(self.route.scales());
            params.push(Param::weight("biases", "const float*"));
        }
        params
    }

    fn stem(&self) -> String {
        format!("experts_sum_{}_{}_b{}", self.tiles.suffix(), self.route.suffix(), self.batch)
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

    fn shared_bytes(&self) -> usize {
        if self.staged { self.stage_bytes() } else { 0 }
    }

    fn reads(&self, rows: usize) -> Reads {
        Reads::of_weights(self.route.most(rows) * self.tiles.weight_bytes())
    }

    fn tuning(&self, _rows: usize) -> Option<TuningKey> {
        let columns = self.route.most(self.batch) * self.tiles.k;
        Some(TuningKey::Product(self.tiles.tuned("experts_sum".into()), columns, self.tiles.count(), self.batch))
    }
}
