//! What a rewrite returns: nodes to add, and values that take the place of others.

use anyhow::{Result, ensure};

use super::{Graph, NodeId, Op, Results, Type, Value};

/// A change to a graph, not yet made.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    nodes: Vec<NewNode>,
    replacements: Vec<(Value, PatchValue)>,
}

/// A value that a patch may use: one of the graph, or a result of a node the patch adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchValue {
    /// A value of the graph.
    Old(Value),
    /// Result `.1` of the patch's node `.0`.
    New(usize, usize),
}

#[derive(Clone, Debug)]
struct NewNode {
    op: Op,
    operands: Vec<PatchValue>,
    results: Vec<Type>,
    layer: Option<usize>,
}

impl Patch {
    /// An empty patch.
    pub fn new() -> Patch {
        Patch::default()
    }

    /// The commonest patch: one node, with one result, in the place of another's only result.
    pub fn replace(graph: &Graph, old: NodeId, op: Op, operands: &[Value]) -> Patch {
        let mut patch = Patch::new();
        let node = graph.node(old);
        let fused = patch.add(op, operands.iter().map(|&v| v.into()).collect(), node.results.clone(), node.layer);
        for result in 0..node.results.len() {
            patch.replace_value(old.result(result), PatchValue::New(fused, result));
        }
        patch
    }

    /// Adds a node and returns its number within the patch.
    pub fn add(&mut self, op: Op, operands: Vec<PatchValue>, results: Vec<Type>, layer: Option<usize>) -> usize {
        self.nodes.push(NewNode { op, operands, results, layer });
        self.nodes.len() - 1
    }

    /// Every use of `old` becomes a use of `new`.
    pub fn replace_value(&mut self, old: Value, new: PatchValue) {
        self.replacements.push((old, new));
    }

    /// Makes the change and drops what it leaves unused.
    ///
    /// # Errors
    /// A replacement of another type, or one that would make the graph cyclic. The graph is then unusable.
    pub fn apply(self, graph: &mut Graph) -> Result<()> {
        let mut added: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        let resolve = |value: PatchValue, added: &[NodeId]| match value {
            PatchValue::Old(value) => value,
            PatchValue::New(node, result) => added[node].result(result),
        };
        for node in self.nodes {
            let operands: Vec<Value> = node.operands.iter().map(|&value| resolve(value, &added)).collect();
            added.push(graph.add(node.op, &operands, node.results, node.layer));
        }
        let mut touched = added.clone();
        for (old, new) in self.replacements {
            let new = resolve(new, &added);
            let (old_type, new_type) = (graph.type_of(old), graph.type_of(new));
            ensure!(
                old_type == new_type,
                "the patch puts {new_type} ({}) in the place of {old_type} ({})",
                graph.op(new.node),
                graph.op(old.node)
            );
            graph.replace_uses(old, new);
            touched.push(old.node);
        }
        ensure!(!graph.has_cycle(), "the patch makes the graph cyclic");
        graph.remove_unused(touched);
        Ok(())
    }
}

impl From<Value> for PatchValue {
    fn from(value: Value) -> PatchValue {
        PatchValue::Old(value)
    }
}
