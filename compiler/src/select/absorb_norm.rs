use super::{Decision, Decisions, Goal, Rule};
use crate::ir::{Graph, NodeId, NormKind, Op, Results, Role};
use crate::passes::Miss;
use crate::passes::matching::{guard, op_names};

/// `experts(rms_norm(x)) = experts of x that divide by its root mean square`
///
/// Saves a kernel and its edge. Must not fire when anything else reads the norm: it is not stored.
pub const ABSORB_NORM: Rule =
    Rule { name: "absorb-norm", doc: "experts(rms_norm(x), …) => experts with the norm inside", find };

fn find(graph: &Graph, _: &Decisions, root: NodeId, _: &Goal<'_>) -> Result<Decision, Miss> {
    let Op::Norm(norm) = graph.op(root) else { return Err(Miss::NotThis) };
    let normed = root.result(0);
    let users = graph.users(normed);
    let (experts, others): (Vec<NodeId>, Vec<NodeId>) = users
        .into_iter()
        .partition(|&user| matches!(graph.op(user), Op::Experts(_)) && graph.operand(user, Role::X) == Some(normed));
    if experts.is_empty() {
        return Err(Miss::NotThis);
    }
    guard(norm.kind == NormKind::Rms, "experts compute no norm but the root mean square's")?;
    guard(!norm.bias, "the norm has a bias")?;
    let ty = graph.type_of(normed);
    guard(ty.last_size() == Some(ty.row_size()), "the norm covers a part of the row, the experts read all of it")?;
    guard(!graph.outputs.contains(&normed), "the graph returns the norm")?;
    guard(others.is_empty(), &format!("the norm has other users: {}", op_names(graph, &others)))?;
    Ok(Decision::Norm { experts })
}
