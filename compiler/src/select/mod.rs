//! What kernels compute beside their own node. Rules read the fused graph and note decisions; the planner obeys them.
//!
//! One rule per file, one table. A rule sees the graph, its order and the decisions before it. One choice is left to the planner:
//! whether the launch that makes x has room for a router.

mod absorb_norm;
mod absorb_residual;
mod absorb_router;
mod explain;
mod rule;

use std::str::FromStr;

use anyhow::Result;

pub use explain::explain;
pub use rule::{Decision, Decisions, Goal, Rule, Rules};

use crate::ir::Graph;
use crate::passes::Miss;
use crate::switches::Switches;

/// Every rule, first come first served: a node that an earlier one has decided on is none for a later one.
pub const RULES: &[Rule] = &[absorb_norm::ABSORB_NORM, absorb_router::ABSORB_ROUTER, absorb_residual::ABSORB_RESIDUAL];

impl Decisions {
    /// Runs the rules over a verified graph.
    pub fn of(graph: &Graph, goal: &Goal<'_>) -> Decisions {
        let order = graph.ordered();
        let positions = order.iter().enumerate().map(|(position, &node)| (node, position)).collect();
        let mut decisions = Decisions { positions, ..Decisions::default() };
        for rule in RULES {
            for &node in &order {
                if decisions.taken.contains_key(&node) {
                    continue;
                }
                match (rule.find)(graph, &decisions, node, goal) {
                    Ok(_) if !goal.rules.has(rule.name) => {
                        decisions.left.push((rule, node, "the rule is switched off".into()));
                    }
                    Ok(decision) => {
                        decisions.taken.insert(node, (rule, decision));
                    }
                    Err(Miss::Because(reason)) => decisions.left.push((rule, node, reason)),
                    Err(Miss::NotThis) => {}
                }
            }
        }
        decisions
    }
}

/// Every rule.
impl Default for Rules {
    fn default() -> Rules {
        Rules(Switches::new(["rule", "rules"], RULES.iter().map(|rule| rule.name), true))
    }
}

/// Reads what [`Selection::parse`](crate::passes::Selection::parse) reads, of rules.
impl FromStr for Rules {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> Result<Rules> {
        Ok(Rules(Rules::default().0.read(list)?))
    }
}
