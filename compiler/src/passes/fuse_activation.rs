use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Epilogue, Graph, Matmul, NodeId, Op, Patch, Role};

/// `f(W x) = activated_matmul(W, x)`
///
/// The activation is done on the product before it is written. Saves one kernel and its edge, and a round trip of the
/// product. Must not fire when the product has another user: it is not written any more.
pub const FUSE_ACTIVATION: Rewrite =
    Rewrite { name: "fuse-activation", doc: "f(matmul(x, w)) => matmul_activated(x, w)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Activation(activation) = graph.op(root) else { return Err(Miss::NotThis) };
    let product = operand(graph, root, Role::X)?;
    let Op::Matmul(matmul) = graph.op(product.node) else { return Err(Miss::NotThis) };
    guard(matmul.biases.len() == 1, "the product is packed with others")?;
    guard(matmul.is_bare(), "something else is fused after the product already")?;
    used_once(graph, product)?;

    let fused = Op::Matmul(Matmul { epilogue: Epilogue::Activate(*activation), ..matmul.clone() });
    let operands = gather(graph, &fused, &[], &[product.node])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}
