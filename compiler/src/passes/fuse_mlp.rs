use super::matching::{gather, guard, operand, used_once};
use super::{Miss, Rewrite};
use crate::ir::{Epilogue, Graph, Matmul, NodeId, Op, Patch, Role, Value};

/// `f(W₀ x) · W₁ x = gated_matmul(W₀, W₁, x)`
///
/// Gate, up, activation and product are one kernel. Saves two kernels and their edges, and three round trips of the
/// intermediate vector. Must not fire when one of the products has another user: only the gated one is written.
pub const FUSE_MLP: Rewrite = Rewrite {
    name: "fuse-mlp",
    doc: "mul(f(matmul(x, w0, w1).0), matmul(x, w0, w1).1) => matmul_gated(x, w0, w1)",
    find,
};

fn find(graph: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let Op::Mul = graph.op(root) else { return Err(Miss::NotThis) };
    let (a, b) = (operand(graph, root, Role::A)?, operand(graph, root, Role::B)?);
    match gated(graph, root, a, b) {
        Err(Miss::NotThis) => gated(graph, root, b, a),
        found => found,
    }
}

fn gated(graph: &Graph, root: NodeId, activated: Value, up: Value) -> Result<Patch, Miss> {
    let Op::Activation(activation) = graph.op(activated.node) else { return Err(Miss::NotThis) };
    let gate = operand(graph, activated.node, Role::X)?;
    let Op::Matmul(matmul) = graph.op(gate.node) else { return Err(Miss::NotThis) };
    guard(gate.node == up.node, "gate and up are not products of one packed matmul")?;
    guard(matmul.biases.len() == 2, "gate and up are packed with other products")?;
    guard(matmul.is_bare(), "something else is fused after gate and up already")?;
    for value in [gate, up, activated] {
        used_once(graph, value)?;
    }
    let order = [gate.result, up.result];
    let [gate_type, up_type] = order.map(|i| {
        let ty = graph.type_of(graph.operand(gate.node, Role::Weight(i))?);
        Some((ty.format, &ty.shape))
    });
    guard(gate_type == up_type, "the weights of gate and up are of two element types")?;

    let biases = order.map(|i| matmul.biases[i]).to_vec();
    let fused = Op::Matmul(Matmul { biases, epilogue: Epilogue::Gate(*activation), ..matmul.clone() });
    let mut given = vec![];
    for (to, from) in order.into_iter().enumerate() {
        given.push((Role::Weight(to), operand(graph, gate.node, Role::Weight(from))?));
        given.extend(graph.operand(gate.node, Role::Bias(from)).map(|bias| (Role::Bias(to), bias)));
    }
    let operands = gather(graph, &fused, &given, &[gate.node])?;
    Ok(Patch::replace(graph, root, fused, &operands))
}
