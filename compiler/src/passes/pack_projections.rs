use super::matching::{fuse, guard, operand};
use super::{Miss, Rewrite};
use crate::ir::{Format, Graph, Matmul, NodeId, Op, Patch, Results, Role, Value};

/// `(W₀ x, W₁ x, …) = [W₀; W₁; …] x`
///
/// q, k and v, or gate and up, become one product. Saves a kernel and its edge for each further weight, and the reads
/// of `x`. Weights keep the order in which their products are used. Must not join what belongs to different layers,
/// or weights that lie differently in memory: one kernel walks them all, and what kernels do not read as it is becomes bf16 together; nor an MLP's products with others of the same
/// vector (where attention and MLP are parallel): its activation is fused after them.
pub const PACK_PROJECTIONS: Rewrite =
    Rewrite { name: "pack-projections", doc: "matmul(x, w0), matmul(x, w1), … => matmul(x, w0, w1, …)", find };

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let first = projection(graph, root).ok_or(Miss::NotThis)?;
    let x = operand(graph, root, Role::X)?;
    let mut siblings = graph.users(x);
    siblings.dedup();
    siblings.retain(|&node| projection(graph, node).is_some());
    if siblings.len() < 2 {
        return Err(Miss::NotThis);
    }
    let (layer, format) = (graph.node(root).layer, weight_format(graph, root)?);
    siblings.retain(|&node| graph.node(node).layer == layer);
    guard(siblings.len() > 1, "the other products of the same vector belong to other layers")?;
    siblings.retain(|&node| projection(graph, node).is_some_and(|other| other.transposed == first.transposed));
    guard(siblings.len() > 1, "the other weights are stored the other way round")?;
    siblings.retain(|&node| is_activated(graph, node) == is_activated(graph, root));
    guard(siblings.len() > 1, "the other products of the same vector are on the other side of an MLP's edge")?;
    siblings.retain(|&node| weight_format(graph, node) == Ok(format));
    guard(siblings.len() > 1, "the other weights are of another format")?;

    let members: Vec<NodeId> = graph.ordered().into_iter().filter(|node| siblings.contains(node)).collect();
    let biases: Vec<Option<Value>> = members.iter().map(|&node| graph.operand(node, Role::Bias(0))).collect();
    let packed = Matmul { biases: biases.iter().map(Option::is_some).collect(), ..first.clone() };
    let mut operands = vec![x];
    for &member in &members {
        operands.push(operand(graph, member, Role::Weight(0))?);
    }
    operands.extend(biases.into_iter().flatten());

    let products: Vec<Value> = members.into_iter().map(|member| member.result(0)).collect();
    Ok(fuse(graph, Op::Matmul(packed), operands, &products, layer))
}

/// A bare, un-normed product with one weight. It uses a vector as its x or not at all.
fn projection(graph: &Graph, node: NodeId) -> Option<&Matmul> {
    let Op::Matmul(matmul) = graph.op(node) else { return None };
    (matmul.is_bare() && matmul.norm.is_none() && matmul.biases.len() == 1).then_some(matmul)
}

/// Whether an activation, or a product with one, reads the result.
fn is_activated(graph: &Graph, node: NodeId) -> bool {
    graph.users(node.result(0)).iter().any(|&user| matches!(graph.op(user), Op::Activation(_) | Op::Mul))
}

fn weight_format(graph: &Graph, node: NodeId) -> Result<Format, Miss> {
    Ok(graph.type_of(operand(graph, node, Role::Weight(0))?).format)
}
