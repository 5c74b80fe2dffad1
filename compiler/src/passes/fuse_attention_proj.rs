use std::iter;

use super::matching::{fuse, gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Attention, Epilogue, Graph, NodeId, Op, Patch, Projection, Results, Role, Value};

/// `W attention(…) + r = attention_proj(…, W, r)`
///
/// The projection joins the parts of the split attention in its prologue. Saves the kernel that joins them and its
/// edge, and a round trip of the heads. Must not fire when the attention's result has another user: it is not written
/// any more; nor where the residual may come from what the attention appends.
pub const FUSE_ATTENTION_PROJ: Rewrite =
    Rewrite {
        name: "fuse-attention-proj", doc: "matmul_add(attention(…), w, r) => attention_proj_add(…, w, r)", find
    };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Matmul(matmul) = graph.op(root) else { return Err(Miss::NotThis) };
    let heads = operand(graph, root, Role::X)?;
    let Op::Attention(attention) = graph.op(heads.node) else { return Err(Miss::NotThis) };
    if attention.proj.is_some() {
        return Err(Miss::NotThis);
    }
    guard(matmul.norm.is_none(), "the heads are normed before the projection")?;
    guard(matmul.biases.len() == 1, "the projection is packed with other products")?;
    guard(matmul.epilogue == Epilogue::None, "an activation follows the projection")?;
    guard(!matmul.sample, "the projection is sampled from")?;
    used_once(graph, heads)?;
    let caches: Vec<Value> = (1..graph.node(heads.node).results.len()).map(|i| heads.node.result(i)).collect();
    let caches_unread = caches.iter().all(|&cache| graph.users(cache).is_empty());
    guard(caches_unread || !matmul.residual, "another node reads the caches, and the residual may depend on it")?;

    let proj = Projection { bias: matmul.biases[0], residual: matmul.residual, transposed: matmul.transposed };
    let fused = Op::Attention(Attention { proj: Some(proj), ..attention.clone() });
    let mut given = vec![(Role::ProjWeight, operand(graph, root, Role::Weight(0))?)];
    given.extend(graph.operand(root, Role::Bias(0)).map(|bias| (Role::ProjBias, bias)));
    let operands = gather(graph, &fused, &given, &[heads.node, root])?;
    let replaced: Vec<Value> = iter::once(root.result(0)).chain(caches).collect();
    Ok(fuse(graph, fused, operands, &replaced, graph.node(root).layer))
}
