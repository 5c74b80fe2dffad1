//! The small words that rewrites are written in.

use super::Miss;
use crate::ir::{Graph, NodeId, Op, Patch, PatchValue, Role, Value};

/// Goes on where `holds`; else the rewrite misses for this reason.
pub(crate) fn guard(holds: bool, reason: &str) -> Result<(), Miss> {
    if holds { Ok(()) } else { Err(Miss::Because(reason.into())) }
}

/// The operand that plays `role`.
pub(crate) fn operand(graph: &Graph, node: NodeId, role: Role) -> Result<Value, Miss> {
    graph.operand(node, role).ok_or(Miss::NotThis)
}

/// Misses unless `value` is used exactly once, by a node: what is fused into its user is computed nowhere else.
pub(crate) fn used_once(graph: &Graph, value: Value) -> Result<(), Miss> {
    if graph.outputs.contains(&value) {
        return Err(Miss::Because(format!("the graph returns the result of {}", graph.op(value.node))));
    }
    read_once(graph, value)
}

/// Misses unless one node uses `value`, once. The graph may return it.
pub(crate) fn read_once(graph: &Graph, value: Value) -> Result<(), Miss> {
    let users = graph.users(value);
    if users.len() == 1 {
        return Ok(());
    }
    let (name, names) = (graph.op(value.node), op_names(graph, &users));
    Err(Miss::Because(format!("{name} has {} users: {names}", users.len())))
}

/// The operands of `fused` by role: from `given` first, else from the first of `parts` that has an operand of the role.
pub(super) fn gather(graph: &Graph, fused: &Op, given: &[(Role, Value)], parts: &[NodeId]) -> Result<Vec<Value>, Miss> {
    let source = |role: Role| {
        let new = given.iter().find(|(r, _)| *r == role).map(|(_, value)| *value);
        new.or_else(|| parts.iter().find_map(|&part| graph.operand(part, role))).ok_or(Miss::NotThis)
    };
    fused.roles().into_iter().map(source).collect()
}

/// One node, result `i` of which takes the place of `replaced[i]` and has its type.
pub(super) fn fuse(graph: &Graph, fused: Op, operands: Vec<Value>, replaced: &[Value], layer: Option<usize>) -> Patch {
    let results = replaced.iter().map(|&value| graph.type_of(value).clone()).collect();
    let mut patch = Patch::new();
    let fused = patch.add(fused, operands.into_iter().map(PatchValue::Old).collect(), results, layer);
    for (result, &old) in replaced.iter().enumerate() {
        patch.replace_value(old, PatchValue::New(fused, result));
    }
    patch
}

/// The names of these nodes' ops, sorted, so that a message depends on no numbering.
pub(crate) fn op_names(graph: &Graph, nodes: &[NodeId]) -> String {
    let mut names: Vec<String> = nodes.iter().map(|&node| graph.op(node).name()).collect();
    names.sort();
    names.join(", ")
}
