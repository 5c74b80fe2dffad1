use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Attention, Graph, NodeId, Op, Patch, Role, Value};

/// `rope_append_attention(norm(q), norm(k), …) = norm_rope_append_attention(q, k, …)`
///
/// Attention norms each head of q and k as it takes them. Saves two kernels and their edges, and a round trip of q and
/// k. Must not fire when a normed vector has another user, nor for a norm over all heads at once (which reaches the
/// attention through a reshape).
pub const FUSE_QK_NORM: Rewrite = Rewrite {
    name: "fuse-qk-norm",
    doc: "append_attention(norm(q), norm(k), …) => norm_append_attention(q, k, …)",
    find,
};

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Attention(attention) = graph.op(root) else { return Err(Miss::NotThis) };
    let (q, k) = (operand(graph, root, Role::Q)?, operand(graph, root, Role::K)?);
    let (q_norm, k_norm) = match (graph.op(q.node), graph.op(k.node)) {
        (Op::Norm(q_norm), Op::Norm(k_norm)) => (q_norm, k_norm),
        (Op::Norm(_), _) | (_, Op::Norm(_)) => return Err(Miss::Because("only one of q and k is normed".into())),
        _ if norm_of_all_heads(graph, q) => return Err(Miss::Because("q is normed over all its heads at once".into())),
        _ => return Err(Miss::NotThis),
    };
    guard(!q_norm.bias && !k_norm.bias, "the norm of q or k has a bias")?;
    guard(attention.q_norm.is_none() && attention.k_norm.is_none(), "the attention has a norm fused already")?;
    used_once(graph, q)?;
    used_once(graph, k)?;

    let norms = Attention { q_norm: Some(q_norm.clone()), k_norm: Some(k_norm.clone()), ..attention.clone() };
    let fused = Op::Attention(norms);
    let mut given = vec![(Role::Q, operand(graph, q.node, Role::X)?), (Role::K, operand(graph, k.node, Role::X)?)];
    given.extend(graph.operand(q.node, Role::NormWeight).map(|weight| (Role::QNormWeight, weight)));
    given.extend(graph.operand(k.node, Role::NormWeight).map(|weight| (Role::KNormWeight, weight)));
    let operands = gather(graph, &fused, &given, &[root])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}

fn norm_of_all_heads(graph: &Graph, q: Value) -> bool {
    let is_norm = |value: Value| matches!(graph.op(value.node), Op::Norm(_));
    matches!(graph.op(q.node), Op::Reshape) && graph.operand(q.node, Role::X).is_some_and(is_norm)
}
