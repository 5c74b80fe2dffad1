//! The kernels that do one thing: embedding, norm, rope, kv_append, elementwise. Rows are longer than a block has threads, by no multiple of them.

use anyhow::{Context, Result, ensure};
use fuse_kernels::{
    Activation, Concat, Elementwise, Embedding, Expression, KvAppend, Norm, NormKind, RopeRows, Storage, Tiles,
};
use fuse_tests::host_build::HostBuffer;

use crate::attention::{rotated, rotation};
use crate::support::*;

fn bound_of(storage: Storage) -> Bound {
    if storage == Storage::F32 { Bound::Exact } else { Bound::Rounded }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

#[test]
fn embedding() -> Result<()> {
    for (vocabulary, k, out) in [(37, 300, Storage::F32), (16, 33, Storage::BF16), (50, 8, Storage::F32)] {
        let family = Embedding { tiles: Tiles { out, ..tiles(k, &[vocabulary]) } };
        let kernel = build(&family, None)?;
        let table = Matrix::random(&mut Random(1), vocabulary, k);
        let ids: Vec<i32> = vec![0, vocabulary as i32 - 1, -1, 9, 7];
        let expected: Vec<f64> = ids
            .iter()
            .flat_map(|&token| if token < 0 { vec![0.0; k] } else { wide(table.row(token as usize)) })
            .collect();
        let weights = HostBuffer::input(&pack(&[table], false));
        let (tokens, result) = (HostBuffer::input(&ids), room(ids.len() * k, out));
        let arguments = [("weights", weights.address()), ("tokens", tokens.address()), ("out", result.address())];
        kernel.launch(ids.len(), &arguments)?;
        compare("embedding", &expected, &written(&result, out)?, Bound::Exact)?;
    }
    Ok(())
}

/// Rows of one to eight warps, some of which have nothing of the last round or of the only one.
#[test]
fn norm() -> Result<()> {
    let [rms, layer] = [NormKind::Rms, NormKind::Layer];
    for (size, kind, weighted, out) in [
        (300, rms, true, Storage::F32),
        (33, rms, false, Storage::BF16),
        (1300, layer, true, Storage::F32),
        (5, layer, false, Storage::F32),
    ] {
        let eps = 1e-5;
        let family = Norm { kind, size, eps, paired: false, out };
        let kernel = build(&family, None)?;
        let (rows, mut random) = (3, Random(size as u64));
        let x: Vec<f32> = random.floats(rows * size).iter().map(|value| 2.0 * value + 0.3).collect();
        let (weight, bias) = (random.floats(size), random.floats(size));
        let mut expected = Vec::new();
        for row in x.chunks(size).map(wide) {
            let mean = if kind == layer { row.iter().sum::<f64>() / size as f64 } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / size as f64;
            for (i, x) in row.iter().enumerate() {
                let y = (x - mean) / (variance + f64::from(eps)).sqrt();
                let (weight, bias) = if weighted { (weight[i], bias[i]) } else { (1.0, 0.0) };
                expected.push(y * f64::from(weight) + f64::from(if kind == layer { bias } else { 0.0 }));
            }
        }
        let (x, weight, bias) = (HostBuffer::input(&x), HostBuffer::input(&weight), HostBuffer::input(&bias));
        let result = room(rows * size, out);
        let arguments = [
            ("x", x.address()),
            ("weight", given(weighted, &weight)),
            ("bias", given(weighted && kind == layer, &bias)),
            ("out", result.address()),
        ];
        kernel.launch(rows, &arguments)?;
        let got = written(&result, out)?;
        compare("norm", &expected, &got, bound_of(out)).with_context(|| format!("size {size}"))?;
    }
    Ok(())
}

#[test]
fn rope() -> Result<()> {
    for (heads, head_dim, dim, interleaved, magnitude) in
        [(17, 20, 20, false, 1.0), (2, 12, 8, true, 1.5), (5, 80, 32, false, 1.0)]
    {
        let table = rotation(dim, interleaved, magnitude);
        let family = RopeRows { table, heads, head_dim };
        let kernel = build(&family, None)?;
        let positions = [0, 5, 1000, 131071];
        let x = Random(3).floats(positions.len() * heads * head_dim);
        let expected: Vec<f64> = x
            .chunks(head_dim)
            .enumerate()
            .flat_map(|(at, head)| rotated(&wide(head), positions[at / heads], &family.table))
            .collect();
        let (x, at) = (HostBuffer::input(&x), HostBuffer::input(&positions));
        let out = room(expected.len(), Storage::F32);
        let arguments = [("x", x.address()), ("positions", at.address()), ("out", out.address())];
        kernel.launch(positions.len(), &arguments)?;
        compare("rope", &expected, &out.written::<f32>()?, Bound::Exact)?;
    }
    Ok(())
}

#[test]
fn concat() -> Result<()> {
    for (heads, first, second) in [(3, 44, 12), (1, 512, 64), (20, 5, 9)] {
        let family = Concat { heads, first, second };
        let kernel = build(&family, None)?;
        let (rows, mut random) = (3, Random(first as u64));
        let (a, b) = (random.floats(rows * heads * first), random.floats(rows * heads * second));
        let both = a.chunks(first).zip(b.chunks(second)).flat_map(|(a, b)| [wide(a), wide(b)].concat());
        let expected: Vec<f64> = both.collect();
        let (a, b, out) = (HostBuffer::input(&a), HostBuffer::input(&b), room(expected.len(), Storage::F32));
        kernel.launch(rows, &[("a", a.address()), ("b", b.address()), ("out", out.address())])?;
        compare("concat", &expected, &out.written::<f32>()?, Bound::Exact)?;
    }
    Ok(())
}

#[test]
fn kv_append() -> Result<()> {
    for (key_heads, head_dim) in [(12, 20), (5, 64), (2, 5)] {
        let family = KvAppend { key_heads, head_dim };
        let kernel = build(&family, None)?;
        let (context, padded) = (7, head_dim.next_multiple_of(8));
        let rows = [(2, 1), (-1, 0), (6, 0)];
        let x = Random(4).floats(rows.len() * key_heads * head_dim);
        let mut expected = vec![0x7fa5u16; 2 * key_heads * context * padded];
        for (row, (position, sequence)) in rows.into_iter().enumerate().filter(|(_, row)| row.0 >= 0) {
            for head in 0..key_heads {
                let at = ((sequence * key_heads + head) * context + position as usize) * padded;
                expected[at..at + padded].fill(0);
                let values = to_bf16(&x[(row * key_heads + head) * head_dim..][..head_dim]);
                expected[at..at + head_dim].copy_from_slice(&values);
            }
        }
        let positions = HostBuffer::input(&rows.map(|row| row.0));
        let sequences = HostBuffer::input(&rows.map(|row| row.1 as i32));
        let (x, cache) = (HostBuffer::input(&x), HostBuffer::output::<u16>(expected.len()));
        let arguments = [
            ("x", x.address()),
            ("positions", positions.address()),
            ("sequences", sequences.address()),
            ("cache", cache.address()),
            ("context", context as u64),
        ];
        kernel.launch(rows.len(), &arguments)?;
        ensure!(cache.values::<u16>()? == expected, "heads of {head_dim}: the cache differs");
    }
    Ok(())
}

#[test]
fn elementwise() -> Result<()> {
    let mut kinds = vec![Expression::Add, Expression::Mul, Expression::Scale(1.75), Expression::Softcap(1.75)];
    kinds.extend(Activation::ALL.map(Expression::Activate));
    for (seed, kind) in kinds.into_iter().enumerate() {
        let (rows, size) = (3, 300);
        let out = if kind == Expression::Mul { Storage::BF16 } else { Storage::F32 };
        let family = Elementwise { kind, size, out };
        let kernel = build(&family, None)?;
        let mut random = Random(seed as u64);
        let a: Vec<f32> = random.floats(rows * size).iter().map(|value| 3.0 * value).collect();
        let b = random.floats(rows * size);
        let value = |(&a, &b): (&f32, &f32)| {
            let (a, b) = (f64::from(a), f64::from(b));
            match kind {
                Expression::Add => a + b,
                Expression::Mul => a * b,
                Expression::Scale(factor) => f64::from(factor) * a,
                Expression::Softcap(cap) => f64::from(cap) * (a / f64::from(cap)).tanh(),
                Expression::Activate(activation) => activate(Some(activation), a),
                Expression::Sum(_)
                | Expression::Clamp(_)
                | Expression::Glu { .. }
                | Expression::Apply(_)
                | Expression::Spread { .. } => unreachable!("no case above"),
            }
        };
        let expected: Vec<f64> = a.iter().zip(&b).map(value).collect();
        let (a, b, result) = (HostBuffer::input(&a), HostBuffer::input(&b), room(rows * size, out));
        let two = matches!(kind, Expression::Add | Expression::Mul);
        kernel.launch(rows, &[("a", a.address()), ("b", given(two, &b)), ("out", result.address())])?;
        let got = written(&result, out)?;
        compare("elementwise", &expected, &got, bound_of(out)).with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[test]
fn sums_of_rows() -> Result<()> {
    let (rows, count, size) = (3, 4, 300);
    let family = Elementwise { kind: Expression::Sum(count), size, out: Storage::F32 };
    let kernel = build(&family, None)?;
    let mut random = Random(8);
    let (a, b) = (random.floats(rows * count * size), random.floats(rows * size));
    for with in [true, false] {
        let value = |at: usize| {
            let parts = (0..count).map(|part| f64::from(a[(at / size * count + part) * size + at % size]));
            parts.sum::<f64>() + if with { f64::from(b[at]) } else { 0.0 }
        };
        let expected: Vec<f64> = (0..rows * size).map(value).collect();
        let (summed, added) = (HostBuffer::input(&a), HostBuffer::input(&b));
        let out = room(rows * size, Storage::F32);
        let arguments = [("a", summed.address()), ("b", given(with, &added)), ("out", out.address())];
        kernel.launch(rows, &arguments)?;
        compare("sum", &expected, &out.written::<f32>()?, Bound::Exact)?;
    }
    Ok(())
}
