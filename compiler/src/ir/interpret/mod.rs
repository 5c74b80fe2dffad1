//! The reference interpreter: every op in f32, slow and obvious. It judges every rewrite and every kernel.

mod attention;
mod evaluate;
mod experts;
mod maths;
mod matmul;
mod operands;
mod random;
mod recurrent;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

pub use evaluate::evaluate;
pub use maths::erf;
pub use random::{nmse, random_run, random_tensor};
pub use tensor::Tensor;

use super::{Dim, Format, Graph, NodeId, Op, Results, Type, Value, WeightRef, verify};

/// A graph with its weights and caches, ready to run.
///
/// One sequence: a run appends its tokens to the caches at their positions, and each token attends to the positions
/// up to its own. Caches are kept in f32, unrounded, from run to run.
pub struct Interpreter {
    graph: Graph,
    order: Vec<NodeId>,
    weights: BTreeMap<WeightRef, Arc<Tensor>>,
    states: BTreeMap<String, Arc<Tensor>>,
    context: usize,
}

impl Interpreter {
    /// Verifies the graph and fetches each weight once. `context` is the number of cache
    /// positions; caches start as zeros.
    ///
    /// # Errors
    /// A graph that does not verify, a weight that cannot be fetched or has another shape than the graph says.
    pub fn new(graph: &Graph, weights: impl Fn(&WeightRef) -> Result<Tensor>, context: usize) -> Result<Interpreter> {
        verify(graph)?;
        let order = graph.ordered();
        let mut interpreter =
            Interpreter { graph: graph.clone(), order, weights: BTreeMap::new(), states: BTreeMap::new(), context };
        for &node in &interpreter.order {
            let ty = &graph.node(node).results.first().context("the verifier lets every node have a result")?;
            let shape = sizes(ty, 0, context);
            match graph.op(node) {
                Op::Weight(name) if !interpreter.weights.contains_key(name) => {
                    let tensor = weights(name).with_context(|| format!("fetching the weight {name}"))?;
                    ensure!(
                        tensor.shape == shape,
                        "the weight {name} has shape {:?}, but the graph says {ty}",
                        tensor.shape
                    );
                    interpreter.weights.insert(name.clone(), Arc::new(tensor));
                }
                Op::State(state) => {
                    interpreter.states.entry(state.name.clone()).or_insert_with(|| Arc::new(Tensor::zeros(shape)));
                }
                _ => {}
            }
        }
        Ok(interpreter)
    }

    /// One step: as many positions as tokens. Returns the graph's outputs in order.
    ///
    /// # Errors
    /// Positions outside the context, or token ids outside the vocabulary.
    pub fn run(&mut self, tokens: &[i32], positions: &[i32]) -> Result<Vec<Tensor>> {
        ensure!(
            tokens.len() == positions.len(),
            "a step needs as many positions as tokens, not {} and {}",
            positions.len(),
            tokens.len()
        );
        self.run_inputs(tokens.len(), |name, _| match name {
            "tokens" => Ok(Tensor::ints(tokens)),
            "positions" => Ok(Tensor::ints(positions)),
            _ => bail!("the graph has an input `{name}`; a step gives tokens and positions"),
        })
    }

    /// One step of `tokens` tokens on inputs given by name and type.
    ///
    /// # Errors
    /// An input of another shape than the graph says, positions outside the context, or ids outside the vocabulary.
    pub fn run_inputs(&mut self, tokens: usize, inputs: impl Fn(&str, &Type) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let mut values: HashMap<Value, Arc<Tensor>> = HashMap::new();
        let mut appended: BTreeMap<String, Value> = BTreeMap::new();
        for &id in &self.order {
            let node = self.graph.node(id);
            let shapes: Vec<Vec<usize>> = node.results.iter().map(|ty| sizes(ty, tokens, self.context)).collect();
            let results = match &node.op {
                Op::Input(name) => {
                    let tensor = inputs(name, &node.results[0])?;
                    let (given, needed) = (&tensor.shape, &shapes[0]);
                    ensure!(given == needed, "the input `{name}` has shape {given:?}, but the graph says {needed:?}");
                    vec![Arc::new(tensor)]
                }
                Op::Weight(name) => vec![self.weights[name].clone()],
                Op::State(state) => vec![self.states[&state.name].clone()],
                op => {
                    let operands = self.graph.operands(id);
                    let tensors: Vec<&Tensor> = operands.iter().map(|value| &*values[value]).collect();
                    let results = evaluate(op, &tensors, &shapes).with_context(|| format!("computing {op}"))?;
                    results.into_iter().map(Arc::new).collect()
                }
            };
            for (result, tensor) in results.into_iter().enumerate() {
                values.insert(id.result(result), tensor);
                if let Some(state) = self.appended_state(id.result(result)) {
                    appended.insert(state, id.result(result));
                }
            }
        }
        for (state, value) in appended {
            self.states.insert(state, values[&value].clone());
        }
        Ok(self.graph.outputs.iter().map(|output| (*values[output]).clone()).collect())
    }

    /// The cache of that name (`keys.N`, `values.N`) as the last run left it.
    pub fn state(&self, name: &str) -> Option<&Tensor> {
        self.states.get(name).map(|tensor| &**tensor)
    }

    /// Replaces the cache of that name.
    ///
    /// # Errors
    /// A name that the graph lacks, or another shape.
    pub fn set_state(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let state = self.states.get_mut(name).with_context(|| format!("the graph has no state {name}"))?;
        let (given, needed) = (&tensor.shape, &state.shape);
        ensure!(given == needed, "the state {name} has shape {needed:?}, not {given:?}");
        *state = Arc::new(tensor);
        Ok(())
    }

    /// The state that this value is after the step, if the node changes one.
    fn appended_state(&self, value: Value) -> Option<String> {
        let next = self.graph.op(value.node).next_states();
        let (role, _) = next.iter().find(|(_, result)| *result == value.result)?;
        let before = self.graph.operand(value.node, *role)?;
        match self.graph.op(before.node) {
            Op::State(state) => Some(state.name.clone()),
            _ => self.appended_state(before),
        }
    }
}

/// The sizes of a type once the symbolic ones are known.
fn sizes(ty: &Type, tokens: usize, context: usize) -> Vec<usize> {
    let size = |dim: &Dim| match dim {
        Dim::Tokens => tokens,
        Dim::Context => context,
        Dim::Fixed(size) => *size,
    };
    ty.shape.iter().map(size).collect()
}

/// Whether values of this type are whole numbers.
fn is_int(ty: &Type) -> bool {
    ty.format == Format::I32
}
