use super::matching::{fuse, gather, guard, operand, read_once};
use super::{Miss, Rewrite};
use crate::ir::{Attention, Graph, NodeId, Op, Patch, Results, Role};

/// `attention(q, kv_append(kc, k, p), kv_append(vc, v, p), p) = append_attention(q, k, v, kc, vc, p)`
///
/// Attention takes this step's keys and values as they are made and puts them into the caches itself. Saves two kernels
/// and their edges, and a read of what was just written. What the graph returns of the caches comes from the fused node.
/// Must not fire when another node reads the appended cache: that one may come before the attention.
pub const FUSE_APPEND: Rewrite = Rewrite {
    name: "fuse-append",
    doc: "attention(q, kv_append(kc, k, p), kv_append(vc, v, p), p) => append_attention(q, k, v, kc, vc, p)",
    find,
};

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Attention(attention) = graph.op(root) else { return Err(Miss::NotThis) };
    if attention.append {
        return Err(Miss::NotThis);
    }
    let keys = operand(graph, root, Role::KeyCache)?;
    let values = operand(graph, root, Role::ValueCache)?;
    let (Op::KvAppend, Op::KvAppend) = (graph.op(keys.node), graph.op(values.node)) else {
        return Err(Miss::Because("the attention reads caches that this layer does not append to".into()));
    };
    guard(keys != values, "keys and values are one cache")?;
    let positions = operand(graph, root, Role::Positions)?;
    for cache in [keys, values] {
        let same = operand(graph, cache.node, Role::Positions)? == positions;
        guard(same, "kv_append and attention have different positions")?;
        read_once(graph, cache)?;
    }

    let fused = Op::Attention(Attention { append: true, ..attention.clone() });
    let given = [
        (Role::K, operand(graph, keys.node, Role::X)?),
        (Role::V, operand(graph, values.node, Role::X)?),
        (Role::KeyCache, operand(graph, keys.node, Role::Cache)?),
        (Role::ValueCache, operand(graph, values.node, Role::Cache)?),
    ];
    let operands = gather(graph, &fused, &given, &[root])?;
    Ok(fuse(graph, fused, operands, &[root.result(0), keys, values], graph.node(root).layer))
}
