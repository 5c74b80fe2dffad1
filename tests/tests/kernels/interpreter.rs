//! The sources that the compiler emits, against the graph's own interpreter: one op a family, with what fuses into it.

use anyhow::{Context, Result, ensure};
use fuse_kernels::{
    self as kernels, Append, AttentionRows, Elementwise, Embedding, Expression, Family, Format, Function, Heads,
    KvAppend, Matvec, RopeRows, Splits, Spread, Storage, Tiles,
};
use fuse_tests::host_build::HostBuffer;
use fusec::ir::{Activation, Attention, Epilogue, Matmul, Norm, NormKind, Op, Rope, RopeScaling, Tensor, evaluate};

use crate::attention_rows;
use crate::matmul;
use crate::support::*;

/// Builds and runs one kernel.
fn run(family: &dyn Family, rows: usize, arguments: &[(&str, u64)]) -> Result<()> {
    build(family, None)?.launch(rows, arguments)
}

fn tensor(random: &mut Random, shape: &[usize]) -> Tensor {
    Tensor::new(shape, random.floats(shape.iter().product()))
}

/// Values that bfloat16 holds.
fn rounded(random: &mut Random, shape: &[usize]) -> Tensor {
    Tensor::new(shape, random.rounded(shape.iter().product()))
}

fn judge(what: &str, expected: &Tensor, got: &[f32], bound: Bound) -> Result<()> {
    let expected: Vec<f64> = expected.data.iter().map(|&value| value.into()).collect();
    compare(what, &expected, got, bound)
}

fn norm_of(kind: NormKind) -> Norm {
    Norm { kind, eps: 1e-5, offset: 0.0, weight: true, bias: kind == NormKind::Layer }
}

fn rope_of(dim: usize) -> Rope {
    let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 64.0 };
    Rope { theta: 500.0, dim, interleaved: false, scaling }
}

/// A product by the decode kernel (`columns` none) or by the prompt kernel.
fn check_product(
    op: &Matmul,
    k: usize,
    rows: &[usize],
    tokens: usize,
    out: Storage,
    columns: Option<usize>,
) -> Result<()> {
    let mut random = Random(k as u64);
    let gated = matches!(op.epilogue, Epilogue::Gate(_));
    let results = if gated { 1 } else { rows.len() };
    let x = if op.norm.is_some() { tensor(&mut random, &[tokens, k]) } else { rounded(&mut random, &[tokens, k]) };
    let (norm_weight, norm_bias) = (tensor(&mut random, &[k]), tensor(&mut random, &[k]));
    let weights: Vec<Tensor> = rows.iter().map(|&rows| rounded(&mut random, &[rows, k])).collect();
    let biases: Vec<Tensor> = rows.iter().map(|&rows| tensor(&mut random, &[rows])).collect();
    let residual = tensor(&mut random, &[tokens, rows[0]]);
    let mut operands = vec![&x];
    if let Some(norm) = &op.norm {
        operands.extend(norm.weight.then_some(&norm_weight));
        operands.extend(norm.bias.then_some(&norm_bias));
    }
    operands.extend(&weights);
    operands.extend(biases.iter().zip(&op.biases).filter(|(_, has)| **has).map(|(bias, _)| bias));
    operands.extend(op.residual.then_some(&residual));
    let shapes: Vec<Vec<usize>> = rows[..results].iter().map(|&rows| vec![tokens, rows]).collect();
    let expected = evaluate(&Op::Matmul(op.clone()), &operands, &shapes)?;

    let matrices: Vec<Matrix> = weights.iter().map(|w| Matrix::whole(w.shape[0], k, w.data.clone())).collect();
    let zeros_or = |(bias, has): (&Tensor, &bool)| if *has { bias.data.clone() } else { vec![0.0; bias.data.len()] };
    let packed_bias = pack_bias(&biases.iter().zip(&op.biases).map(zeros_or).collect::<Vec<_>>(), gated);
    let tiles = Tiles { weights: Format::BF16, k, rows: rows[..results].to_vec(), gated, out };
    let activation = match op.epilogue {
        Epilogue::None => None,
        Epilogue::Activate(activation) | Epilogue::Gate(activation) => Some(activation),
    };
    let weights = HostBuffer::input(&pack(&matrices, gated));
    let x = if op.norm.is_some() { HostBuffer::input(&x.data) } else { HostBuffer::input(&to_bf16(&x.data)) };
    let (norm_weight, norm_bias) = (HostBuffer::input(&norm_weight.data), HostBuffer::input(&norm_bias.data));
    let (bias, residual) = (HostBuffer::input(&packed_bias), HostBuffer::input(&residual.data));
    let outs: Vec<HostBuffer> = rows[..results].iter().map(|rows| room(tokens * rows, out)).collect();
    let mut arguments = vec![
        ("weights", weights.address()),
        ("x", x.address()),
        ("bias", given(op.biases.contains(&true), &bias)),
        ("residual", given(op.residual, &residual)),
    ];
    arguments.extend(["out0", "out1", "out2"].into_iter().zip(outs.iter().map(HostBuffer::address)));
    match columns {
        None => {
            let norm = op.norm.as_ref();
            let kernel = Matvec {
                warps: 8,
                depth: 3,
                blocks: tiles.count().min(3),
                norm: norm.map(|norm| (norm.kind, norm.eps)),
                staged: norm.is_some(),
                activation,
                residual: op.residual,
                ahead: norm.is_none(),
                ..Matvec::plain(tiles, tokens)
            };
            arguments.push(("norm_weight", given(norm.is_some_and(|norm| norm.weight), &norm_weight)));
            arguments.push(("norm_bias", given(norm.is_some_and(|norm| norm.bias), &norm_bias)));
            run(&kernel, tokens, &arguments)?;
        }
        Some(columns) => {
            let kernel = kernels::Matmul { activation, ..matmul::plain(tiles, [2, columns, 2, 2]) };
            arguments.push(("rows", tokens as u64));
            run(&kernel, tokens, &arguments)?;
        }
    }
    let bound = match (op.norm.is_some(), out) {
        (true, _) => Bound::Unrounded,
        (false, Storage::F32) => Bound::Exact,
        (false, _) => Bound::Rounded,
    };
    for (index, (expected, buffer)) in expected.iter().zip(&outs).enumerate() {
        judge(&format!("result {index}"), expected, &written(buffer, out)?, bound)?;
    }
    Ok(())
}

#[test]
fn products() -> Result<()> {
    let norm = |kind| Some(norm_of(kind));
    let gated = Matmul {
        norm: norm(NormKind::Rms),
        biases: vec![false; 2],
        epilogue: Epilogue::Gate(Activation::Silu),
        ..Matmul::plain(false)
    };
    check_product(&gated, 90, &[45, 45], 1, Storage::BF16, None)?;
    let packed = Matmul { norm: norm(NormKind::Rms), biases: vec![true, true, false], ..Matmul::plain(false) };
    check_product(&packed, 70, &[33, 16, 20], 2, Storage::F32, None)?;
    let layer = Matmul {
        norm: norm(NormKind::Layer),
        epilogue: Epilogue::Activate(Activation::GeluTanh),
        ..Matmul::plain(true)
    };
    check_product(&layer, 57, &[38], 4, Storage::BF16, None)?;
    let down = Matmul { residual: true, ..Matmul::plain(true) };
    check_product(&down, 130, &[37], 8, Storage::F32, None)?;
    check_product(&down, 130, &[37], 19, Storage::F32, Some(2))?;
    let prompt = Matmul { norm: None, ..gated };
    check_product(&prompt, 90, &[45, 45], 5, Storage::BF16, Some(1))?;
    check_product(&Matmul { norm: None, ..packed }, 70, &[33, 16, 20], 8, Storage::F32, Some(1))
}

/// One row of one sequence, at a position. The cache holds what bfloat16 holds; the interpreter does not round what it appends.
fn check_attention(op: &Attention, heads: usize, key_heads: usize, dim: usize, position: usize) -> Result<()> {
    let mut random = Random(dim as u64);
    let (context, padded) = (position + 3, dim.next_multiple_of(8));
    let q = tensor(&mut random, &[1, heads, dim]);
    let (k, v) = (tensor(&mut random, &[1, key_heads, dim]), tensor(&mut random, &[1, key_heads, dim]));
    let caches = [(); 2].map(|()| rounded(&mut random, &[context, key_heads, dim]));
    let positions = Tensor::ints(&[position as i32]);
    let (q_weight, k_weight) = (tensor(&mut random, &[dim]), tensor(&mut random, &[dim]));
    let sinks = tensor(&mut random, &[heads]);
    let mut operands = vec![&q];
    if op.append {
        operands.extend([&k, &v]);
    }
    operands.extend([&caches[0], &caches[1], &positions]);
    operands.extend(op.q_norm.as_ref().map(|_| &q_weight));
    operands.extend(op.k_norm.as_ref().map(|_| &k_weight));
    operands.extend(op.sinks.then_some(&sinks));
    let cache_shape = vec![context, key_heads, dim];
    let shapes = [vec![1, heads, dim], cache_shape.clone(), cache_shape];
    let expected = evaluate(&Op::Attention(op.clone()), &operands, &shapes)?;

    let attention = Heads {
        heads,
        key_heads,
        head_dim: dim,
        group: heads / key_heads,
        warps: 2,
        splits: Splits { max: 1, keys: 64, window: op.window.unwrap_or(0), merged: 1 },
        chains: 2,
        held: 1,
        late: false,
        scale: op.scale,
        softcap: op.softcap,
        append: op.append,
        norm: op.q_norm.as_ref().map(|norm| (norm.eps, norm.eps)),
        rope: op.rope.as_ref().map(Rope::table),
        sinks: op.sinks,
    };
    // [context][heads][dim] to [heads][context][padded].
    let place = |position: usize, head: usize, d: usize| (head * context + position) * padded + d;
    let kept = caches.each_ref().map(|cache| {
        let mut values = vec![0.0; key_heads * context * padded];
        for (at, &value) in cache.data.iter().enumerate() {
            values[place(at / dim / key_heads, at / dim % key_heads, at % dim)] = value;
        }
        HostBuffer::inout(&to_bf16(&values))
    });
    let (q, k, v) = (HostBuffer::input(&q.data), HostBuffer::input(&k.data), HostBuffer::input(&v.data));
    let (positions, sequences) = (HostBuffer::input(&[position as i32]), HostBuffer::input(&[0i32]));
    let (q_weight, k_weight) = (HostBuffer::input(&q_weight.data), HostBuffer::input(&k_weight.data));
    let (sinks, out) = (HostBuffer::input(&sinks.data), HostBuffer::output::<f32>(heads * dim));
    let arguments = [
        ("q", q.address()),
        ("k", given(op.append, &k)),
        ("v", given(op.append, &v)),
        ("key_cache", kept[0].address()),
        ("value_cache", kept[1].address()),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("q_weight", given(op.q_norm.is_some(), &q_weight)),
        ("k_weight", given(op.k_norm.is_some(), &k_weight)),
        ("sinks", given(op.sinks, &sinks)),
        ("out", out.address()),
        ("context", context as u64),
    ];
    run(&kernels::Attention { attention, out: Storage::F32 }, 1, &arguments)?;
    judge("attention", &expected[0], &out.written::<f32>()?, if op.append { Bound::Rounded } else { Bound::Exact })?;
    for (cache, buffer) in expected.iter().skip(1).zip(&kept) {
        let values = from_bf16(&buffer.values::<u16>()?);
        let got: Vec<f32> = (0..cache.data.len())
            .map(|at| values[place(at / dim / key_heads, at / dim % key_heads, at % dim)])
            .collect();
        judge("cache", cache, &got, Bound::Rounded)?;
    }
    Ok(())
}

#[test]
fn attentions() -> Result<()> {
    let plain = Attention::plain(0.3);
    check_attention(&plain, 4, 2, 20, 100)?;
    check_attention(&Attention { window: Some(9), softcap: Some(2.0), sinks: true, ..plain.clone() }, 3, 1, 64, 150)?;
    let decode = Attention { append: true, rope: Some(rope_of(64)), ..plain };
    check_attention(&decode, 9, 3, 64, 40)?;
    let norm = Some(norm_of(NormKind::Rms));
    check_attention(&Attention { q_norm: norm.clone(), k_norm: norm, ..decode.clone() }, 4, 4, 80, 99)?;
    check_attention(&Attention { rope: Some(Rope { interleaved: true, ..rope_of(8) }), ..decode }, 4, 1, 12, 0)
}

/// The rows of a chunk of a prompt from `first` on, in two kernels: what attention reads, and attention.
fn check_attention_rows(op: &Attention, heads: usize, key_heads: usize, dim: usize, first: usize) -> Result<()> {
    let mut random = Random(dim as u64);
    let (rows, padded) = (24, dim.next_multiple_of(8));
    let context = first + rows + 2;
    let q = tensor(&mut random, &[rows, heads, dim]);
    let [k, v] = [(); 2].map(|()| tensor(&mut random, &[rows, key_heads, dim]));
    let caches = [(); 2].map(|()| rounded(&mut random, &[context, key_heads, dim]));
    let at: Vec<i32> = (0..rows).map(|row| (first + row) as i32).collect();
    let (positions, [q_weight, k_weight]) = (Tensor::ints(&at), [(); 2].map(|()| tensor(&mut random, &[dim])));
    let sinks = tensor(&mut random, &[heads]);
    let mut operands = vec![&q, &k, &v, &caches[0], &caches[1], &positions];
    operands.extend(op.q_norm.as_ref().map(|_| &q_weight));
    operands.extend(op.k_norm.as_ref().map(|_| &k_weight));
    operands.extend(op.sinks.then_some(&sinks));
    let cache_shape = vec![context, key_heads, dim];
    let shapes = [vec![rows, heads, dim], cache_shape.clone(), cache_shape];
    let expected = evaluate(&Op::Attention(op.clone()), &operands, &shapes)?;

    let kept = caches.each_ref().map(|cache| {
        let mut values = vec![0.0; key_heads * context * padded];
        for (at, &value) in cache.data.iter().enumerate() {
            values[(at / dim % key_heads * context + at / dim / key_heads) * padded + at % dim] = value;
        }
        HostBuffer::inout(&to_bf16(&values))
    });
    let [q, k, v, q_weight, k_weight, sinks] =
        [&q, &k, &v, &q_weight, &k_weight, &sinks].map(|tensor| HostBuffer::input(&tensor.data));
    let (positions, sequences) = (HostBuffer::input(&at), HostBuffer::input(&vec![0i32; rows]));
    let queries = HostBuffer::output::<f32>(rows * heads * dim);
    let norm = |norm: &Option<Norm>| norm.as_ref().map(|norm| (norm.kind, norm.eps));
    let append = Append {
        heads,
        key_heads,
        head_dim: dim,
        q_norm: norm(&op.q_norm),
        k_norm: norm(&op.k_norm),
        rope: op.rope.as_ref().map(Rope::table),
    };
    let arguments = [
        ("q", q.address()),
        ("k", k.address()),
        ("v", v.address()),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("q_weight", given(op.q_norm.is_some(), &q_weight)),
        ("k_weight", given(op.k_norm.is_some(), &k_weight)),
        ("q_out", queries.address()),
        ("key_cache", kept[0].address()),
        ("value_cache", kept[1].address()),
        ("context", context as u64),
    ];
    run(&append, rows, &arguments)?;

    let out = HostBuffer::output::<f32>(rows * heads * dim);
    let attention = AttentionRows {
        window: op.window.unwrap_or(0),
        scale: op.scale,
        softcap: op.softcap,
        sinks: op.sinks,
        ..attention_rows::shaped(2, 2, attention_rows::plain(heads, key_heads, dim))
    };
    let arguments = [
        ("q", queries.address()),
        ("key_cache", kept[0].address()),
        ("value_cache", kept[1].address()),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("sinks", given(op.sinks, &sinks)),
        ("out", out.address()),
        ("context", context as u64),
        ("rows", rows as u64),
    ];
    run(&attention, rows, &arguments)?;
    judge("attention", &expected[0], &out.written::<f32>()?, Bound::Rounded)
}

#[test]
fn attentions_of_many_rows() -> Result<()> {
    let norm = |kind| Some(Norm { bias: false, ..norm_of(kind) });
    let plain = Attention { append: true, rope: Some(rope_of(16)), ..Attention::plain(0.3) };
    check_attention_rows(&Attention { window: Some(9), sinks: true, ..plain.clone() }, 6, 2, 20, 60)?;
    let normed = Attention { q_norm: norm(NormKind::Rms), k_norm: norm(NormKind::Layer), ..plain };
    check_attention_rows(&Attention { softcap: Some(2.0), ..normed }, 3, 3, 24, 0)
}

#[test]
fn rows_of_a_table() -> Result<()> {
    let (vocabulary, k) = (41, 70);
    let table = rounded(&mut Random(1), &[vocabulary, k]);
    let ids = [40, 0, 17];
    let expected = evaluate(&Op::Embedding, &[&Tensor::ints(&ids), &table], &[vec![3, k]])?;
    let weights = HostBuffer::input(&pack(&[Matrix::whole(vocabulary, k, table.data)], false));
    let (ids, out) = (HostBuffer::input(&ids), HostBuffer::output::<f32>(3 * k));
    let arguments = [("weights", weights.address()), ("tokens", ids.address()), ("out", out.address())];
    run(&Embedding { tiles: tiles(k, &[vocabulary]) }, 3, &arguments)?;
    judge("embedding", &expected[0], &out.written::<f32>()?, Bound::Exact)
}

#[test]
fn norms() -> Result<()> {
    for (kind, size) in [(NormKind::Rms, 70), (NormKind::Layer, 300)] {
        let mut random = Random(size as u64);
        let x = tensor(&mut random, &[3, size]);
        let (weight, bias) = (tensor(&mut random, &[size]), tensor(&mut random, &[size]));
        let norm = norm_of(kind);
        let operands = [&x, &weight, &bias];
        let count = if norm.bias { 3 } else { 2 };
        let expected = evaluate(&Op::Norm(norm.clone()), &operands[..count], &[vec![3, size]])?;
        let buffers = operands.map(|tensor| HostBuffer::input(&tensor.data));
        let out = HostBuffer::output::<f32>(3 * size);
        let family = kernels::Norm { kind, size, eps: norm.eps, paired: false, out: Storage::F32 };
        let arguments = [
            ("x", buffers[0].address()),
            ("weight", buffers[1].address()),
            ("bias", given(norm.bias, &buffers[2])),
            ("out", out.address()),
        ];
        run(&family, 3, &arguments)?;
        judge("norm", &expected[0], &out.written::<f32>()?, Bound::Exact)?;
    }
    Ok(())
}

#[test]
fn rotations_and_appends() -> Result<()> {
    let (heads, head_dim) = (3, 20);
    let x = tensor(&mut Random(2), &[4, heads, head_dim]);
    let at = [0, 3, 9, 5];
    let rope = Rope { interleaved: true, ..rope_of(12) };
    let positions = Tensor::ints(&at);
    let expected = evaluate(&Op::Rope(rope.clone()), &[&x, &positions], std::slice::from_ref(&x.shape))?;
    let given_x = HostBuffer::input(&x.data);
    let (places, sequences) = (HostBuffer::input(&at), HostBuffer::input(&[0i32; 4]));
    let out = HostBuffer::output::<f32>(x.data.len());
    let arguments = [("x", given_x.address()), ("positions", places.address()), ("out", out.address())];
    run(&RopeRows { table: rope.table(), heads, head_dim }, 4, &arguments)?;
    judge("rope", &expected[0], &out.written::<f32>()?, Bound::Exact)?;

    let (context, padded) = (10, 24);
    let zeros = Tensor::zeros([context, heads, head_dim]);
    let expected = evaluate(&Op::KvAppend, &[&zeros, &x, &positions], std::slice::from_ref(&zeros.shape))?;
    let cache = HostBuffer::inout(&vec![0u16; heads * context * padded]);
    let arguments = [
        ("x", given_x.address()),
        ("positions", places.address()),
        ("sequences", sequences.address()),
        ("cache", cache.address()),
        ("context", context as u64),
    ];
    run(&KvAppend { key_heads: heads, head_dim }, 4, &arguments)?;
    let values = from_bf16(&cache.values::<u16>()?);
    let got: Vec<f32> = (0..expected[0].data.len())
        .map(|at| values[(at / head_dim % heads * context + at / head_dim / heads) * padded + at % head_dim])
        .collect();
    judge("kv_append", &expected[0], &got, Bound::Rounded)
}

#[test]
fn elements() -> Result<()> {
    let size = 45;
    let mut random = Random(8);
    let (a, b) = (tensor(&mut random, &[2, size]), tensor(&mut random, &[2, size]));
    let mut kinds = vec![
        (Expression::Add, Op::Add),
        (Expression::Mul, Op::Mul),
        (Expression::Scale(0.375), Op::Scale(0.375)),
        (Expression::Softcap(0.75), Op::Softcap(0.75)),
        (Expression::Clamp(0.5), Op::Clamp(0.5)),
        (Expression::Glu { per_row: false }, Op::Glu),
        (Expression::Glu { per_row: true }, Op::Glu),
    ];
    kinds.extend(Activation::ALL.map(|activation| (Expression::Activate(activation), Op::Activation(activation))));
    kinds.extend(Function::ALL.map(|function| (Expression::Apply(function), Op::Function(function))));
    for (kind, op) in kinds {
        let count = op.roles().len();
        let b = match kind {
            Expression::Glu { per_row: true } => Tensor::new([2, 1], &b.data[..2]),
            _ => b.clone(),
        };
        let expected = evaluate(&op, &[&a, &b][..count], &[vec![2, size]])?;
        let (a, b, out) = (HostBuffer::input(&a.data), HostBuffer::input(&b.data), HostBuffer::output::<f32>(2 * size));
        let family = Elementwise { kind, size, out: Storage::F32 };
        run(&family, 2, &[("a", a.address()), ("b", given(count == 2, &b)), ("out", out.address())])?;
        judge("elementwise", &expected[0], &out.written::<f32>()?, Bound::Exact)
            .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

/// Values of b that several of a share: one per head, one per row, and weights, which are the same for all rows.
#[test]
fn elements_that_share_one() -> Result<()> {
    let (heads, dim) = (3, 15);
    let mut random = Random(9);
    let a = tensor(&mut random, &[2, heads, dim]);
    let ops = [(Spread::Add, Op::Add), (Spread::Mul, Op::Mul), (Spread::Glu, Op::Glu), (Spread::Decay, Op::Decay)];
    for (of, op) in ops {
        for (each, weight) in [(dim, false), (heads * dim, false), (1, true), (dim, true), (heads * dim, true)] {
            if weight && of == Spread::Glu || !weight && of == Spread::Decay {
                continue;
            }
            let count = heads * dim / each;
            let b = tensor(&mut random, &if weight { vec![count] } else { vec![2, count] });
            let expected = evaluate(&op, &[&a, &b], std::slice::from_ref(&a.shape))?;
            let (own, other) = (HostBuffer::input(&a.data), HostBuffer::input(&b.data));
            let out = HostBuffer::output::<f32>(a.data.len());
            let kind = Expression::Spread { of, each, weight };
            let family = Elementwise { kind, size: heads * dim, out: Storage::F32 };
            run(&family, 2, &[("a", own.address()), ("b", other.address()), ("out", out.address())])?;
            judge("elementwise", &expected[0], &out.written::<f32>()?, Bound::Exact)
                .with_context(|| format!("{kind:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn packs_as_the_runtime_does() -> Result<()> {
    // One pair of one row tile, lane by lane.
    let matrix = Matrix::random(&mut Random(6), 16, 32);
    let packed = pack(std::slice::from_ref(&matrix), false);
    for lane in 0..32 {
        let columns = |row: usize| to_bf16(&matrix.row(row)[8 * (lane % 4)..][..8]);
        let (first, second) = fuserun::weights::lane_share(&columns(lane / 4), &columns(lane / 4 + 8));
        ensure!(packed[8 * lane..][..8] == first, "lane {lane} of the first tile");
        ensure!(packed[256 + 8 * lane..][..8] == second, "lane {lane} of the second tile");
    }
    Ok(())
}
