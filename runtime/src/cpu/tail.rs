//! What of a graph is run only for rows whose logits are wanted.

use std::collections::HashSet;

use fusec::ir::{Graph, NodeId, Op, Results, Role};

/// The last matrix product and what follows it: all that need not run for rows whose logits nobody asked for.
pub(crate) fn tail_of(graph: &Graph) -> HashSet<NodeId> {
    let mut tail = HashSet::new();
    let mut node = graph.outputs[0].node;
    let ends_here =
        |user: &NodeId, tail: &HashSet<NodeId>| tail.contains(user) || matches!(graph.op(*user), Op::Sample);
    loop {
        let uses_end_here = (0..graph.node(node).results.len())
            .all(|result| graph.users(node.result(result)).iter().all(|user| ends_here(user, &tail)));
        let first = tail.is_empty();
        let returned_once = first || graph.outputs.iter().all(|output| output.node != node);
        if !uses_end_here || !returned_once {
            return tail;
        }
        match graph.op(node) {
            Op::Matmul(_) => {
                tail.insert(node);
                return tail;
            }
            Op::Scale(_) | Op::Softcap(_) | Op::Clamp(_) | Op::Activation(_) | Op::Reshape | Op::Norm(_) => {
                tail.insert(node);
                match graph.operand(node, Role::X) {
                    Some(x) => node = x.node,
                    None => return tail,
                }
            }
            _ => return tail,
        }
    }
}
