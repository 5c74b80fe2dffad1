use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Attention, Graph, NodeId, Op, Patch, Role};

/// `append_attention(rope(q, p), rope(k, p), v, …, p) = rope_append_attention(q, k, v, …, p)`
///
/// Attention rotates q and k as it takes them. Saves two kernels and their edges, and a round trip of q and k. Must not
/// fire when the rotated vector has another user, and not before a norm that is fused: that one comes first there.
pub const FUSE_ROPE: Rewrite = Rewrite {
    name: "fuse-rope",
    doc: "append_attention(rope(q, p), rope(k, p), …, p) => rope_append_attention(q, k, …, p)",
    find,
};

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Attention(attention) = graph.op(root) else { return Err(Miss::NotThis) };
    let (q, k) = (operand(graph, root, Role::Q)?, operand(graph, root, Role::K)?);
    let (q_rope, k_rope) = match (graph.op(q.node), graph.op(k.node)) {
        (Op::Rope(q_rope), Op::Rope(k_rope)) => (q_rope, k_rope),
        (Op::Rope(_), _) | (_, Op::Rope(_)) => return Err(Miss::Because("only one of q and k is rotated".into())),
        _ => return Err(Miss::NotThis),
    };
    guard(q_rope == k_rope, "q and k are rotated differently")?;
    guard(attention.rope.is_none(), "the attention has a rope fused already")?;
    guard(attention.q_norm.is_none() && attention.k_norm.is_none(), "q and k are normed after the rope")?;
    let positions = operand(graph, root, Role::Positions)?;
    for rotated in [q, k] {
        let same = operand(graph, rotated.node, Role::Positions)? == positions;
        guard(same, "rope and attention have different positions")?;
        used_once(graph, rotated)?;
    }

    let fused = Op::Attention(Attention { rope: Some(q_rope.clone()), ..attention.clone() });
    let given = [(Role::Q, operand(graph, q.node, Role::X)?), (Role::K, operand(graph, k.node, Role::X)?)];
    let operands = gather(graph, &fused, &given, &[root])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}
