use super::matching::{fuse, gather, guard, operand};
use super::{Miss, Rewrite};
use crate::ir::{Graph, Matmul, NodeId, Op, Patch, Results, Role};

/// `(W x, sample(W x)) = matmul_sample(W, x)`
///
/// Each block of the head keeps the best of its rows as it writes them. Saves one kernel and its edge, and a read of
/// the logits; the logits stay a result, and may have other users.
pub const FUSE_SAMPLE: Rewrite =
    Rewrite { name: "fuse-sample", doc: "matmul(x, w), sample(matmul(x, w)) => matmul_sample(x, w)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Sample = graph.op(root) else { return Err(Miss::NotThis) };
    let logits = operand(graph, root, Role::X)?;
    let source = graph.op(logits.node);
    let Op::Matmul(matmul) = source else {
        return Err(Miss::Because(format!("the logits come from {source}, not from a matmul")));
    };
    guard(matmul.biases.len() == 1, "the logits are packed with other products")?;
    guard(matmul.is_bare(), "something else is fused after the logits already")?;

    let fused = Op::Matmul(Matmul { sample: true, ..matmul.clone() });
    let operands = gather(graph, &fused, &[], &[logits.node])?;
    Ok(fuse(graph, fused, operands, &[logits, root.result(0)], graph.node(root).layer))
}
