//! `matmul_wgmma.cu` and what writes its rows in the order of `activations.cuh`, against the interpreter.

use anyhow::{Result, ensure};
use fuse_kernels::{
    Activation, Elementwise, Expression, Matmul, MatmulWgmma, Norm, NormKind, NormRows, Storage, Tiles,
};
use fuse_tests::host_build::HostBuffer;
use fusec::ir::{self, Epilogue, Op, Tensor, evaluate};

use crate::caught::caught;
use crate::support::*;

/// Where `column` of `row` lies, as `activations.cuh` says in words: 64 columns of all rows after the other 64, in each 32 columns the 4 by 4 words of
/// two values transposed, the 16-byte chunks of a row swizzled.
fn place(row: usize, column: usize, rows: usize) -> usize {
    let (block, pair, word) = (column / 64, column / 32 % 2, column / 2 % 16);
    let transposed = word % 4 * 4 + word / 4;
    let chunk = (pair * 4 + transposed / 4) ^ (row % 8);
    (block * rows + row) * 64 + chunk * 8 + transposed % 4 * 2 + column % 2
}

fn tiled(values: &[f32], rows: usize) -> Vec<u16> {
    let k = values.len() / rows;
    let mut order = vec![0; values.len()];
    for (at, bits) in to_f16(values).into_iter().enumerate() {
        order[place(at / k, at % k, rows)] = bits;
    }
    order
}

/// The values, row by row.
pub fn untiled(order: &[u16], rows: usize) -> Vec<f32> {
    let k = order.len() / rows;
    from_f16(&(0..rows * k).map(|at| order[place(at / k, at % k, rows)]).collect::<Vec<u16>>())
}

/// One product, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: MatmulWgmma,
    /// Rows of x.
    tokens: usize,
    bias: bool,
    residual: bool,
}

/// A product with nothing fused; `block`: times 128 rows of the weight, and rows of x. A block per job.
pub fn plain(k: usize, rows: &[usize], (pieces, columns): (usize, usize)) -> MatmulWgmma {
    let tiles = tiles(k, rows);
    MatmulWgmma { tiles, pieces, columns, split: 1, most_blocks: 1 << 20, activation: None }
}

/// The same with a gate.
pub fn gated(activation: Activation, kernel: MatmulWgmma) -> MatmulWgmma {
    MatmulWgmma { activation: Some(activation), tiles: Tiles { gated: true, ..kernel.tiles }, ..kernel }
}

/// The same with results that are stored so.
pub fn stored(out: Storage, kernel: MatmulWgmma) -> MatmulWgmma {
    MatmulWgmma { tiles: Tiles { out, ..kernel.tiles }, ..kernel }
}

impl Case {
    pub fn of(kernel: MatmulWgmma, tokens: usize) -> Case {
        Case { kernel, tokens, bias: false, residual: false }
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        ensure!(self.kernel.is_sound(), "no kernel has this shape");
        let built = build(&self.kernel, mutation)?;
        let MatmulWgmma { tiles: Tiles { weights: format, k, rows, gated, out: storage }, activation, .. } =
            &self.kernel;
        let (format, k, gated, storage, tokens) = (*format, *k, *gated, *storage, self.tokens);
        let mut random = Random((k + tokens) as u64);
        let weights: Vec<usize> = if gated { vec![rows[0]; 2] } else { rows.clone() };
        let matrices: Vec<Matrix> = weights.iter().map(|&rows| Matrix::of(format, &mut random, rows, k)).collect();
        let biases: Vec<Vec<f32>> = weights.iter().map(|&rows| random.floats(rows)).collect();
        let residual = random.floats(tokens * rows[0]);
        // What half precision holds.
        let x = from_f16(&to_f16(&random.floats(tokens * k)));
        let epilogue = match activation {
            None => Epilogue::None,
            Some(activation) if gated => Epilogue::Gate(*activation),
            Some(activation) => Epilogue::Activate(*activation),
        };
        let op = ir::Matmul {
            norm: None,
            biases: vec![self.bias; weights.len()],
            epilogue,
            residual: self.residual,
            ..ir::Matmul::plain(false)
        };
        let mut operands = vec![Tensor::new([tokens, k], x.clone())];
        operands.extend(matrices.iter().map(|matrix| Tensor::new([matrix.rows, k], matrix.values.clone())));
        operands.extend(biases.iter().filter(|_| self.bias).map(|bias| Tensor::new([bias.len()], bias.clone())));
        operands.extend(self.residual.then(|| Tensor::new([tokens, rows[0]], residual.clone())));
        let shapes: Vec<Vec<usize>> = rows.iter().map(|&rows| vec![tokens, rows]).collect();
        let expected = evaluate(&Op::Matmul(op), &operands.iter().collect::<Vec<_>>(), &shapes)?;

        let packed = HostBuffer::input(&pack(&matrices, gated));
        let (bias, residual) = (HostBuffer::input(&pack_bias(&biases, gated)), HostBuffer::input(&residual));
        let x = HostBuffer::input(&tiled(&x, tokens));
        let outs: Vec<HostBuffer> = rows.iter().map(|rows| room(tokens * rows, storage)).collect();
        let out = |index: usize| outs.get(index).map_or(0, HostBuffer::address);
        let arguments = [
            ("weights", packed.address()),
            ("x", x.address()),
            ("bias", given(self.bias, &bias)),
            ("residual", given(self.residual, &residual)),
            ("out0", out(0)),
            ("out1", out(1)),
            ("out2", out(2)),
            ("row_count", tokens as u64),
        ];
        built.launch(tokens, &arguments)?;
        for (index, (expected, buffer)) in expected.iter().zip(&outs).enumerate() {
            let (got, bound) = match storage {
                Storage::F32 => (buffer.written::<f32>()?, Bound::Exact),
                Storage::BF16 | Storage::F16 => (written(buffer, storage)?, Bound::Stored),
                Storage::Tiled => (untiled(&buffer.written::<u16>()?, tokens), Bound::Stored),
            };
            let expected: Vec<f64> = expected.data.iter().map(|&value| value.into()).collect();
            compare(&format!("output {index}"), &expected, &got, bound)?;
        }
        Ok(())
    }
}

#[test]
fn products_of_many_rows() -> Result<()> {
    let biased = |kernel, tokens| Case { bias: true, ..Case::of(kernel, tokens) };
    let added = |kernel, tokens| Case { residual: true, ..biased(kernel, tokens) };
    let packed = plain(192, &[40, 7, 100], (1, 32));
    let down = plain(256, &[75], (1, 32));
    let up = stored(Storage::Tiled, gated(Activation::Silu, plain(128, &[192], (1, 32))));
    let turns = |most_blocks, kernel| MatmulWgmma { most_blocks, ..kernel };
    let split = |split, kernel| MatmulWgmma { split, ..kernel };
    let cases = [
        // One stage; fewer than fit; more; an odd number of them.
        Case::of(plain(64, &[16], (1, 32)), 8),
        biased(packed.clone(), 24),
        added(down.clone(), 40),
        Case::of(plain(64 * 11, &[130], (1, 32)), 16),
        // Jobs in turn: the ring goes on over their ends.
        biased(turns(2, packed), 24),
        added(turns(1, plain(256, &[300], (1, 32))), 40),
        Case::of(turns(2, up.clone()), 40),
        // Results as rows, rounded; in the order of the next product, by bulk copies or word by word.
        added(MatmulWgmma { activation: Some(Activation::Relu2), ..stored(Storage::BF16, down.clone()) }, 40),
        Case::of(up.clone(), 40),
        biased(
            MatmulWgmma {
                activation: Some(Activation::GeluTanh),
                ..stored(Storage::Tiled, plain(128, &[192], (1, 32)))
            },
            40,
        ),
        Case::of(split(2, up.clone()), 40),
        Case::of(MatmulWgmma { pieces: 2, columns: 64, ..up }, 40),
        Case::of(gated(Activation::Silu, plain(64, &[21], (1, 64))), 19),
        // Columns of the weight shared in a cluster: units for all warps, and for half of them.
        added(split(2, down.clone()), 40),
        added(split(4, plain(256, &[75], (1, 64))), 40),
        added(split(8, plain(512, &[129], (1, 32))), 40),
        // Wide blocks.
        added(plain(256, &[75], (2, 128)), 40),
        added(plain(256, &[75], (1, 256)), 264),
    ];
    check_each(&cases, |case| &case.kernel, |case| case.check(None))
}

/// Values that the kernels of other families store for a product of many rows.
#[test]
fn rows_for_products() -> Result<()> {
    let (rows, size, mut random) = (11, 192, Random(3));
    let x = random.floats(rows * size);
    let given_x = HostBuffer::input(&x);

    let out = HostBuffer::output::<u16>(rows * size);
    let elementwise = Elementwise { kind: Expression::Scale(0.5), size, out: Storage::Tiled };
    build(&elementwise, None)?.launch(rows, &[("a", given_x.address()), ("out", out.address())])?;
    let expected: Vec<f64> = x.iter().map(|&value| 0.5 * f64::from(value)).collect();
    compare("elementwise", &expected, &untiled(&out.written()?, rows), Bound::Stored)?;

    for (layer, weighted) in [(false, true), (true, true), (false, false)] {
        let (weight, bias) = (random.floats(size), random.floats(size));
        let out = HostBuffer::output::<u16>(rows * size);
        let kind = if layer { NormKind::Layer } else { NormKind::Rms };
        let norm = NormRows(Norm { kind, size, eps: 1e-5, paired: false, out: Storage::Tiled });
        let [weights, biases] = [&weight, &bias].map(|values| HostBuffer::input(values));
        let arguments = [
            ("x", given_x.address()),
            ("weight", given(weighted, &weights)),
            ("bias", given(layer, &biases)),
            ("out", out.address()),
        ];
        build(&norm, None)?.launch(rows, &arguments)?;
        let mut expected = Vec::new();
        for row in x.chunks(size).map(|row| row.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>()) {
            let mean = if layer { row.iter().sum::<f64>() / size as f64 } else { 0.0 };
            let square = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / size as f64;
            for (i, value) in row.iter().enumerate() {
                let factor = if weighted { f64::from(weight[i]) } else { 1.0 };
                let more = if layer { f64::from(bias[i]) } else { 0.0 };
                expected.push((value - mean) / (square + 1e-5).sqrt() * factor + more);
            }
        }
        compare("norm", &expected, &untiled(&out.written()?, rows), Bound::Stored)?;
    }

    // A product whose columns do not fill stages, and whose results do.
    let (k, matrix) = (40, Matrix::random(&mut random, 128, 40));
    let x = random.rounded(rows * k);
    let kernel = Matmul {
        tiles: Tiles { out: Storage::Tiled, ..tiles(k, &[128]) },
        row_tiles: 2,
        columns: 2,
        row_warps: 2,
        split: 1,
        paired: false,
        activation: None,
        gating: fuse_kernels::Gating::default(),
        heads: None,
        gather: None,
    };
    let packed = HostBuffer::input(&pack(std::slice::from_ref(&matrix), false));
    let x_rows = HostBuffer::input(&to_bf16(&x));
    let out = HostBuffer::output::<u16>(rows * 128);
    let arguments =
        [("weights", packed.address()), ("x", x_rows.address()), ("out0", out.address()), ("rows", rows as u64)];
    build(&kernel, None)?.launch(rows, &arguments)?;
    let dot = |at: usize| -> f64 {
        let row = matrix.row(at % 128).iter().zip(&x[at / 128 * k..]);
        row.map(|(&weight, &value)| f64::from(weight) * f64::from(value)).sum()
    };
    let expected: Vec<f64> = (0..rows * 128).map(dot).collect();
    compare("matmul", &expected, &untiled(&out.written()?, rows), Bound::Stored)
}

#[test]
fn mistakes_in_a_product_are_caught() {
    // More stages than the ring has, two rows of jobs for one block, idle rows of x.
    let kernel = MatmulWgmma { most_blocks: 1, ..plain(64 * 11, &[215], (1, 32)) };
    let case = Case { bias: true, residual: true, ..Case::of(kernel, 40) };
    caught(
        "in_a_product",
        |mutation| case.check(mutation),
        &[
            // The ring: slots that are filled too early, read too early, given back too early or never.
            ("        barrier_wait(&empty[slot], phase);\n", "", "more threads arrive"),
            ("if (more) {\n        barrier_wait(&full[slot], phase);", "if (more) {", "barrier_wait"),
            ("phase = early == STAGES ? 0 : 1", "phase = 1", "more threads arrive"),
            ("barrier_begin(&empty[s], WORKERS / 32)", "barrier_begin(&empty[s], 1)", "barrier"),
            ("if (before >= 0 && lane == 0) barrier_arrive(&empty[before]);", "", "waits for what does not come"),
            (
                "await_products<1>();\n      // The stage before this one is done with, by all lanes.\n      warp_barrier();\n      if (before >= 0 && lane == 0) barrier_arrive(&empty[before]);",
                "if (lane == 0) barrier_arrive(&empty[slot]);\n      await_products<1>();",
                "without a barrier_wait",
            ),
            ("WEIGHT_BYTES + job.count * ROW_BYTES)", "STAGE_BYTES)", "waits for what does not come"),
            ("    for (int s = 0; s < early; s++) copy_rows(job, s, s);", "", "waits for what does not come"),
            ("  block_barrier();\n\n  if (threadIdx", "\n  if (threadIdx", "shared memory"),
            // Products: sums that are read too early, fragments of another tile, bfloat16 that becomes another number.
            ("await_products<0>();", "", "without a barrier_wait"),
            ("await_products<1>();", "await_products<2>();", "without a barrier_wait"),
            ("pack_f16(bf16_low(pair), bf16_high(pair))", "pack_f16(bf16_high(pair), bf16_low(pair))", "output"),
            ("now[piece][k], stage + 32 * k)", "now[piece][k], stage + 16 * k)", "output"),
            ("(warp / 4 * PIECES + piece) * 4 + warp % 4", "warp % 4", "not written"),
            ("[32 * k + lane]", "[32 * (k ^ 1) + lane]", "output"),
            // Which rows.
            ("least(job.tile + tile, TILES - 1), 64 / STEP", "job.tile + tile, 2", "buffer of"),
            ("* rows + job.row) * 64)", "* rows) * 64)", "output"),
            ("(first_step + step) * rows + job.row", "first_step * rows + job.row", "output"),
            ("least(COLUMNS, rows - row)", "COLUMNS", "buffer of"),
            ("unit / row_blocks * BLOCK_TILES", "unit % row_blocks * BLOCK_TILES", "not written"),
            ("place.row < ROWS[place.output] ? job.count", "place.row <= ROWS[place.output] ? job.count", "buffer of"),
            ("(u64)(column + odd) * r.stride[h]", "(u64)column * r.stride[h]", "output"),
            ("* 16 + group + 8 * h;", "* 16 + group;", "output"),
        ],
    );
}

#[test]
fn mistakes_in_a_product_for_a_product_are_caught() {
    let kernel = stored(Storage::Tiled, gated(Activation::Silu, plain(128, &[192], (2, 32))));
    let case = Case { bias: true, ..Case::of(MatmulWgmma { most_blocks: 1, ..kernel }, 40) };
    caught(
        "in_a_product_for_a_product",
        |mutation| case.check(mutation),
        &[
            ("      shared_before_copies();\n", "", "shared_before_copies"),
            (
                "      shared_before_copies();\n      group_barrier(WORKERS);\n",
                "      shared_before_copies();\n",
                "shared memory",
            ),
            ("      if (threadIdx.x == 0) await_stores_read();\n", "", "output"),
            (
                "      if (threadIdx.x == 0) await_stores_read();\n      group_barrier(WORKERS);\n",
                "      if (threadIdx.x == 0) await_stores_read();\n",
                "race",
            ),
            ("if (STAGED && threadIdx.x == 0) await_stores();", "", "await_stores"),
            ("if (column < ROWS[0]) store_bulk", "store_bulk", "buffer of"),
            ("staged + c * COLUMNS * 64, job.count", "staged + c * COLUMNS * 64, COLUMNS", "buffer of"),
            ("shuffle_xor(group % 2 == 0 ? y[1] : y[0], 4)", "shuffle_xor(group % 2 == 0 ? y[0] : y[1], 4)", "output"),
            ("group / 2 * 2;", "group;", "not aligned"),
            ("(chunk ^ row % 8) * 8", "chunk * 8", "output"),
            ("v[2 + i] * HALVES_FACTOR + r.bias[1]", "v[2 + i] * HALVES_FACTOR + r.bias[0]", "output"),
        ],
    );
}

#[test]
fn mistakes_in_a_shared_product_are_caught() {
    let kernel = MatmulWgmma { split: 4, ..plain(512, &[250], (1, 64)) };
    let case = Case { residual: true, ..Case::of(kernel, 40) };
    caught(
        "in_a_shared_product",
        |mutation| case.check(mutation),
        &[
            (
                "      group_barrier(WORKERS);\n#pragma unroll\n      for (int piece",
                "#pragma unroll\n      for (int piece",
                "shared memory",
            ),
            ("first_step = ROUNDS * rank;", "first_step = 0;", "output"),
            ("from < SPLIT; from++", "from < SPLIT - 1; from++", "output"),
            ("load_peer(sums + (unit + c) * 32 + lane, from)", "load_peer(sums + unit * 32 + lane, from)", "output"),
            ("(warp * SPLIT + rank) * RUN", "warp * SPLIT * RUN", "not written"),
            ("      cluster_arrive(), cluster_wait();\n      const int begin", "      const int begin", "cluster"),
            ("  if (SPLIT > 1) cluster_arrive(), cluster_wait();\n}", "}", "cluster"),
        ],
    );
}
