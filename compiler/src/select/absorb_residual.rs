use super::{Decision, Decisions, Goal, Rule};
use crate::ir::{Graph, NodeId, Op, Role, Value};
use crate::passes::Miss;
use crate::passes::matching::{guard, operand, used_once};

/// `experts(x, …) + r = experts that add r to their sum`
///
/// Saves a kernel and its edge, and a round trip of the sum. Must not fire when anything else reads the experts' sum: it is
/// not stored any more.
pub const ABSORB_RESIDUAL: Rule =
    Rule { name: "absorb-residual", doc: "add(experts(x, …), r) => experts that add r to their sum", find };

fn find(graph: &Graph, before: &Decisions, root: NodeId, _: &Goal<'_>) -> Result<Decision, Miss> {
    let Op::Add = graph.op(root) else { return Err(Miss::NotThis) };
    let (a, b) = (operand(graph, root, Role::A)?, operand(graph, root, Role::B)?);
    match (added(graph, before, a, b), added(graph, before, b, a)) {
        (Ok(decision), _) | (_, Ok(decision)) => Ok(decision),
        (Err(Miss::Because(reason)), _) | (_, Err(Miss::Because(reason))) => Err(Miss::Because(reason)),
        (Err(Miss::NotThis), Err(Miss::NotThis)) => Err(Miss::NotThis),
    }
}

fn added(graph: &Graph, before: &Decisions, sum: Value, other: Value) -> Result<Decision, Miss> {
    let Op::Experts(_) = graph.op(sum.node) else { return Err(Miss::NotThis) };
    guard(sum != other, "it adds the experts' sum to itself")?;
    guard(graph.type_of(sum) == graph.type_of(other), "the other operand is not of the sum's size")?;
    used_once(graph, sum)?;
    guard(!matches!(graph.op(other.node), Op::Weight(_)), "the other operand is a weight")?;
    guard(before.turn(other.node) < before.turn(sum.node), "the other operand is computed after the experts")?;
    Ok(Decision::Residual { experts: sum.node, other })
}
