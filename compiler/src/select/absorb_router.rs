use super::{Decision, Decisions, Goal, Rule};
use crate::ir::{Epilogue, Graph, Matmul, NodeId, NormKind, Op, Results, Role, Value};
use crate::passes::Miss;
use crate::passes::matching::{guard, operand};

/// `route(R rms_norm(x)) = route(R' x, rms(x))`, where blocks of the product that makes x each add up their part of R' x
///
/// Saves a kernel and its edge. Must not fire when anything but a choice of experts reads the logits, or when it reads more
/// of them than their differences and order: they are not divided by the root mean square until the experts do it.
pub const ABSORB_ROUTER: Rule = Rule {
    name: "absorb-router",
    doc: "route(norm_matmul(x, w)) => logits added up by the product that makes x",
    find,
};

fn find(graph: &Graph, before: &Decisions, root: NodeId, goal: &Goal<'_>) -> Result<Decision, Miss> {
    let Op::Matmul(matmul) = graph.op(root) else { return Err(Miss::NotThis) };
    let logits = root.result(0);
    let users = graph.users(logits);
    if !users.iter().any(|&user| matches!(graph.op(user), Op::Route(_))) {
        return Err(Miss::NotThis);
    }
    let x = operand(graph, root, Role::X)?;
    let Matmul { norm: Some(norm), biases, epilogue, residual, .. } = matmul else {
        return Err(Miss::Because("no norm is fused into the router".into()));
    };
    guard(goal.few, "many rows are routed by a kernel of their own")?;
    guard(norm.kind == NormKind::Rms && !norm.bias, "the router's norm is not a plain root mean square's")?;
    guard(biases[..] == [false], "the router has a bias, or is packed with other products")?;
    guard(*epilogue == Epilogue::None && !residual, "the router computes more than a product")?;
    guard(graph.type_of(x).row_size().is_multiple_of(16), "rows of x do not end with a tile of 16")?;
    guard(!graph.outputs.contains(&logits), "the graph returns the logits")?;
    for user in users {
        let Op::Route(route) = graph.op(user) else {
            return Err(Miss::Because(format!("a {} reads the logits, too", graph.op(user).name())));
        };
        guard(!route.bias, "the choice adds a bias to the logits")?;
        for result in 0..2 {
            let readers = graph.users(user.result(result));
            readers.into_iter().try_for_each(|reader| reads_same_norm(graph, before, reader, x, norm.eps))?;
        }
    }
    Ok(Decision::Router { x })
}

/// Goes on where `reader` is experts that compute the same norm of `x` for themselves.
fn reads_same_norm(graph: &Graph, before: &Decisions, reader: NodeId, x: Value, eps: f32) -> Result<(), Miss> {
    let Op::Experts(experts) = graph.op(reader) else {
        return Err(Miss::Because(format!("a {} reads the choice", graph.op(reader).name())));
    };
    guard(!experts.down_bias, "the experts' biases are shared out by whole logits")?;
    let given = operand(graph, reader, Role::X)?.node;
    let Op::Norm(norm) = graph.op(given) else { return Err(Miss::Because("the experts read no norm".into())) };
    guard(before.is_norm_of_experts(given), "the experts do not compute their norm for themselves")?;
    guard(graph.operand(given, Role::X) == Some(x) && norm.eps == eps, "the experts read another norm than the router")
}
