use super::matching::{gather, guard, op_names, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Graph, Matmul, NodeId, Op, Patch, Role, Value};

/// `W x + r = matmul_add(W, x, r)`
///
/// Saves one kernel and its edge, and a round trip of the product. Must not fire when the product has another user: it
/// is not written any more. The single use also says that `r` does not depend on the product.
pub const FUSE_RESIDUAL: Rewrite =
    Rewrite { name: "fuse-residual", doc: "add(matmul(x, w), r) => matmul_add(x, w, r)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Add = graph.op(root) else { return Err(Miss::NotThis) };
    let (a, b) = (operand(graph, root, Role::A)?, operand(graph, root, Role::B)?);
    match (added(graph, root, a, b), added(graph, root, b, a)) {
        (Ok(patch), _) | (_, Ok(patch)) => Ok(patch),
        (Err(Miss::Because(reason)), _) | (_, Err(Miss::Because(reason))) => Err(Miss::Because(reason)),
        (Err(Miss::NotThis), Err(Miss::NotThis)) => {
            Err(Miss::Because(format!("neither operand is a product: {}", op_names(graph, &[a.node, b.node]))))
        }
    }
}

fn added(graph: &Graph, root: NodeId, product: Value, residual: Value) -> Result<Patch, Miss> {
    let Op::Matmul(matmul) = graph.op(product.node) else { return Err(Miss::NotThis) };
    guard(matmul.result_count() == 1, "the product is packed with others")?;
    guard(!matmul.residual, "the product has a residual fused already")?;
    guard(graph.type_of(product) == graph.type_of(residual), "the other operand is not of the product's size")?;
    used_once(graph, product)?;

    let fused = Op::Matmul(Matmul { residual: true, ..matmul.clone() });
    let operands = gather(graph, &fused, &[(Role::Residual, residual)], &[product.node])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}
