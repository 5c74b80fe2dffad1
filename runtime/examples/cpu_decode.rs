//! Decode and prompt speed of the CPU executor at the true shape of SmolLM2-135M, on made-up bf16 weights, against the read bandwidth of memory
//! measured in turns with it.
//!
//! `cargo run --release -p fuserun --example cpu_decode -- [THREADS] [DEPTH]`

use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result};
use fusec::ir::{
    Activation, Attention, Epilogue, Format, Graph, Matmul, Norm, NormKind, Op, Projection, Results, Rope, RopeScaling,
    State, Type, Value, WeightRef,
};
use fuserun::cpu::{CpuModel, CpuOptions, Logits, ReadBandwidth, Row, WeightSource};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const FFN: usize = 1536;
const VOCABULARY: usize = 49152;
const CONTEXT: usize = 2048;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let threads = arguments.next().transpose()?.unwrap_or(std::thread::available_parallelism()?.get());
    let depth = arguments.next().transpose()?.unwrap_or(16);
    let start = Instant::now();
    let options = CpuOptions { threads, context: CONTEXT, sequences: 1 };
    let mut model = CpuModel::load(&graph(), &Noise, options)?;
    let bytes = model.weight_bytes_per_step() as f64;
    println!(
        "{threads} threads, {:.1} MB of weights a token, loaded in {:.2} s",
        bytes / 1e6,
        start.elapsed().as_secs_f64()
    );
    let mut bandwidth = ReadBandwidth::new(threads)?;

    let rows = |range: Range<usize>| -> Vec<Row> {
        range.map(|i| Row { token: (i * 7919 % VOCABULARY) as u32, position: i as u32, sequence: 0 }).collect()
    };
    model.forward(&rows(0..depth), Logits::None)?;
    println!("{:>10} {:>10} {:>12} {:>8}", "ms/token", "GB/s", "memory GB/s", "share");
    let (mut times, mut ceilings) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let ceiling = bandwidth.measure().max(bandwidth.measure());
        const TOKENS: usize = 16;
        let start = Instant::now();
        for row in rows(depth..depth + TOKENS) {
            model.forward(&[row], Logits::Last)?;
        }
        let seconds = start.elapsed().as_secs_f64() / TOKENS as f64;
        let rate = bytes / seconds / 1e9;
        println!("{:>10.3} {rate:>10.2} {ceiling:>12.2} {:>7.1}%", seconds * 1e3, 100.0 * rate / ceiling);
        times.push(seconds);
        ceilings.push(ceiling);
    }
    times.sort_by(f64::total_cmp);
    ceilings.sort_by(f64::total_cmp);
    let (seconds, ceiling) = (times[times.len() / 2], ceilings[ceilings.len() / 2]);
    let rate = bytes / seconds / 1e9;
    println!("median {:.3} ms/token, {rate:.2} GB/s of {ceiling:.2}: {:.1}%", seconds * 1e3, 100.0 * rate / ceiling);

    for length in [128, 512] {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            model.forward(&rows(0..length), Logits::Last)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let products = (bytes / 2.0 - (HIDDEN * VOCABULARY) as f64) * length as f64 + (HIDDEN * VOCABULARY) as f64;
        let rate = 2.0 * products / best / 1e9;
        println!(
            "prompt of {length}: {:.1} ms, {:.0} tokens/s, {rate:.1} GFLOP/s of products, {:.1} a thread",
            best * 1e3,
            length as f64 / best,
            rate / threads as f64
        );
    }
    Ok(())
}

/// The fused graph: four nodes a layer.
fn graph() -> Graph {
    let mut graph = Graph::new("smollm2-135m");
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, offset: 0.0, weight: true, bias: false };
    let tokens = graph.value(Op::Input("tokens".into()), &[], Type::tokens(), None);
    let positions = graph.value(Op::Input("positions".into()), &[], Type::tokens(), None);
    let table = weight(&mut graph, "embed".into(), &[VOCABULARY, HIDDEN]);
    let mut x = graph.value(Op::Embedding, &[tokens, table], Type::activation(&[HIDDEN]), None);
    let mut caches = Vec::new();
    for layer in 0..LAYERS {
        let mut named = |name: &str, sizes: &[usize]| weight(&mut graph, format!("{layer}.{name}"), sizes);
        let kv = KV_HEADS * HEAD_DIM;
        let [n1, n2] = ["norm1", "norm2"].map(|name| named(name, &[HIDDEN]));
        let (q, k, v) = (named("q", &[HIDDEN, HIDDEN]), named("k", &[kv, HIDDEN]), named("v", &[kv, HIDDEN]));
        let o = named("o", &[HIDDEN, HIDDEN]);
        let (gate, up) = (named("gate", &[FFN, HIDDEN]), named("up", &[FFN, HIDDEN]));
        let down = named("down", &[HIDDEN, FFN]);

        let projections = Matmul { norm: Some(norm.clone()), biases: vec![false; 3], ..Matmul::plain(false) };
        let results = [HEADS, KV_HEADS, KV_HEADS].map(|heads| Type::activation(&[heads, HEAD_DIM]));
        let qkv = graph.add(Op::Matmul(projections), &[x, n1, q, k, v], results.to_vec(), Some(layer));
        let cache = Type::cache(Format::F32, KV_HEADS, HEAD_DIM);
        let [keys, values] = ["keys", "values"].map(|name| {
            graph.value(Op::State(State::cache(format!("{name}.{layer}"))), &[], cache.clone(), Some(layer))
        });
        let attention = Attention {
            append: true,
            rope: Some(Rope { theta: 100000.0, dim: HEAD_DIM, interleaved: false, scaling: RopeScaling::None }),
            proj: Some(Projection { bias: false, residual: true, transposed: false }),
            ..Attention::plain(0.125)
        };
        let operands = [qkv.result(0), qkv.result(1), qkv.result(2), keys, values, positions, o, x];
        let results = vec![Type::activation(&[HIDDEN]), cache.clone(), cache];
        let attended = graph.add(Op::Attention(attention), &operands, results, Some(layer));
        caches.extend([attended.result(1), attended.result(2)]);
        let gated = Matmul {
            norm: Some(norm.clone()),
            biases: vec![false; 2],
            epilogue: Epilogue::Gate(Activation::Silu),
            ..Matmul::plain(false)
        };
        let operands = [attended.result(0), n2, gate, up];
        let wide = graph.value(Op::Matmul(gated), &operands, Type::activation(&[FFN]), Some(layer));
        let add = Matmul { residual: true, ..Matmul::plain(false) };
        let operands = [wide, down, attended.result(0)];
        x = graph.value(Op::Matmul(add), &operands, Type::activation(&[HIDDEN]), Some(layer));
    }
    let last = weight(&mut graph, "norm".into(), &[HIDDEN]);
    let head = Matmul { norm: Some(norm), sample: true, ..Matmul::plain(false) };
    let results = vec![Type::activation(&[VOCABULARY]), Type::tokens()];
    let head = graph.add(Op::Matmul(head), &[x, last, table], results, None);
    graph.outputs = vec![head.result(0), head.result(1)];
    graph.outputs.extend(caches);
    graph
}

fn weight(graph: &mut Graph, name: String, sizes: &[usize]) -> Value {
    graph.value(Op::Weight(name.into()), &[], Type::weight(Format::BF16, sizes), None)
}

/// Made-up weights: small numbers that depend on their place.
struct Noise;

impl WeightSource for Noise {
    fn shape(&self, name: &WeightRef) -> Result<Vec<usize>> {
        let graph = graph();
        let is_wanted = |op: &Op| matches!(op, Op::Weight(weight) if weight == name);
        let node = graph.node_ids().into_iter().find(|&node| is_wanted(graph.op(node))).context("no such weight")?;
        Ok(graph.type_of(node.result(0)).fixed_sizes().collect())
    }

    fn read_f32(&self, name: &WeightRef) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        let shape = self.shape(name)?;
        noise(0, shape.iter().product(), &mut values);
        Ok(values)
    }

    fn read_rows_f32(&self, name: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let columns = if name.to_string().ends_with("down") { FFN } else { HIDDEN };
        noise(rows.start * columns, rows.len() * columns, out);
        Ok(())
    }
}

fn noise(start: usize, count: usize, out: &mut Vec<f32>) {
    let value = |i: usize| ((i as u32).wrapping_mul(2654435761) >> 16) as f32 / 65536.0 - 0.5;
    out.extend((start..start + count).map(|i| 0.1 * value(i)));
}
