//! `matvec.cu` and `matmul.cu` against sums in f64.

use anyhow::{Context, Result};
use askama::Template;
use fuse_templates::{Float, Matmul, Matvec, Splits, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::router::{COPIES, Router};
use crate::support::*;

/// One matvec, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub k: usize,
    /// Rows of each output; gated: one entry, the rows of the result.
    pub rows: Vec<usize>,
    pub gated: bool,
    pub batch: usize,
    pub warps: usize,
    pub depth: usize,
    /// Row tiles that are finished together.
    pub unit: usize,
    /// Blocks that share the columns of a row tile.
    pub split: usize,
    /// Floats that the launch sets to zero.
    pub zeros: usize,
    /// Also without norm and combine, which need it.
    pub staged: bool,
    /// 0 none, 1 rms_norm, 2 layer_norm, 3 none of an fp32 x.
    pub norm: usize,
    pub norm_weight: bool,
    pub norm_bias: bool,
    /// Heads and the splits of the attention whose parts x is.
    pub combine: Option<(usize, Splits)>,
    pub bias: bool,
    pub residual: bool,
    pub activation: usize,
    pub argmax: bool,
    /// A row of the result that the residual makes NaN, for the first row of x.
    pub broken: Option<usize>,
    pub late: bool,
    pub ahead: bool,
    /// Logits of a router that reads the result; 0: none.
    pub router: usize,
    pub out_type: Storage,
    pub grid: u32,
}

impl Case {
    pub fn new(k: usize, rows: &[usize], batch: usize) -> Case {
        Case {
            k,
            rows: rows.to_vec(),
            gated: false,
            batch,
            warps: batch.max(4),
            depth: 2,
            unit: 1,
            split: 1,
            zeros: 0,
            staged: false,
            norm: 0,
            norm_weight: true,
            norm_bias: false,
            combine: None,
            bias: false,
            residual: false,
            activation: 5,
            argmax: false,
            broken: None,
            late: false,
            ahead: false,
            router: 0,
            out_type: Storage::F32,
            grid: 2,
        }
    }

    fn tiles(&self) -> Tiles {
        let mut rows = [0; 3];
        rows[..self.rows.len()].copy_from_slice(&self.rows);
        Tiles { k: self.k, outputs: self.rows.len(), rows, gated: self.gated, out_type: self.out_type }
    }

    fn is_staged(&self) -> bool {
        self.staged || self.norm != 0 || self.combine.is_some()
    }

    pub fn source(&self) -> String {
        let (heads, splits) = self.combine.clone().unwrap_or((1, Splits::default()));
        Matvec {
            name: "kernel".into(),
            tiles: self.tiles(),
            splits,
            batch: self.batch,
            warps: self.warps,
            depth: self.depth,
            unit: self.unit,
            split: self.split,
            norm: self.norm,
            eps: Float(1e-5),
            combine: self.combine.is_some(),
            staged: self.is_staged(),
            heads,
            head_dim: self.k / heads,
            activation: self.activation,
            argmax: self.argmax,
            late: self.late,
            ahead: self.ahead,
            router: fuse_templates::Router { experts: self.router, copies: COPIES },
        }
        .render()
        .expect("the template renders")
    }

    /// Runs it on random values and compares.
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let mut random = Random(self.k as u64 * 1000 + self.batch as u64);
        let mut problem = Problem::new(self, &mut random);
        let (k, batch) = (self.k, self.batch);

        let computed = self.norm != 0 || self.combine.is_some();
        let positions = HostBuffer::input(&problem.positions);
        let statistics = HostBuffer::input(&problem.statistics);
        let x = if computed { HostBuffer::input(&problem.given) } else { HostBuffer::input(&to_bf16(&problem.given)) };
        let weights = HostBuffer::input(&problem.packed);
        let norm_weight = HostBuffer::input(&problem.norm_weight);
        let norm_bias = HostBuffer::input(&problem.norm_bias);
        let bias = HostBuffer::input(&problem.bias);
        let residual = HostBuffer::input(&problem.residual);
        let size = if self.out_type == Storage::F32 { 4 } else { 2 };
        // Blocks add to zeros.
        let empty = |rows: usize| match self.split {
            1 => HostBuffer::output::<u8>(batch * rows * size),
            _ => HostBuffer::inout(&vec![0u8; batch * rows * size]),
        };
        let outs: Vec<HostBuffer> = self.rows.iter().map(|&rows| empty(rows)).collect();
        let zeros = HostBuffer::output::<f32>(self.zeros);
        let units = row_tiles(&problem.rows, self.gated).div_ceil(self.unit);
        let grid = self.grid.min(units as u32) * self.split as u32;
        let maxima = HostBuffer::output::<u32>(batch * grid as usize * 2);
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        let out = |index: usize| outs.get(index).map_or(0, HostBuffer::address);
        // A norm leaves two bfloat16 a value.
        let staged_rows = if self.norm != 0 { 2 * batch } else { batch };
        let columns = k.div_ceil(32).div_ceil(self.split) * 32;
        let shared = if self.is_staged() { staged_rows * (columns + 32) * 2 } else { 0 };
        let router = Router::new(self, &mut random);
        let mut arguments = vec![
            weights.address(),
            x.address(),
            given(matches!(self.norm, 1 | 2) && self.norm_weight, &norm_weight),
            given(self.norm_bias, &norm_bias),
            given(self.bias, &bias),
            given(self.residual, &residual),
            out(0),
            out(1),
            out(2),
            given(self.combine.is_some(), &statistics),
            given(self.combine.is_some(), &positions),
            given(self.argmax, &maxima),
        ];
        arguments.extend(router.as_ref().map(|router| router.arguments(self)).into_iter().flatten());
        arguments.extend([given(self.zeros > 0, &zeros), self.zeros as u64]);
        kernel.launch([grid, 1, 1], 32 * self.warps as u32, shared as u32, &arguments)?;
        if let Some(router) = router {
            router.check(self, &problem.expected[0])?;
        }
        if self.zeros > 0 {
            let left = zeros.written::<f32>()?.iter().filter(|&&value| value != 0.0).count();
            anyhow::ensure!(left == 0, "{left} of {} floats are not zero", self.zeros);
        }

        let bound = if computed || self.out_type == Storage::BF16 { Bound::Rounded } else { Bound::Exact };
        let mut first = Vec::new();
        for (index, buffer) in outs.iter().enumerate() {
            let mut got = match self.out_type {
                Storage::F32 => buffer.written::<f32>()?,
                Storage::BF16 => from_bf16(&buffer.written::<u16>()?),
            };
            if let Some(row) = self.broken {
                anyhow::ensure!(got[row].is_nan(), "row {row} is {}, not NaN", got[row]);
                (problem.expected[index][row], got[row]) = (0.0, 0.0);
            }
            compare(&format!("output {index}"), &problem.expected[index], &got, bound)?;
            if index == 0 {
                first = got;
            }
        }
        if self.argmax {
            let maxima = maxima.written::<u32>()?;
            for (b, row) in first.chunks(self.rows[0]).enumerate() {
                let blocks = maxima[b * grid as usize * 2..][..grid as usize * 2].chunks(2);
                let best = blocks.map(|pair| (f32::from_bits(pair[0]), pair[1] as usize));
                let wins = |a: (f32, usize), b: (f32, usize)| b.0.is_nan() || b.0 > a.0 || (b.0 == a.0 && b.1 < a.1);
                let best = best.reduce(|a, b| if wins(a, b) { b } else { a });
                if let Some(broken) = self.broken.filter(|_| b == 0) {
                    let is_it = best.is_some_and(|(value, row)| value.is_nan() && row == broken);
                    anyhow::ensure!(is_it, "row {b}: largest {best:?}, expected the NaN of row {broken}");
                    continue;
                }
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let expected = (largest, row.iter().position(|&value| value == largest).expect("it is one of them"));
                anyhow::ensure!(best == Some(expected), "row {b}: largest {best:?}, expected {expected:?}");
            }
        }
        Ok(())
    }
}

/// The inputs of a case and what should come of them.
struct Problem {
    rows: Vec<usize>,
    packed: Vec<u16>,
    given: Vec<f32>,
    norm_weight: Vec<f32>,
    norm_bias: Vec<f32>,
    statistics: Vec<f32>,
    positions: Vec<i32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    expected: Vec<Vec<f64>>,
}

impl Problem {
    fn new(case: &Case, random: &mut Random) -> Problem {
        let (k, batch) = (case.k, case.batch);
        let rows = if case.gated { vec![case.rows[0]; 2] } else { case.rows.clone() };
        let weights: Vec<Matrix> = rows.iter().map(|&rows| Matrix::random(random, rows, k)).collect();
        let biases: Vec<Vec<f32>> = rows.iter().map(|&rows| random.floats(rows)).collect();
        let mut residual = random.floats(batch * rows[0]);
        if let Some(row) = case.broken {
            residual[row] = f32::NAN;
        }
        let norm_weight = random.floats(k);
        let norm_bias = random.floats(k);
        let (mut statistics, mut positions) = (vec![0.0], vec![0]);
        let given = match &case.combine {
            Some((heads, splits)) => {
                positions = (0..batch as i32).map(|b| [3, 11, -1, 6, 0, 40, 8, 2][b as usize]).collect();
                statistics = vec![f32::NAN; splits.max * batch * heads * 2];
                vec![f32::NAN; splits.max * batch * k]
            }
            None if case.norm != 0 => random.floats(batch * k).iter().map(|value| 3.0 * value + 0.5).collect(),
            None => random.rounded(batch * k),
        };
        let mut problem = Problem {
            packed: pack(&weights, case.gated),
            bias: pack_bias(&biases, case.gated),
            expected: Vec::new(),
            rows,
            given,
            norm_weight,
            norm_bias,
            statistics,
            positions,
            residual,
        };
        let x: Vec<Vec<f64>> = (0..batch).map(|b| problem.prepared(case, b, random)).collect();

        for output in 0..case.rows.len() {
            let mut expected = Vec::new();
            for (b, x) in x.iter().enumerate() {
                expected.extend((0..case.rows[output]).map(|row| {
                    let product = |weight: usize| {
                        let sum: f64 =
                            weights[weight].row(row).iter().zip(x).map(|(&weight, &x)| f64::from(weight) * x).sum();
                        sum + if case.bias { f64::from(biases[weight][row]) } else { 0.0 }
                    };
                    let mut y = activate(case.activation, product(output));
                    if case.gated {
                        y *= product(1);
                    }
                    if case.residual {
                        y += f64::from(problem.residual[b * case.rows[0] + row]);
                    }
                    y
                }));
            }
            problem.expected.push(expected);
        }
        problem
    }

    /// Row `b` of what the weights multiply, rounded as the kernel rounds it. Under combine it also makes up what the blocks left.
    fn prepared(&mut self, case: &Case, b: usize, random: &mut Random) -> Vec<f64> {
        let k = case.k;
        if let Some((heads, splits)) = &case.combine {
            let (heads, position) = (*heads, self.positions[b]);
            let seen = if splits.window > 0 { (position + 1).min(splits.window as i32) } else { position + 1 } as usize;
            let active = seen.div_ceil(splits.keys).min(splits.max);
            let head_dim = k / heads;
            let mut total = vec![0.0; heads];
            let mut x = vec![0.0; k];
            for split in 0..active {
                for head in 0..heads {
                    let at = (split * case.batch + b) * heads + head;
                    let (peak, sum) = (4.0 * random.value(), 1.5 + random.value());
                    self.statistics[2 * at] = peak;
                    self.statistics[2 * at + 1] = sum;
                    total[head] += f64::from(peak).exp2() * f64::from(sum);
                    for d in 0..head_dim {
                        let value = random.value();
                        self.given[at * head_dim + d] = value;
                        x[head * head_dim + d] += f64::from(peak).exp2() * f64::from(value);
                    }
                }
            }
            let mean = |(i, x): (usize, &f64)| if active > 0 { x / total[i / head_dim] } else { 0.0 };
            return x.iter().enumerate().map(mean).map(|x| f64::from(round(x as f32))).collect();
        }
        let x: Vec<f64> = self.given[b * k..][..k].iter().map(|&value| f64::from(value)).collect();
        if case.norm == 0 {
            return x;
        }
        let mean = if case.norm == 2 { x.iter().sum::<f64>() / k as f64 } else { 0.0 };
        let variance = x.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / k as f64;
        let scale = 1.0 / (variance + 1e-5).sqrt();
        let weight = |i: usize| if case.norm_weight { f64::from(self.norm_weight[i]) } else { 1.0 };
        let bias = |i: usize| if case.norm_bias { f64::from(self.norm_bias[i]) } else { 0.0 };
        // What goes through shared memory is two bfloat16: under rms_norm before the division, under layer_norm after all.
        let staged = |value: f64| {
            let kept = round(value as f32);
            f64::from(kept) + f64::from(round(value as f32 - kept))
        };
        let normed = |(i, value): (usize, &f64)| match case.norm {
            1 => staged(value * weight(i)) * scale,
            3 => staged(*value),
            _ => staged((value - mean) * scale * weight(i) + bias(i)),
        };
        x.iter().enumerate().map(normed).collect()
    }
}

pub fn check_all(cases: &[Case]) -> Result<()> {
    let sources: Vec<(String, String)> = cases.iter().map(|case| (case.source(), "kernel".into())).collect();
    fuse_tests::host_build::HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

#[test]
fn batches_and_odd_shapes() -> Result<()> {
    check_all(&[
        Case::new(8, &[1], 1),
        Case::new(50, &[37], 1),
        Case::new(33, &[16], 2),
        Case::new(576, &[40], 4),
        Case { warps: 8, depth: 1, ..Case::new(130, &[25], 4) },
        Case { depth: 3, grid: 5, ..Case::new(296, &[70], 8) },
        Case { warps: 2, depth: 4, ..Case::new(72, &[20], 1) },
        Case { out_type: Storage::BF16, ..Case::new(64, &[19], 2) },
    ])
}

/// Row tiles end anywhere in the ring: shares of one to ten pairs, whole or ragged, in rings that they do and do not fill, and rings that
/// reach over several tiles or beyond the last.
#[test]
fn rings() -> Result<()> {
    let shapes = [(640, 2), (300, 2), (128, 4), (100, 4), (160, 4), (40, 8), (8, 4)];
    let case = |(k, warps), depth| Case { warps, depth, ..Case::new(k, &[70], 2) };
    let mut cases: Vec<Case> =
        shapes.into_iter().flat_map(|shape| [1, 3, 4, 7].map(|depth| case(shape, depth))).collect();
    cases.extend([2, 6, 10].map(|depth| case((640, 2), depth)));
    cases.push(Case { norm: 1, grid: 5, ..case((300, 2), 4) });
    check_all(&cases)
}

/// Row tiles that are finished together: rings of whole ones, the last of which may be short.
#[test]
fn units() -> Result<()> {
    let case = |k, warps, unit, share| Case { warps, unit, depth: unit * share, ..Case::new(k, &[150], 2) };
    check_all(&[
        case(256, 4, 2, 2),
        case(256, 4, 4, 2),
        case(300, 4, 3, 3),
        Case { norm: 1, grid: 3, ..case(40, 4, 4, 1) },
        Case { gated: true, activation: 0, norm: 1, batch: 1, ..case(128, 4, 2, 1) },
        Case { argmax: true, norm: 1, batch: 4, ..case(90, 4, 2, 1) },
        Case { late: true, norm: 1, ..case(90, 4, 2, 1) },
        Case { ahead: true, bias: true, residual: true, ..case(256, 4, 2, 2) },
        Case { ahead: true, gated: true, bias: true, residual: true, norm: 1, ..case(128, 4, 2, 1) },
        Case { rows: vec![32, 8, 24], bias: true, ..case(64, 2, 2, 1) },
    ])
}

/// Two blocks add their halves of the columns to zeros, and a launch sets zeros for another.
#[test]
fn splits_and_zeros() -> Result<()> {
    let case = |k, batch| Case {
        split: 2,
        zeros: 1111,
        bias: true,
        residual: true,
        ahead: batch == 1,
        ..Case::new(k, &[75], batch)
    };
    check_all(&[
        case(256, 1),
        case(300, 2),
        Case { depth: 4, grid: 5, staged: true, ..case(1024, 4) },
        Case { staged: true, ..case(33, 8) },
        Case { combine: Some((4, Splits { max: 5, keys: 2, window: 0 })), ..case(96, 4) },
        Case { split: 1, norm: 1, ..case(70, 2) },
    ])
}

#[test]
fn stages_what_has_no_norm() -> Result<()> {
    let staged = |case| Case { staged: true, bias: true, residual: true, ..case };
    check_all(&[
        staged(Case::new(50, &[37], 1)),
        staged(Case { depth: 3, ..Case::new(136, &[37], 2) }),
        staged(Case { warps: 8, grid: 3, ..Case::new(296, &[70], 4) }),
        staged(Case { out_type: Storage::BF16, ..Case::new(33, &[20], 8) }),
    ])
}

#[test]
fn bias_residual_and_activations() -> Result<()> {
    let mut cases = vec![
        Case { bias: true, residual: true, ..Case::new(40, &[21], 2) },
        Case { bias: true, rows: vec![21, 9, 34], grid: 2, ..Case::new(40, &[21], 2) },
        Case { rows: vec![16, 17], ..Case::new(96, &[16], 1) },
    ];
    cases.extend((0..5).map(|activation| Case { activation, ..Case::new(24, &[18], 1) }));
    check_all(&cases)
}

#[test]
fn gated() -> Result<()> {
    check_all(&[
        Case { gated: true, activation: 0, out_type: Storage::BF16, norm: 1, ..Case::new(90, &[21], 1) },
        Case { gated: true, activation: 2, bias: true, ..Case::new(64, &[8], 4) },
        Case { gated: true, activation: 0, norm: 1, ..Case::new(128, &[45], 8) },
    ])
}

#[test]
fn norms() -> Result<()> {
    check_all(&[
        Case { norm: 1, ..Case::new(70, &[33], 1) },
        Case { norm: 1, norm_weight: false, bias: true, residual: true, ..Case::new(101, &[33], 2) },
        Case { norm: 1, rows: vec![32, 8, 8], ..Case::new(96, &[32], 8) },
        Case { norm: 2, norm_bias: true, ..Case::new(70, &[18], 1) },
        Case { norm: 2, norm_bias: true, warps: 4, ..Case::new(57, &[18], 4) },
        // Rows side by side, in halves and quarters of the warps.
        Case { norm: 1, warps: 8, ..Case::new(150, &[18], 8) },
        Case { norm: 1, warps: 8, ..Case::new(700, &[18], 4) },
        Case { norm: 2, norm_weight: false, ..Case::new(64, &[5], 2) },
        // An fp32 x as it is.
        Case { norm: 3, ..Case::new(70, &[33], 1) },
        Case { norm: 3, bias: true, rows: vec![18, 8], ..Case::new(101, &[18], 8) },
    ])
}

#[test]
fn combines_splits() -> Result<()> {
    let splits = |max, keys, window| Splits { max, keys, window };
    check_all(&[
        Case { combine: Some((3, splits(4, 2, 0))), residual: true, ..Case::new(36, &[20], 1) },
        Case { combine: Some((5, splits(3, 4, 0))), residual: true, ..Case::new(60, &[20], 8) },
        Case { combine: Some((2, splits(8, 1, 5))), bias: true, ..Case::new(40, &[33], 4) },
        // Heads of 8 and of 24 go four columns at a time, others one by one.
        Case { combine: Some((3, splits(5, 2, 0))), ..Case::new(24, &[18], 4) },
        Case { combine: Some((4, splits(6, 3, 0))), residual: true, ..Case::new(96, &[18], 8) },
    ])
}

/// Positions 0 to 40 over one to nine splits, of which four go together: none, one, a part of four, four, and beyond.
#[test]
fn combines_any_number_of_splits() -> Result<()> {
    let case = |max| {
        let splits = Splits { max, keys: 4, window: 0 };
        Case { combine: Some((2, splits)), ..Case::new(if max % 2 == 0 { 32 } else { 22 }, &[9], 8) }
    };
    check_all(&(1..=9).map(case).collect::<Vec<Case>>())
}

#[test]
fn leaves_maxima() -> Result<()> {
    check_all(&[
        Case { argmax: true, norm: 1, ..Case::new(40, &[203], 1) },
        Case { argmax: true, norm: 1, grid: 5, ..Case::new(40, &[100], 2) },
        Case { argmax: true, grid: 4, ..Case::new(40, &[90], 8) },
    ])
}

/// Wherever it lies in its tile, its warp and its block.
#[test]
fn the_largest_is_a_nan_where_there_is_one() -> Result<()> {
    let broken = |row| Case { argmax: true, residual: true, broken: Some(row), ..Case::new(40, &[100], 2) };
    check_all(&[0, 1, 15, 16, 40, 63, 98, 99].map(broken))
}

/// What a warp and a block of a matmul compute.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub row_tiles: usize,
    pub columns: usize,
    pub row_warps: usize,
    pub split: usize,
}

fn matmul_source(case: &Case, block: Block) -> String {
    let Block { row_tiles, columns, row_warps, split } = block;
    let (name, activation) = ("kernel".into(), case.activation);
    Matmul {
        name,
        tiles: case.tiles(),
        row_tiles,
        columns,
        row_warps,
        split,
        paired: false,
        activation,
        experts: 0,
        top_k: 0,
        by_pair: false,
    }
    .render()
    .expect("the template renders")
}

/// One matmul on random values.
pub fn check_matmul(case: &Case, tokens: usize, block: Block, mutation: Option<Mutation>) -> Result<()> {
    let kernel = build(matmul_source(case, block), mutation)?;
    let case = Case { batch: tokens, ..case.clone() };
    let problem = Problem::new(&case, &mut Random(7));
    let weights = HostBuffer::input(&problem.packed);
    let x = HostBuffer::input(&to_bf16(&problem.given));
    let bias = HostBuffer::input(&problem.bias);
    let residual = HostBuffer::input(&problem.residual);
    let size = if case.out_type == Storage::F32 { 4 } else { 2 };
    let outs: Vec<HostBuffer> = case.rows.iter().map(|&rows| HostBuffer::output::<u8>(tokens * rows * size)).collect();
    let out = |index: usize| outs.get(index).map_or(0, HostBuffer::address);
    let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
    let grid_x = row_tiles(&problem.rows, case.gated).div_ceil(block.row_tiles * block.row_warps);
    kernel.launch(
        [grid_x as u32, tokens.div_ceil(8 * block.columns) as u32, 1],
        (32 * block.row_warps * block.split) as u32,
        0,
        &[
            weights.address(),
            x.address(),
            given(case.bias, &bias),
            given(case.residual, &residual),
            out(0),
            out(1),
            out(2),
            tokens as u64,
        ],
    )?;
    for (index, buffer) in outs.iter().enumerate() {
        let (got, bound) = match case.out_type {
            Storage::F32 => (buffer.written::<f32>()?, Bound::Exact),
            Storage::BF16 => (from_bf16(&buffer.written::<u16>()?), Bound::Rounded),
        };
        compare(&format!("output {index}"), &problem.expected[index], &got, bound)?;
    }
    Ok(())
}

#[test]
fn matmul() -> Result<()> {
    let block = |row_tiles, columns, row_warps, split| Block { row_tiles, columns, row_warps, split };
    let gated = Case { gated: true, activation: 0, out_type: Storage::BF16, ..Case::new(64, &[27], 1) };
    let packed = Case { bias: true, rows: vec![20, 7, 33], ..Case::new(33, &[20], 1) };
    let full = Case { bias: true, residual: true, ..Case::new(96, &[100], 1) };
    let cases = [
        (Case::new(50, &[37], 1), 11, block(2, 2, 2, 1)),
        (full.clone(), 17, block(1, 4, 4, 1)),
        (packed.clone(), 8, block(2, 1, 2, 1)),
        (gated.clone(), 9, block(2, 1, 2, 1)),
        (Case { bias: true, out_type: Storage::F32, ..gated.clone() }, 3, block(1, 2, 2, 1)),
        // Pairs shared among warps: evenly, unevenly, and with warps that have none.
        (full.clone(), 17, block(1, 2, 1, 2)),
        (Case { k: 300, ..full }, 20, block(2, 2, 2, 2)),
        (packed, 8, block(1, 1, 1, 8)),
        (Case { bias: true, k: 90, ..gated.clone() }, 9, block(2, 1, 2, 4)),
        (Case { k: 520, ..gated }, 33, block(2, 2, 1, 8)),
        (Case { activation: 0, ..Case::new(260, &[37], 1) }, 5, block(1, 1, 1, 8)),
    ];
    let sources: Vec<(String, String)> =
        cases.iter().map(|(case, _, block)| (matmul_source(case, *block), "kernel".into())).collect();
    fuse_tests::host_build::HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|(case, tokens, block)| {
        check_matmul(case, *tokens, *block, None).with_context(|| format!("{case:?}, {tokens} rows, {block:?}"))
    })
}
