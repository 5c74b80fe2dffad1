//! `route.cu`: the experts of many rows, and the rows of each expert.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::experts::{Scoring, is_false};
use crate::family::{Family, Param, text_of};
use crate::values::{Float, mark};

/// Warps per block, which takes 32 rows.
const WARPS: usize = 8;

/// Routes many rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "route.cu")]
pub struct RouteRows {
    /// How experts are chosen.
    pub route: Route,
}

/// Which experts a row goes to (`route.cuh`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// How many there are.
    pub experts: usize,
    /// Experts per row.
    pub top_k: usize,
    /// How logits become shares.
    pub scoring: Scoring,
    /// A bias counts for the choice.
    #[serde(default)]
    pub biased: bool,
    /// The shares of the chosen are divided by their sum.
    pub normalise: bool,
    /// Multiplies the shares.
    pub scale: f32,
    /// A factor for each expert multiplies its share.
    #[serde(default, skip_serializing_if = "is_false")]
    pub scaled: bool,
    /// Consecutive groups of experts, and how many of them are chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<[usize; 2]>,
}

impl Route {
    /// The most experts that this many rows may go to.
    pub fn most(&self, rows: usize) -> usize {
        (rows * self.top_k).min(self.experts)
    }

    /// The parameter of the choice's bias, where there is one.
    pub(crate) fn bias(&self) -> Option<Param> {
        self.biased.then_some(Param::weight("choice_bias", "const float*"))
    }

    /// The parameter of the factors, where there are some.
    pub(crate) fn scales(&self) -> Option<Param> {
        self.scaled.then_some(Param::weight("expert_scale", "const float*"))
    }

    pub(crate) fn suffix(&self) -> String {
        let groups = self.groups.map_or(String::new(), |[count, kept]| format!("_g{kept}of{count}"));
        format!("e{}_top{}{groups}{}", self.experts, self.top_k, mark(self.biased, "_biased"))
    }

    /// Groups, or none.
    pub(crate) fn group_count(&self) -> usize {
        self.groups.map_or(0, |[count, _]| count)
    }

    pub(crate) fn kept_groups(&self) -> usize {
        self.groups.map_or(0, |[_, kept]| kept)
    }

    pub(crate) fn scoring_code(&self) -> usize {
        match self.scoring {
            Scoring::Softmax => 0,
            Scoring::Sigmoid => 1,
        }
    }

    pub(crate) fn share_scale(&self) -> Float {
        Float(self.scale)
    }
}

impl RouteRows {
    fn warps(&self) -> usize {
        WARPS
    }
}

impl Family for RouteRows {
    fn params(&self) -> Vec<Param> {
        let mut params = vec![
            Param::read("logits", "const float*"),
            Param::write("shares", "float*"),
            Param::write("slots", "int*"),
            Param::write("takers", "u32*"),
            Param::number("rows"),
        ];
        params.extend(self.route.bias());
        params.extend(self.route.scales());
        params
    }

    fn stem(&self) -> String {
        format!("route_{}", self.route.suffix())
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
        [rows.div_ceil(32), 1, 1]
    }
}
