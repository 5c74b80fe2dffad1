//! What a rewrite is: it reads the graph and returns a patch, or why there is none.

use crate::ir::{Graph, NodeId, Patch};

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
