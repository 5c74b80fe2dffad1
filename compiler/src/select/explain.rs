//! What rules decided and what plans made of it, for `fusec explain`.

use super::{Decisions, Goal, RULES, Rule, Rules};
use crate::ir::{Graph, NodeId};
use crate::passes::Missed;

/// Of steps of few rows: for each rule, how many nodes the kernels of others compute by it; and what it left, with reasons.
/// `shared`: whether a launch computes a node, given by its number in the graph's text form, together with another.
pub fn explain(
    graph: &Graph,
    rules: &Rules,
    shared: &dyn Fn(usize) -> bool,
) -> (Vec<(&'static Rule, usize)>, Vec<Missed>) {
    let decisions = Decisions::of(graph, &Goal { few: true, rules });
    let numbers = graph.numbers();
    let order = graph.ordered();
    let (mut counts, mut missed) = (Vec::new(), Vec::new());
    for rule in RULES {
        let by_it = |node: &NodeId| decisions.on(*node).is_some_and(|(by, _)| by.name == rule.name);
        let (done, room_lacks): (Vec<NodeId>, Vec<NodeId>) =
            order.iter().copied().filter(by_it).partition(|node| shared(numbers[node]));
        counts.push((rule, done.len()));
        let first = missed.len();
        let left = decisions.left().filter(|(by, ..)| by.name == rule.name);
        let left = left.map(|(_, node, reason)| (node, reason.to_owned()));
        let no_room = "the launch that would compute it has no room for it".to_owned();
        for (node, reason) in left.chain(room_lacks.into_iter().map(|node| (node, no_room.clone()))) {
            Missed::add(&mut missed, first, rule.name, graph, node, reason);
        }
    }
    (counts, missed)
}
