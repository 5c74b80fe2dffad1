//! The same graph on random weights and inputs: what tests run before and after a rewrite.

use anyhow::{Context, Result};

use super::{Interpreter, Tensor, is_int, sizes};
use crate::ir::{Graph, Op, Role, Start, Type, WeightRef};

/// Runs a graph on random weights, caches and inputs, which depend only on their names and the seed: graphs that
/// compute the same from the same leaves return the same. A first step of `tokens` tokens is followed by a step of
/// one, if the context has room; the outputs of both are returned. Positions start in the middle of the room there
/// is, with random values in the cache before them.
///
/// # Errors
/// A graph that does not verify, or no room for `tokens` in `context`.
pub fn random_run(graph: &Graph, seed: u64, tokens: usize, context: usize) -> Result<Vec<Tensor>> {
    let room = context.checked_sub(tokens).context("a context smaller than the number of tokens")?;
    crate::ir::verify(graph)?;
    let leaves: Vec<(&Op, &Type)> =
        graph.ordered().into_iter().map(|node| (graph.op(node), &graph.node(node).results[0])).collect();
    let weight = |wanted: &WeightRef| {
        let is_wanted = |op: &Op| matches!(op, Op::Weight(name) if name == wanted);
        let (_, ty) = leaves.iter().find(|(op, _)| is_wanted(op)).context("only weights of the graph are asked for")?;
        Ok(random_tensor(&wanted.to_string(), &sizes(ty, 0, context), seed))
    };
    let mut interpreter = Interpreter::new(graph, weight, context)?;
    for (op, ty) in &leaves {
        if let Op::State(state) = op
            && state.start == Start::Any
        {
            interpreter.set_state(&state.name, random_tensor(&state.name, &sizes(ty, 0, context), seed))?;
        }
    }
    let ids_below = smallest_table(graph);
    let mut outputs = Vec::new();
    let steps = [(room / 2, tokens), (room / 2 + tokens, 1)];
    for (start, tokens) in steps.into_iter().filter(|(start, tokens)| start + tokens <= context) {
        outputs.extend(interpreter.run_inputs(tokens, |name, ty| {
            Ok(match name {
                "positions" => Tensor::ints(&(start as i32..(start + tokens) as i32).collect::<Vec<_>>()),
                _ if is_int(ty) => {
                    let mut random = Random::new(name, seed + start as u64);
                    Tensor::ints(&(0..tokens).map(|_| (random.next() % ids_below) as i32).collect::<Vec<_>>())
                }
                _ => random_values(name, &sizes(ty, tokens, context), seed + start as u64, 1.0),
            })
        })?);
    }
    Ok(outputs)
}

/// A random weight or cache that depends on its name, its shape and the seed: multiples of 1/128 between -1 and 1,
/// and for a matrix as much smaller, by a power of two, as keeps the length of what it multiplies. Exact in bf16 and
/// f16 too.
pub fn random_tensor(name: &str, shape: &[usize], seed: u64) -> Tensor {
    let columns = if shape.len() == 2 { shape[1].max(1) } else { 1 };
    random_values(name, shape, seed, (-(columns as f32).log2() / 2.0).round().exp2())
}

fn random_values(name: &str, shape: &[usize], seed: u64, scale: f32) -> Tensor {
    let mut random = Random::new(name, seed);
    let data = (0..shape.iter().product::<usize>()).map(|_| ((random.next() % 257) as f32 / 128.0 - 1.0) * scale);
    Tensor { data: data.collect(), shape: shape.to_vec() }
}

/// `Σ (value - reference)² / Σ reference²`: 0 for equal ones, infinite for other lengths, NaN where either is.
pub fn nmse(value: &[f32], reference: &[f32]) -> f64 {
    if value.len() != reference.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let error: f64 = value.iter().zip(reference).map(|(&v, &r)| square(f64::from(v) - f64::from(r))).sum();
    let power: f64 = reference.iter().map(|&r| square(f64::from(r))).sum();
    if error == 0.0 { 0.0 } else { error / power }
}

/// Rows of the smallest table that ids are looked up in.
fn smallest_table(graph: &Graph) -> u64 {
    let tables = graph.ordered().into_iter().filter(|&node| *graph.op(node) == Op::Embedding);
    let rows = tables.filter_map(|node| graph.type_of(graph.operand(node, Role::Table)?).fixed_sizes().next());
    rows.min().unwrap_or(1).max(1) as u64
}

/// SplitMix64.
struct Random {
    state: u64,
}

impl Random {
    fn new(name: &str, seed: u64) -> Random {
        // FNV-1a of the name.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Random { state: name.bytes().fold(0xcbf2_9ce4_8422_2325, hash) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
