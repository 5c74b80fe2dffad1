//! Rewrites of the graph: what the project exists for. One rewrite a file, one table, one driver.
//!
//! A rewrite reads the graph and returns a patch, or why there is none. Only [`run`] changes the graph.

mod driver;
mod explain;
mod fuse_activation;
mod fuse_append;
mod fuse_attention_proj;
mod fuse_mlp;
mod fuse_norm_matmul;
mod fuse_qk_norm;
mod fuse_residual;
mod fuse_rope;
mod fuse_sample;
mod matching;
mod pack_projections;
mod selection;

use crate::ir::{Graph, NodeId, Patch};

pub use driver::{PassReport, Report, Stats, run};
pub use explain::{Missed, explain, explain_beside, layer_ranges};
pub use selection::Selection;

/// Every rewrite, in the order in which they run.
pub const PIPELINE: &[Rewrite] = &[
    pack_projections::PACK_PROJECTIONS,
    fuse_norm_matmul::FUSE_NORM_MATMUL,
    fuse_mlp::FUSE_MLP,
    fuse_activation::FUSE_ACTIVATION,
    fuse_residual::FUSE_RESIDUAL,
    fuse_append::FUSE_APPEND,
    fuse_rope::FUSE_ROPE,
    fuse_qk_norm::FUSE_QK_NORM,
    fuse_attention_proj::FUSE_ATTENTION_PROJ,
    fuse_sample::FUSE_SAMPLE,
];

/// A named rule that turns a pattern of nodes into a fused node of the same value.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite {
    /// Verb-object: `fuse-norm-matmul`.
    pub name: &'static str,
    /// The identity it rests on, in one line.
    pub doc: &'static str,
    /// The patch for the pattern that ends in this node, or why there is none.
    pub find: fn(&Graph, NodeId) -> Result<Patch, Miss>,
}

/// Why a rewrite does not fire at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The node is not of the kind this rewrite is for: nothing to tell anyone.
    NotThis,
    /// The node is a candidate, and this stands in the way.
    Because(String),
}

impl Rewrite {
    /// The patch for the pattern that ends in `root`, if it is there and every guard holds.
    pub fn apply(&self, graph: &Graph, root: NodeId) -> Option<Patch> {
        (self.find)(graph, root).ok()
    }

    /// What kept a candidate from fusing: `rms_norm has 2 users: add, matmul`. `None` where `root` is no candidate,
    /// or where the rewrite would fire.
    pub fn why(&self, graph: &Graph, root: NodeId) -> Option<String> {
        match (self.find)(graph, root) {
            Err(Miss::Because(reason)) => Some(reason),
            Ok(_) | Err(Miss::NotThis) => None,
        }
    }
}
