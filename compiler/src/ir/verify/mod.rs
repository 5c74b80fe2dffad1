//! What a graph must keep to, whoever built or rewrote it.

mod experts;
mod fused;
mod recurrent;
mod rules;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;

pub(super) use terms::role_words;

use super::text::Names;
use super::{Graph, NodeId, Op, Value};
use terms::{Check, Checked};

/// What is wrong with a graph, and at which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The node, or `None` where the graph as a whole is wrong.
    pub node: Option<NodeId>,
    /// The node's line of the text form.
    pub line: String,
    /// What is wrong.
    pub message: String,
}

/// Checks operands, types and attributes of every node, and the outputs.
///
/// # Errors
/// The first thing that is wrong, in the order of the text form.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    verify_all(graph).into_iter().next().map_or(Ok(()), Err)
}

/// Everything that is wrong: at most one error a node, in the order of the text form.
pub fn verify_all(graph: &Graph) -> Vec<VerifyError> {
    let whole = |message: String| vec![VerifyError { node: None, line: String::new(), message }];
    for (i, output) in graph.outputs.iter().enumerate() {
        if !graph.contains(output.node) {
            return whole(format!("output {i} is of a node that the graph lacks"));
        }
        if output.result >= graph.node(output.node).results.len() {
            let node = graph.node(output.node);
            return whole(format!(
                "output {i} is result {} of {}, which has {}",
                output.result,
                node.op,
                node.results.len()
            ));
        }
    }
    if graph.has_cycle() {
        return whole("the graph is cyclic: a node depends on itself".into());
    }
    let mut order = graph.ordered();
    let live: HashSet<NodeId> = order.iter().copied().collect();
    order.extend(graph.node_ids().into_iter().filter(|node| !live.contains(node)));
    let states = states(graph, &order);
    let failed =
        order.into_iter().filter_map(|node| Some((node, check(graph, node).err().or(states.get(&node).cloned())?)));
    let failed: Vec<(NodeId, String)> = failed.collect();
    if failed.is_empty() {
        return Vec::new();
    }
    let names = Names::of(graph);
    let error = |(node, message)| VerifyError { node: Some(node), line: names.line(graph, node), message };
    failed.into_iter().map(error).collect()
}

/// What is wrong with states: each has one node, and what reads it beside the op that changes it could see either value.
fn states(graph: &Graph, order: &[NodeId]) -> HashMap<NodeId, String> {
    let mut wrong = HashMap::new();
    let mut known = HashSet::new();
    let mut changed: HashMap<Value, NodeId> = HashMap::new();
    for &node in order {
        if let Op::State(state) = graph.op(node)
            && !known.insert(&state.name)
        {
            wrong.insert(node, format!("the state {state} has another node: what changes one of them changes both"));
        }
        for before in graph.op(node).next_states().iter().filter_map(|&(role, _)| graph.operand(node, role)) {
            changed.insert(before, node);
        }
    }
    for &node in order {
        for value in graph.operands(node) {
            if let Some(&changer) = changed.get(&value).filter(|&&changer| changer != node) {
                let message = format!("it reads a state as it is before {} changes it", graph.op(changer));
                wrong.entry(node).or_insert(message);
            }
        }
    }
    wrong
}

fn check(graph: &Graph, id: NodeId) -> Check {
    let node = graph.node(id);
    let (name, roles, values) = (node.op.name(), node.op.roles(), graph.operands(id));
    if roles.len() != values.len() {
        let words: Vec<String> = roles.iter().map(|role| role_words(*role)).collect();
        let list = if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) };
        return Err(format!("{name} takes {}{list}, but has {}", operands(roles.len()), values.len()));
    }
    let mut operands = Vec::new();
    for (role, value) in roles.into_iter().zip(values) {
        let known = graph.node(value.node).results.get(value.result);
        let lacking = || format!("{} is a result that {} lacks", role_words(role), graph.op(value.node));
        operands.push((role, known.ok_or_else(lacking)?));
    }
    for (result, ty) in node.results.iter().enumerate() {
        if ty.fixed_sizes().any(|size| size == 0) {
            return Err(format!("result {result} is {ty}: a size of zero"));
        }
        // Products of sizes are taken without further care from here on.
        let values = ty.fixed_sizes().try_fold(1, usize::checked_mul);
        if ty.last_size().is_some_and(|last| ty.format.bytes(last).is_none()) {
            let (values, _) = ty.format.block();
            return Err(format!("result {result} is {ty}: its rows do not end with a block of {values} values"));
        }
        if values.and_then(|values| ty.format.bytes(values)).is_none() {
            return Err(format!("result {result} is {ty}: more bytes than can be counted"));
        }
    }
    rules::check(&node.op, &Checked { name, operands, results: &node.results })
}

fn operands(count: usize) -> String {
    super::parse::counted(count, "operand")
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line.as_str() {
            "" => write!(f, "the graph is not sound: {}", self.message),
            line => write!(f, "the graph is not sound: {}\n  {line}", self.message),
        }
    }
}

impl std::error::Error for VerifyError {}
