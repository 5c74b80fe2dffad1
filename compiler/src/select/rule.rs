//! What a rule is: it reads the graph and the decisions before it, and returns one more, or why there is none.

use std::collections::HashMap;
use std::fmt;

use crate::ir::{Graph, NodeId, Value};
use crate::passes::Miss;
use crate::switches::Switches;

/// A named rule by which the kernel of one node computes another, too.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Verb-object: `absorb-residual`.
    pub name: &'static str,
    /// The identity it rests on, in one line.
    pub doc: &'static str,
    /// What becomes of this node, or why nothing does.
    pub find: fn(&Graph, &Decisions, NodeId, &Goal<'_>) -> Result<Decision, Miss>,
}

/// What becomes of the node that a decision is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Each of these experts computes the norm for itself.
    Norm {
        /// Its readers.
        experts: Vec<NodeId>,
    },
    /// The product that makes `x` adds up the router's logits, where its launch has room.
    Router {
        /// What the router reads.
        x: Value,
    },
    /// The experts add `other` to their sum.
    Residual {
        /// They end with the sum.
        experts: NodeId,
        /// What they add.
        other: Value,
    },
}

impl Decision {
    /// The nodes whose kernels compute the other.
    pub fn hosts(&self) -> Vec<NodeId> {
        match self {
            Decision::Norm { experts } => experts.clone(),
            Decision::Router { x } => vec![x.node],
            Decision::Residual { experts, .. } => vec![*experts],
        }
    }
}

/// What is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'r> {
    /// At most 8 rows: a kernel computes them all together.
    pub few: bool,
    /// Which rules may decide.
    pub rules: &'r Rules,
}

/// Which rules decide: `--rules -absorb-norm`, `--rules none`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rules(pub(super) Switches);

impl Rules {
    /// Whether the rule of this name decides.
    pub fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }
}

/// The shortest list that reads back as these rules.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the rules make of a graph.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// By the node that the kernel of another computes.
    pub(super) taken: HashMap<NodeId, (&'static Rule, Decision)>,
    /// Candidates that were left, in the order of the table, with what stands in the way.
    pub(super) left: Vec<(&'static Rule, NodeId, String)>,
    /// Of the nodes, in the order in which they are computed.
    pub(super) positions: HashMap<NodeId, usize>,
}

impl Decisions {
    /// The rule that lets the kernel of another node compute this one, and what it decided.
    pub fn on(&self, node: NodeId) -> Option<(&'static Rule, &Decision)> {
        self.taken.get(&node).map(|(rule, decision)| (*rule, decision))
    }

    /// Candidates that no rule took, with the rule and what stood in its way.
    pub fn left(&self) -> impl Iterator<Item = (&'static Rule, NodeId, &str)> {
        self.left.iter().map(|(rule, node, reason)| (*rule, *node, reason.as_str()))
    }

    /// Whether experts compute this norm for themselves.
    pub fn is_norm_of_experts(&self, node: NodeId) -> bool {
        matches!(self.on(node), Some((_, Decision::Norm { .. })))
    }

    /// Whether the product that makes its x may add up the logits of this router.
    pub fn is_router_of_product(&self, node: NodeId) -> bool {
        matches!(self.on(node), Some((_, Decision::Router { .. })))
    }

    /// The sum that these experts end with, and what they add.
    pub fn residual_of(&self, experts: NodeId) -> Option<(NodeId, Value)> {
        self.taken.iter().find_map(|(&node, (_, decision))| match decision {
            Decision::Residual { experts: host, other } if *host == experts => Some((node, *other)),
            _ => None,
        })
    }

    /// When a node is computed: at its own turn, or at that of the node whose kernel computes it.
    pub(super) fn turn(&self, node: NodeId) -> Option<usize> {
        let host = match self.on(node) {
            Some((_, Decision::Residual { experts, .. })) => *experts,
            _ => node,
        };
        self.positions.get(&host).copied()
    }
}
