use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Graph, Matmul, NodeId, Op, Patch, Role, Value};

/// `W norm(x) = norm_matmul(W, x)`
///
/// Each block of the product normalises `x` for itself. Saves one kernel and its edge, and a round trip of the normed
/// vector. Where several products read the norm and none can be packed with another, each takes it in, and routed experts
/// do so when they are planned. Must not fire when the norm has any other user: it would have to be computed for that one still.
pub const FUSE_NORM_MATMUL: Rewrite =
    Rewrite { name: "fuse-norm-matmul", doc: "matmul(norm(x), w) => norm_matmul(x, w)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Matmul(matmul) = graph.op(root) else { return Err(Miss::NotThis) };
    let normed = operand(graph, root, Role::X)?;
    let Op::Norm(norm) = graph.op(normed.node) else { return Err(Miss::NotThis) };
    guard(matmul.norm.is_none(), "the matmul has a norm fused already")?;
    if !read_by_products(graph, normed) {
        used_once(graph, normed)?;
    }
    let row = graph.type_of(normed);
    guard(row.last_size() == Some(row.row_size()), "the norm covers one head, the matmul reads the whole row")?;

    let fused = Op::Matmul(Matmul { norm: Some(norm.clone()), ..matmul.clone() });
    let x = operand(graph, normed.node, Role::X)?;
    let operands = gather(graph, &fused, &[(Role::X, x)], &[root, normed.node])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}

/// Whether nothing reads the norm but products and experts that can take it in.
fn read_by_products(graph: &Graph, normed: Value) -> bool {
    let takes_it_in = |&user: &NodeId| {
        let uses = graph.operands(user).into_iter().filter(|&value| value == normed).count();
        let takes = match graph.op(user) {
            Op::Matmul(matmul) => matmul.norm.is_none(),
            Op::Experts(_) => true,
            _ => false,
        };
        takes && uses == 1 && graph.operand(user, Role::X) == Some(normed)
    };
    !graph.outputs.contains(&normed) && graph.users(normed).iter().all(takes_it_in)
}
