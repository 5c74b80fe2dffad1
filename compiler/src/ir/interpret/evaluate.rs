//! One op on tensors.

use anyhow::{Context, Result, ensure};

use super::attention::attention;
use super::experts::{experts, glu, route};
use super::matmul::{Product, dot, matmul};
use super::operands::Operands;
use super::recurrent::{conv, recall};
use super::{Tensor, maths};
use crate::ir::{Epilogue, Matmul, Norm, NormKind, Op, Role, Rope};

/// What an op makes of its operands, ordered as [`Op::roles`] lists them. `shapes` are those of its results, with
/// the token and context counts filled in. The operands are of types that the verifier takes.
///
/// # Errors
/// Leaf ops, which compute nothing; ids outside the table; positions outside the cache.
pub fn evaluate(op: &Op, operands: &[&Tensor], shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
    let operands = Operands::new(op, operands)?;
    let x = || operands.get(Role::X);
    let shape = || shapes.first().context("an op has a result");
    Ok(match op {
        Op::Input(_) | Op::Weight(_) | Op::State(_) => anyhow::bail!("{op} is given, not computed"),
        Op::Embedding => vec![embedding(operands.get(Role::Ids), operands.get(Role::Table))?],
        Op::Matmul(fused) => fused_matmul(fused, &operands, shapes),
        Op::HeadProduct => vec![head_product(x(), operands.get(Role::Weight(0)))],
        Op::Concat => vec![concat(operands.get(Role::A), operands.get(Role::B))],
        Op::Norm(norm) => vec![normalise(norm, x(), operands.find(Role::NormWeight), operands.find(Role::NormBias))],
        Op::Rope(rope) => vec![rotate(rope, x(), operands.get(Role::Positions))],
        Op::KvAppend => vec![append(operands.get(Role::Cache), x(), operands.get(Role::Positions))?],
        Op::Attention(fused) => fused_attention(fused, &operands, shapes)?,
        Op::Add => vec![add(operands.get(Role::A), operands.get(Role::B))],
        Op::Mul => vec![mul(operands.get(Role::A), operands.get(Role::B))],
        Op::Decay => {
            vec![pair(operands.get(Role::A), operands.get(Role::B), |a, b| (-f64::from(b).exp() * f64::from(a)) as f32)]
        }
        Op::Glu => vec![glu(operands.get(Role::A), operands.get(Role::B))],
        Op::Route(of) => route(of, x(), operands.find(Role::ChoiceBias), operands.find(Role::ExpertScale)),
        Op::Experts(of) => vec![experts(of, &operands)?],
        Op::Activation(activation) => vec![map(x(), |x| maths::activate(*activation, x))],
        Op::Function(function) => vec![map(x(), |x| maths::function(*function, x))],
        Op::Scale(factor) => vec![map(x(), |x| x * factor)],
        Op::Softcap(cap) => vec![map(x(), |x| cap * (x / cap).tanh())],
        Op::Clamp(limit) => vec![map(x(), |x| x.clamp(-limit, *limit))],
        Op::Reshape => vec![Tensor::new(shape()?.clone(), x().data.clone())],
        Op::Conv(_) => conv(&operands),
        Op::Recall(_) => recall(&operands),
        Op::Sample => vec![first_largest(x())],
    })
}

fn fused_matmul(fused: &Matmul, operands: &Operands<'_>, shapes: &[Vec<usize>]) -> Vec<Tensor> {
    let mut x = operands.get(Role::X).clone();
    if let Some(norm) = &fused.norm {
        x = normalise(norm, &x, operands.find(Role::NormWeight), operands.find(Role::NormBias));
    }
    let products = (0..fused.biases.len()).map(|i| {
        let product = Product {
            weight: operands.get(Role::Weight(i)),
            bias: operands.find(Role::Bias(i)),
            transposed: fused.transposed,
        };
        let gated = matches!(fused.epilogue, Epilogue::Gate(_));
        matmul(&x, &product, &shapes[if gated { 0 } else { i }])
    });
    let mut results: Vec<Tensor> = match fused.epilogue {
        Epilogue::None => products.collect(),
        Epilogue::Activate(activation) => products.map(|y| map(&y, |y| maths::activate(activation, y))).collect(),
        Epilogue::Gate(activation) => {
            let [gate, up] = &products.collect::<Vec<_>>()[..] else {
                unreachable!("the verifier lets a gate have two weights")
            };
            vec![mul(&map(gate, |gate| maths::activate(activation, gate)), up)]
        }
    };
    if fused.residual {
        results[0] = add(&results[0], operands.get(Role::Residual));
    }
    if fused.sample {
        results.push(first_largest(&results[0]));
    }
    results
}

fn fused_attention(
    fused: &crate::ir::Attention,
    operands: &Operands<'_>,
    shapes: &[Vec<usize>],
) -> Result<Vec<Tensor>> {
    let positions = operands.get(Role::Positions);
    let prepare = |x: &Tensor, norm: &Option<Norm>, weight: Option<&Tensor>| {
        let normed = norm.as_ref().map_or_else(|| x.clone(), |norm| normalise(norm, x, weight, None));
        fused.rope.as_ref().map_or_else(|| normed.clone(), |rope| rotate(rope, &normed, positions))
    };
    let q = prepare(operands.get(Role::Q), &fused.q_norm, operands.find(Role::QNormWeight));
    let keys = operands.get(Role::KeyCache);
    let mut caches = vec![keys.clone(), operands.find(Role::ValueCache).unwrap_or(keys).clone()];
    if fused.append {
        let k = prepare(operands.get(Role::K), &fused.k_norm, operands.find(Role::KNormWeight));
        caches[0] = append(&caches[0], &k, positions)?;
        caches[1] = append(&caches[1], operands.get(Role::V), positions)?;
    }
    let mut out = attention(fused, &q, &caches[0], &caches[1], positions, operands.find(Role::Sinks))?;
    if let Some(proj) = fused.proj {
        let product = Product {
            weight: operands.get(Role::ProjWeight),
            bias: operands.find(Role::ProjBias),
            transposed: proj.transposed,
        };
        out = matmul(&out, &product, &shapes[0]);
        if proj.residual {
            out = add(&out, operands.get(Role::Residual));
        }
    }
    let mut results = vec![out];
    if fused.append {
        results.append(&mut caches);
    }
    Ok(results)
}

fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut data = Vec::with_capacity(ids.data.len() * table.row_size());
    for &id in &ids.data {
        let rows = table.shape[0];
        ensure!(id >= 0.0 && (id as usize) < rows, "the id {id} is outside the table of {rows} rows");
        data.extend_from_slice(table.row(id as usize));
    }
    Ok(Tensor::new([ids.data.len(), table.row_size()], data))
}

/// Over the last axis. Sums are in f64, everything else in f32.
fn normalise(norm: &Norm, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Tensor {
    let size = *x.shape.last().expect("a normalised value has an axis");
    let mut out = x.clone();
    for row in out.data.chunks_mut(size) {
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row.iter().map(|&x| f64::from(x)).sum::<f64>() / size as f64,
        };
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / size as f64;
        let factor = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        for (i, x) in row.iter_mut().enumerate() {
            *x = ((f64::from(*x) - mean) * factor) as f32;
            if let Some(weight) = weight {
                *x *= weight.data[i] + norm.offset;
            }
            if let Some(bias) = bias {
                *x += bias.data[i];
            }
        }
    }
    out
}

/// Turns pairs of each head by position times frequency, angles in f32 as transformers has them.
fn rotate(rope: &Rope, x: &Tensor, positions: &Tensor) -> Tensor {
    let (frequencies, magnitude) = rope.frequencies();
    let head_dim = *x.shape.last().expect("a rotated value has an axis");
    let row_size = x.row_size();
    let mut out = x.clone();
    for (row, &position) in out.data.chunks_mut(row_size).zip(&positions.data) {
        for head in row.chunks_mut(head_dim) {
            for (pair, &frequency) in frequencies.iter().enumerate() {
                let (first, second) = match rope.interleaved {
                    true => (2 * pair, 2 * pair + 1),
                    false => (pair, pair + rope.dim / 2),
                };
                let angle = position * frequency;
                let (cos, sin) = (angle.cos() * magnitude, angle.sin() * magnitude);
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos - b * sin;
                head[second] = b * cos + a * sin;
            }
        }
    }
    out
}

/// `cache[positions] = x`.
fn append(cache: &Tensor, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (mut out, size) = (cache.clone(), cache.row_size());
    for (token, &position) in positions.data.iter().enumerate() {
        let context = cache.shape[0];
        ensure!(
            position >= 0.0 && (position as usize) < context,
            "the position {position} is outside the cache of {context}"
        );
        out.data[position as usize * size..][..size].copy_from_slice(x.row(token));
    }
    Ok(out)
}

/// The index of the first largest value of each row.
fn first_largest(x: &Tensor) -> Tensor {
    let first_largest = |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let tokens: Vec<f32> = (0..x.shape[0]).map(|row| first_largest(x.row(row)) as f32).collect();
    Tensor::new([tokens.len()], tokens)
}

/// Each head of `[tokens, heads, in]` by its own matrix of `[heads, out, in]`.
fn head_product(x: &Tensor, weight: &Tensor) -> Tensor {
    let [heads, rows, columns] = [weight.shape[0], weight.shape[1], weight.shape[2]];
    let mut out = Vec::with_capacity(x.data.len() / columns * rows);
    for (at, head) in x.data.chunks_exact(columns).enumerate() {
        out.extend(weight.row(at % heads).chunks_exact(columns).map(|row| dot(row, head)));
    }
    Tensor::new([x.shape[0], heads, rows], out)
}

/// The values of each head of both.
fn concat(a: &Tensor, b: &Tensor) -> Tensor {
    let (first, second) = (a.shape[2], b.shape[2]);
    let heads = a.data.chunks_exact(first).zip(b.data.chunks_exact(second));
    let data: Vec<f32> = heads.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
    Tensor::new([a.shape[0], a.shape[1], first + second], data)
}

fn add(a: &Tensor, b: &Tensor) -> Tensor {
    pair(a, b, |a, b| a + b)
}

fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    pair(a, b, |a, b| a * b)
}

/// Element by element, where one of `b` may be for several of `a`. A weight, which has one axis, is the same for all tokens.
fn pair(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Tensor {
    let is_weight = b.shape.len() == 1;
    let each = if is_weight { a.row_size() / b.data.len() } else { a.row_size() / b.row_size() };
    let of_b = |at: usize| b.data[if is_weight { at % a.row_size() / each } else { at / each }];
    Tensor::new(a.shape.clone(), a.data.iter().enumerate().map(|(at, &a)| f(a, of_b(at))).collect::<Vec<_>>())
}

fn map(x: &Tensor, f: impl Fn(f32) -> f32) -> Tensor {
    Tensor { shape: x.shape.clone(), data: x.data.iter().map(|&x| f(x)).collect() }
}
