//! `matmul.cu` against sums in f64. Where it gathers the rows of experts: see `experts.rs`.

use anyhow::Result;
use fuse_kernels::{Activation, Gating, Matmul, Matvec, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::matmul_wgmma::untiled;
use crate::matvec::{self, Problem};
use crate::support::*;

/// One matmul, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Matmul,
    /// Rows of x.
    pub rows: usize,
    pub bias: bool,
    pub residual: bool,
}

/// A product with nothing fused, by warps of this many row tiles and groups of eight rows of x; how many share x, and how many a row tile.
pub fn plain(tiles: Tiles, [row_tiles, columns, row_warps, split]: [usize; 4]) -> Matmul {
    let gating = Gating::default();
    Matmul {
        tiles,
        row_tiles,
        columns,
        row_warps,
        split,
        paired: false,
        activation: None,
        gating,
        gather: None,
        heads: None,
    }
}

/// A product with a gate and with another weight.
fn gated(k: usize, out: Storage, shape: [usize; 4]) -> Matmul {
    let tiles = Tiles { gated: true, out, ..tiles(k, &[27]) };
    Matmul { activation: Some(Activation::Silu), ..plain(tiles, shape) }
}

impl Case {
    pub fn of(kernel: Matmul, rows: usize) -> Case {
        Case { kernel, rows, bias: false, residual: false }
    }

    /// Runs it on random values and compares.
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let Matmul { tiles, activation, .. } = &self.kernel;
        // The same product by the kernel of few rows: what both are given, and what should come of it.
        let product =
            Matvec { activation: *activation, residual: self.residual, ..Matvec::plain(tiles.clone(), self.rows) };
        let problem = Problem::new(&matvec::Case { bias: self.bias, ..matvec::Case::of(product) }, &mut Random(7));
        let weights = HostBuffer::input(&problem.packed);
        let x = HostBuffer::input(&to_operands(tiles.weights, &problem.given));
        let bias = HostBuffer::input(&problem.bias);
        let residual = HostBuffer::input(&problem.residual);
        let outs: Vec<HostBuffer> = tiles.rows.iter().map(|&rows| room(self.rows * rows, tiles.out)).collect();
        let mut arguments = vec![
            ("weights", weights.address()),
            ("x", x.address()),
            ("bias", given(self.bias, &bias)),
            ("residual", given(self.residual, &residual)),
            ("rows", self.rows as u64),
        ];
        arguments.extend(["out0", "out1", "out2"].into_iter().zip(outs.iter().map(HostBuffer::address)));
        kernel.launch(self.rows, &arguments)?;
        let bound = if tiles.out == Storage::F32 { Bound::Exact } else { Bound::Rounded };
        for (index, buffer) in outs.iter().enumerate() {
            let got = written(buffer, tiles.out)?;
            compare(&format!("output {index}"), &problem.expected[index], &got, bound)?;
        }
        Ok(())
    }
}

/// Each head of a row by a matrix of its own.
#[test]
fn heads() -> Result<()> {
    let (bf16, tiled) = (Storage::BF16, Storage::Tiled);
    for (heads, k, size, rows, out, shape) in [
        (3, 50, 37, 11, Storage::F32, [2, 2, 2, 1]),
        (2, 96, 20, 3, bf16, [1, 4, 1, 8]),
        (5, 33, 16, 1, Storage::F32, [1, 4, 1, 8]),
        (4, 64, 32, 40, tiled, [2, 8, 2, 2]),
    ] {
        let family = Matmul { heads: Some(heads), ..plain(Tiles { out, ..tiles(k, &[size]) }, shape) };
        let kernel = build(&family, None)?;
        let mut random = Random((heads * k) as u64);
        let matrices: Vec<Matrix> = (0..heads).map(|_| Matrix::random(&mut random, size, k)).collect();
        let x = random.rounded(rows * heads * k);
        let dot =
            |row: &[f32], x: &[f32]| -> f64 { row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum() };
        let head =
            |(at, x): (usize, &[f32])| (0..size).map(|row| dot(matrices[at % heads].row(row), x)).collect::<Vec<_>>();
        let expected: Vec<f64> = x.chunks(k).enumerate().flat_map(head).collect();
        let packed: Vec<u16> = matrices.iter().flat_map(|matrix| pack(std::slice::from_ref(matrix), false)).collect();
        let (weights, x) = (HostBuffer::input(&packed), HostBuffer::input(&to_operands(family.tiles.weights, &x)));
        let result = room(expected.len(), out);
        let arguments =
            [("weights", weights.address()), ("x", x.address()), ("out0", result.address()), ("rows", rows as u64)];
        kernel.launch(rows, &arguments)?;
        match out {
            Storage::Tiled => compare("heads", &expected, &untiled(&result.written()?, rows), Bound::Rounded)?,
            Storage::F32 => compare("heads", &expected, &written(&result, out)?, Bound::Exact)?,
            Storage::BF16 | Storage::F16 => compare("heads", &expected, &written(&result, out)?, Bound::Rounded)?,
        }
    }
    Ok(())
}

#[test]
fn matmul() -> Result<()> {
    let (f32, bf16) = (Storage::F32, Storage::BF16);
    let bias = |kernel, rows| Case { bias: true, ..Case::of(kernel, rows) };
    let full = |k, rows, shape| Case { residual: true, ..bias(plain(tiles(k, &[100]), shape), rows) };
    let packed = |shape| bias(plain(tiles(33, &[20, 7, 33]), shape), 8);
    let silu = Matmul { activation: Some(Activation::Silu), ..plain(tiles(260, &[37]), [1, 1, 1, 8]) };
    check_each(
        &[
            Case::of(plain(tiles(50, &[37]), [2, 2, 2, 1]), 11),
            full(96, 17, [1, 4, 4, 1]),
            packed([2, 1, 2, 1]),
            Case::of(gated(64, bf16, [2, 1, 2, 1]), 9),
            bias(gated(64, f32, [1, 2, 2, 1]), 3),
            // Pairs shared among warps: evenly, unevenly, and with warps that have none.
            full(96, 17, [1, 2, 1, 2]),
            full(300, 20, [2, 2, 2, 2]),
            packed([1, 1, 1, 8]),
            bias(gated(90, bf16, [2, 1, 2, 4]), 9),
            Case::of(gated(520, bf16, [2, 2, 1, 8]), 33),
            Case::of(silu, 5),
        ],
        |case| &case.kernel,
        |case| case.check(None),
    )
}
