//! The kernels that do one thing: embedding, norm, rope, kv_append, elementwise.

use anyhow::{Context, Result, ensure};
use askama::Template;
use fuse_templates::{Elementwise, Embedding, Float, KvAppend, Norm, Rope, RopeKernel, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::attention::{frequencies, rotated};
use crate::support::*;

fn results(buffer: &HostBuffer, storage: Storage) -> Result<(Vec<f32>, Bound)> {
    Ok(match storage {
        Storage::F32 => (buffer.written::<f32>()?, Bound::Exact),
        Storage::BF16 => (from_bf16(&buffer.written::<u16>()?), Bound::Rounded),
    })
}

fn room(values: usize, storage: Storage) -> HostBuffer {
    HostBuffer::output::<u8>(values * if storage == Storage::F32 { 4 } else { 2 })
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

#[test]
fn embedding() -> Result<()> {
    for (vocabulary, k, out_type) in [(37, 70, Storage::F32), (16, 33, Storage::BF16), (50, 8, Storage::F32)] {
        let tiles = Tiles { k, outputs: 1, rows: [vocabulary, 0, 0], gated: false, out_type };
        let kernel = build(Embedding { name: "kernel".into(), tiles, threads: 64 }.render()?, None)?;
        let table = Matrix::random(&mut Random(1), vocabulary, k);
        let tokens: Vec<i32> = vec![0, vocabulary as i32 - 1, -1, 9, 7];
        let expected: Vec<f64> = tokens
            .iter()
            .flat_map(|&token| if token < 0 { vec![0.0; k] } else { wide(table.row(token as usize)) })
            .collect();
        let weights = HostBuffer::input(&pack(&[table], false));
        let (tokens, out) = (HostBuffer::input(&tokens), room(5 * k, out_type));
        kernel.launch([5, 70u32.div_ceil(64), 1], 64, 0, &[weights.address(), tokens.address(), out.address()])?;
        compare("embedding", &expected, &results(&out, out_type)?.0, Bound::Exact)?;
    }
    Ok(())
}

#[test]
fn norm() -> Result<()> {
    for (size, warps, layer, weighted, out_type) in [
        (70, 2, false, true, Storage::F32),
        (33, 1, false, false, Storage::BF16),
        (129, 4, true, true, Storage::F32),
        (5, 2, true, false, Storage::F32),
    ] {
        let eps = Float(1e-5);
        let kernel =
            build(Norm { name: "kernel".into(), size, layer, eps, warps, paired: false, out_type }.render()?, None)?;
        let (rows, mut random) = (3, Random(size as u64));
        let x: Vec<f32> = random.floats(rows * size).iter().map(|value| 2.0 * value + 0.3).collect();
        let (weight, bias) = (random.floats(size), random.floats(size));
        let mut expected = Vec::new();
        for row in x.chunks(size).map(wide) {
            let mean = if layer { row.iter().sum::<f64>() / size as f64 } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / size as f64;
            for (i, x) in row.iter().enumerate() {
                let y = (x - mean) / (variance + 1e-5).sqrt();
                let (weight, bias) = if weighted { (weight[i], bias[i]) } else { (1.0, 0.0) };
                expected.push(y * f64::from(weight) + f64::from(if layer { bias } else { 0.0 }));
            }
        }
        let (x, weight, bias) = (HostBuffer::input(&x), HostBuffer::input(&weight), HostBuffer::input(&bias));
        let out = room(rows * size, out_type);
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        let arguments = [x.address(), given(weighted, &weight), given(weighted && layer, &bias), out.address()];
        kernel.launch([rows as u32, 1, 1], 32 * warps as u32, 0, &arguments)?;
        let (got, bound) = results(&out, out_type)?;
        compare("norm", &expected, &got, bound).with_context(|| format!("size {size}"))?;
    }
    Ok(())
}

#[test]
fn rope() -> Result<()> {
    for (heads, head_dim, dim, interleaved, magnitude) in
        [(3, 20, 20, false, 1.0), (2, 12, 8, true, 1.5), (1, 80, 32, false, 1.0)]
    {
        let rope = Rope::new(&frequencies(dim), dim, interleaved, magnitude);
        let kernel = RopeKernel { name: "kernel".into(), rope, heads, head_dim, threads: 32 };
        let kernel = build(kernel.render()?, None)?;
        let positions = [0, 5, 1000, 131071];
        let x = Random(3).floats(positions.len() * heads * head_dim);
        let expected: Vec<f64> = x
            .chunks(head_dim)
            .enumerate()
            .flat_map(|(at, head)| rotated(&wide(head), positions[at / heads], (dim, interleaved, magnitude)))
            .collect();
        let (x, at) = (HostBuffer::input(&x), HostBuffer::input(&positions));
        let out = room(expected.len(), Storage::F32);
        kernel.launch([4, 1, 1], 32, 0, &[x.address(), at.address(), out.address()])?;
        compare("rope", &expected, &out.written::<f32>()?, Bound::Exact)?;
    }
    Ok(())
}

#[test]
fn kv_append() -> Result<()> {
    for (key_heads, head_dim) in [(3, 20), (1, 64), (2, 5)] {
        let kernel = build(KvAppend { name: "kernel".into(), key_heads, head_dim, threads: 64 }.render()?, None)?;
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
        let arguments = [x.address(), positions.address(), sequences.address(), cache.address(), context as u64];
        kernel.launch([3, 1, 1], 64, 0, &arguments)?;
        ensure!(cache.values::<u16>()? == expected, "heads of {head_dim}: the cache differs");
    }
    Ok(())
}

#[test]
fn elementwise() -> Result<()> {
    let cases = (0..4).map(|kind| (kind, 5)).chain((0..6).map(|activation| (4, activation)));
    for (kind, activation) in cases {
        let (rows, size) = (3, 45);
        let out_type = if kind == 1 { Storage::BF16 } else { Storage::F32 };
        let factor = Float(1.75);
        let name = "kernel".into();
        let kernel = Elementwise { name, kind, activation, factor, count: 1, size, threads: 32, out_type };
        let kernel = build(kernel.render()?, None)?;
        let mut random = Random(kind as u64);
        let a: Vec<f32> = random.floats(rows * size).iter().map(|value| 3.0 * value).collect();
        let b = random.floats(rows * size);
        let value = |(&a, &b): (&f32, &f32)| {
            let (a, b) = (f64::from(a), f64::from(b));
            match kind {
                0 => a + b,
                1 => a * b,
                2 => 1.75 * a,
                3 => 1.75 * (a / 1.75).tanh(),
                _ => crate::support::activate(activation, a),
            }
        };
        let expected: Vec<f64> = a.iter().zip(&b).map(value).collect();
        let (a, b, out) = (HostBuffer::input(&a), HostBuffer::input(&b), room(rows * size, out_type));
        let second = if kind < 2 { b.address() } else { 0 };
        kernel.launch([rows as u32, 1, 1], 32, 0, &[a.address(), second, out.address()])?;
        let (got, bound) = results(&out, out_type)?;
        compare("elementwise", &expected, &got, bound).with_context(|| format!("kind {kind}, {activation}"))?;
    }
    Ok(())
}

#[test]
fn sums_of_rows() -> Result<()> {
    let (rows, count, size) = (3, 4, 45);
    let (name, factor, out_type) = ("kernel".into(), Float(0.0), Storage::F32);
    let kernel = Elementwise { name, kind: 8, activation: 5, factor, count, size, threads: 32, out_type };
    let kernel = build(kernel.render()?, None)?;
    let mut random = Random(8);
    let (a, b) = (random.floats(rows * count * size), random.floats(rows * size));
    for with in [true, false] {
        let value = |at: usize| {
            let parts = (0..count).map(|part| f64::from(a[(at / size * count + part) * size + at % size]));
            parts.sum::<f64>() + if with { f64::from(b[at]) } else { 0.0 }
        };
        let expected: Vec<f64> = (0..rows * size).map(value).collect();
        let (given, add) = (HostBuffer::input(&a), HostBuffer::input(&b));
        let out = room(rows * size, out_type);
        let second = if with { add.address() } else { 0 };
        kernel.launch([rows as u32, 1, 1], 32, 0, &[given.address(), second, out.address()])?;
        compare("sum", &expected, &results(&out, out_type)?.0, Bound::Exact)?;
    }
    Ok(())
}
