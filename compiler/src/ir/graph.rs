//! The graph: nodes with ordered operands and typed results. Only the rewrite driver changes one after it is built.

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{Op, Role, Type};

/// A node's name within its graph. It stays valid while other nodes come and go.
pub type NodeId = NodeIndex<u32>;

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node that computes it.
    pub node: NodeId,
    /// Which of its results.
    pub result: usize,
}

/// A node: what it computes, and the type of each result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// One type a result.
    pub results: Vec<Type>,
    /// The model layer it belongs to, for reports.
    pub layer: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    operand: usize,
    result: usize,
}

/// A data-flow graph. `outputs` are kept alive, with all they need.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// What the graph returns, in order: logits, the token, each layer's caches.
    pub outputs: Vec<Value>,
    inner: StableDiGraph<Node, Use>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a node. Types are taken as given; the verifier checks them.
    pub fn add(&mut self, op: Op, operands: &[Value], results: Vec<Type>, layer: Option<usize>) -> NodeId {
        let node = self.inner.add_node(Node { op, results, layer });
        for (operand, value) in operands.iter().enumerate() {
            self.inner.add_edge(value.node, node, Use { operand, result: value.result });
        }
        node
    }

    /// Adds a node of one result.
    pub fn value(&mut self, op: Op, operands: &[Value], result: Type, layer: Option<usize>) -> Value {
        self.add(op, operands, vec![result], layer).result(0)
    }

    /// The node of that name. Panics if it was removed: a `NodeId` is only held while its node lives.
    pub fn node(&self, node: NodeId) -> &Node {
        &self.inner[node]
    }

    /// Whether the node is still there.
    pub fn contains(&self, node: NodeId) -> bool {
        self.inner.contains_node(node)
    }

    /// The operation of a node.
    pub fn op(&self, node: NodeId) -> &Op {
        &self.inner[node].op
    }

    /// The type of a value.
    pub fn type_of(&self, value: Value) -> &Type {
        &self.inner[value.node].results[value.result]
    }

    /// The operands of a node, in order.
    pub fn operands(&self, node: NodeId) -> Vec<Value> {
        let mut edges: Vec<(usize, Value)> = self
            .inner
            .edges_directed(node, Direction::Incoming)
            .map(|edge| (edge.weight().operand, Value { node: edge.source(), result: edge.weight().result }))
            .collect();
        edges.sort_by_key(|(operand, _)| *operand);
        edges.into_iter().map(|(_, value)| value).collect()
    }

    /// The operand that plays this role, if the node has one.
    pub fn operand(&self, node: NodeId, role: Role) -> Option<Value> {
        let position = self.op(node).roles().iter().position(|r| *r == role)?;
        self.operands(node).get(position).copied()
    }

    /// The nodes that use a value, once for each use, in a fixed order. Graph outputs are not among them.
    pub fn users(&self, value: Value) -> Vec<NodeId> {
        let mut users: Vec<NodeId> = self
            .inner
            .edges_directed(value.node, Direction::Outgoing)
            .filter(|edge| edge.weight().result == value.result)
            .map(|edge| edge.target())
            .collect();
        users.sort();
        users
    }

    /// How often a value is used, by nodes and as a graph output.
    pub fn use_count(&self, value: Value) -> usize {
        self.users(value).len() + self.outputs.iter().filter(|output| **output == value).count()
    }

    /// The only user of a value, or `None` where there are more, or where the graph returns it.
    pub fn only_user(&self, value: Value) -> Option<NodeId> {
        match self.users(value)[..] {
            [user] if !self.outputs.contains(&value) => Some(user),
            _ => None,
        }
    }

    /// All nodes that the outputs need, operands before users, in an order that depends on the graph only.
    pub fn ordered(&self) -> Vec<NodeId> {
        let mut done = std::collections::HashSet::new();
        let mut order = Vec::with_capacity(self.inner.node_count());
        // Depth first with an explicit stack: layer N depends on layer N - 1, which would nest deep.
        for output in &self.outputs {
            let mut stack = vec![(output.node, false)];
            while let Some((node, visited)) = stack.pop() {
                if visited {
                    if done.insert(node) {
                        order.push(node);
                    }
                } else if !done.contains(&node) {
                    stack.push((node, true));
                    stack.extend(self.operands(node).iter().rev().map(|value| (value.node, false)));
                }
            }
        }
        order
    }

    /// Every node, also those that no output needs, by index.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.inner.node_indices().collect()
    }

    /// Whether a node depends on itself.
    pub fn has_cycle(&self) -> bool {
        petgraph::algo::is_cyclic_directed(&self.inner)
    }

    /// Makes every use of `old`, and the graph output it may be, a use of `new`.
    pub(crate) fn replace_uses(&mut self, old: Value, new: Value) {
        let edges: Vec<_> = self
            .inner
            .edges_directed(old.node, Direction::Outgoing)
            .filter(|edge| edge.weight().result == old.result)
            .map(|edge| (edge.id(), edge.target(), edge.weight().operand))
            .collect();
        for (edge, user, operand) in edges {
            self.inner.remove_edge(edge);
            self.inner.add_edge(new.node, user, Use { operand, result: new.result });
        }
        for output in self.outputs.iter_mut().filter(|output| **output == old) {
            *output = new;
        }
    }

    /// Drops those of `nodes` that nothing uses, and then what only they used.
    pub(crate) fn remove_unused(&mut self, nodes: Vec<NodeId>) {
        let mut candidates = nodes;
        while let Some(node) = candidates.pop() {
            let used = self.inner.edges_directed(node, Direction::Outgoing).next().is_some()
                || self.outputs.iter().any(|output| output.node == node);
            if self.contains(node) && !used {
                candidates.extend(self.inner.neighbors_directed(node, Direction::Incoming));
                self.inner.remove_node(node);
            }
        }
    }
}

/// Names a result of a node: `node.result(0)`.
pub trait Results {
    /// Result `result` of this node.
    fn result(self, result: usize) -> Value;
}

impl Results for NodeId {
    fn result(self, result: usize) -> Value {
        Value { node: self, result }
    }
}
