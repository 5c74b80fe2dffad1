use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Graph, Matmul, NodeId, Op, Patch, Role};

/// `W norm(x) = norm_matmul(W, x)`
///
/// Each block of the product normalises `x` for itself. Saves one kernel and its edge, and a round trip of the normed
/// vector. Must not fire when the norm has another user: it would have to be computed for that one still.
pub const FUSE_NORM_MATMUL: Rewrite =
    Rewrite { name: "fuse-norm-matmul", doc: "matmul(norm(x), w) => norm_matmul(x, w)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Matmul(matmul) = graph.op(root) else { return Err(Miss::NotThis) };
    let normed = operand(graph, root, Role::X)?;
    let Op::Norm(norm) = graph.op(normed.node) else { return Err(Miss::NotThis) };
    guard(matmul.norm.is_none(), "the matmul has a norm fused already")?;
    used_once(graph, normed)?;
    let row = graph.type_of(normed);
    guard(row.last_size() == Some(row.row_size()), "the norm covers one head, the matmul reads the whole row")?;

    let fused = Op::Matmul(Matmul { norm: Some(norm.clone()), ..matmul.clone() });
    let x = operand(graph, normed.node, Role::X)?;
    let operands = gather(graph, &fused, &[(Role::X, x)], &[root, normed.node])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}
