//! `matvec.cu` and `matmul.cu` against sums in f64.

use anyhow::{Context, Result};
use askama::Template;
use fuse_templates::{Float, Matmul, Matvec, Splits, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

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
    pub chunk: usize,
    /// 0 none, 1 rms_norm, 2 layer_norm.
    pub norm: usize,
    pub norm_weight: bool,
    pub norm_bias: bool,
    /// Heads and the splits of the attention whose parts x is.
    pub combine: Option<(usize, Splits)>,
    pub bias: bool,
    pub residual: bool,
    pub activation: usize,
    pub argmax: bool,
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
            warps: 4,
            chunk: 2,
            norm: 0,
            norm_weight: true,
            norm_bias: false,
            combine: None,
            bias: false,
            residual: false,
            activation: 5,
            argmax: false,
            out_type: Storage::F32,
            grid: 2,
        }
    }

    fn tiles(&self) -> Tiles {
        let mut rows = [0; 3];
        rows[..self.rows.len()].copy_from_slice(&self.rows);
        Tiles { k: self.k, outputs: self.rows.len(), rows, gated: self.gated, out_type: self.out_type }
    }

    pub fn source(&self) -> String {
        let (heads, splits) = self.combine.clone().unwrap_or((1, Splits::default()));
        Matvec {
            name: "kernel".into(),
            tiles: self.tiles(),
            splits,
            batch: self.batch,
            warps: self.warps,
            chunk: self.chunk,
            norm: self.norm,
            eps: Float(1e-5),
            combine: self.combine.is_some(),
            heads,
            head_dim: self.k / heads,
            activation: self.activation,
            argmax: self.argmax,
        }
        .render()
        .expect("the template renders")
    }

    /// Runs it on random values and compares.
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let mut random = Random(self.k as u64 * 1000 + self.batch as u64);
        let problem = Problem::new(self, &mut random);
        let (k, batch) = (self.k, self.batch);

        let staged = self.norm != 0 || self.combine.is_some();
        let positions = HostBuffer::input(&problem.positions);
        let statistics = HostBuffer::input(&problem.statistics);
        let x = if staged { HostBuffer::input(&problem.given) } else { HostBuffer::input(&to_bf16(&problem.given)) };
        let weights = HostBuffer::input(&problem.packed);
        let norm_weight = HostBuffer::input(&problem.norm_weight);
        let norm_bias = HostBuffer::input(&problem.norm_bias);
        let bias = HostBuffer::input(&problem.bias);
        let residual = HostBuffer::input(&problem.residual);
        let size = if self.out_type == Storage::F32 { 4 } else { 2 };
        let outs: Vec<HostBuffer> =
            self.rows.iter().map(|&rows| HostBuffer::output::<u8>(batch * rows * size)).collect();
        let grid = self.grid.min(row_tiles(&problem.rows, self.gated) as u32);
        let maxima = HostBuffer::output::<u32>(batch * grid as usize * 2);
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        let out = |index: usize| outs.get(index).map_or(0, HostBuffer::address);
        let shared = if staged { batch * (k.div_ceil(32) * 32 + 32) * 2 } else { 0 };
        kernel.launch(
            [grid, 1, 1],
            32 * self.warps as u32,
            shared as u32,
            &[
                weights.address(),
                x.address(),
                given(self.norm != 0 && self.norm_weight, &norm_weight),
                given(self.norm_bias, &norm_bias),
                given(self.bias, &bias),
                given(self.residual, &residual),
                out(0),
                out(1),
                out(2),
                given(self.combine.is_some(), &statistics),
                given(self.combine.is_some(), &positions),
                given(self.argmax, &maxima),
            ],
        )?;

        let bound = if staged || self.out_type == Storage::BF16 { Bound::Rounded } else { Bound::Exact };
        let mut first = Vec::new();
        for (index, buffer) in outs.iter().enumerate() {
            let got = match self.out_type {
                Storage::F32 => buffer.written::<f32>()?,
                Storage::BF16 => from_bf16(&buffer.written::<u16>()?),
            };
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
                let best = best.reduce(|a, b| if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a });
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
        let residual = random.floats(batch * rows[0]);
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
        // What goes through shared memory is rounded: under rms_norm before the division, under layer_norm after all.
        let staged = |value: f64| f64::from(round(value as f32));
        let normed = |(i, value): (usize, &f64)| match case.norm {
            1 => staged(value * weight(i)) * scale,
            _ => staged((value - mean) * scale * weight(i) + bias(i)),
        };
        x.iter().enumerate().map(normed).collect()
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
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
        Case { warps: 8, chunk: 1, ..Case::new(130, &[25], 4) },
        Case { warps: 4, chunk: 3, grid: 5, ..Case::new(296, &[70], 8) },
        Case { warps: 1, chunk: 4, ..Case::new(72, &[20], 1) },
        Case { out_type: Storage::BF16, ..Case::new(64, &[19], 2) },
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
        Case { norm: 2, norm_bias: true, warps: 2, ..Case::new(57, &[18], 4) },
        Case { norm: 2, norm_weight: false, ..Case::new(64, &[5], 2) },
    ])
}

#[test]
fn combines_splits() -> Result<()> {
    let splits = |max, keys, window| Splits { max, keys, window };
    check_all(&[
        Case { combine: Some((3, splits(4, 2, 0))), residual: true, ..Case::new(36, &[20], 1) },
        Case { combine: Some((5, splits(3, 4, 0))), residual: true, ..Case::new(60, &[20], 8) },
        Case { combine: Some((2, splits(8, 1, 5))), bias: true, ..Case::new(40, &[33], 4) },
    ])
}

#[test]
fn leaves_maxima() -> Result<()> {
    check_all(&[
        Case { argmax: true, norm: 1, ..Case::new(40, &[203], 1) },
        Case { argmax: true, norm: 1, grid: 5, ..Case::new(40, &[100], 2) },
        Case { argmax: true, grid: 4, ..Case::new(40, &[90], 8) },
    ])
}

/// One matmul on random values.
pub fn check_matmul(
    case: &Case,
    tokens: usize,
    row_tiles_a_warp: usize,
    columns: usize,
    mutation: Option<Mutation>,
) -> Result<()> {
    let source = Matmul {
        name: "kernel".into(),
        tiles: case.tiles(),
        row_tiles: row_tiles_a_warp,
        columns,
        warps: case.warps,
        activation: case.activation,
    };
    let kernel = build(source.render()?, mutation)?;
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
    let grid_x = row_tiles(&problem.rows, case.gated).div_ceil(row_tiles_a_warp * case.warps);
    kernel.launch(
        [grid_x as u32, tokens.div_ceil(8 * columns) as u32, 1],
        32 * case.warps as u32,
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
    check_matmul(&Case { warps: 2, ..Case::new(50, &[37], 1) }, 11, 2, 2, None)?;
    check_matmul(&Case { warps: 4, bias: true, residual: true, ..Case::new(96, &[100], 1) }, 17, 1, 4, None)?;
    check_matmul(&Case { warps: 2, bias: true, rows: vec![20, 7, 33], ..Case::new(33, &[20], 1) }, 8, 2, 1, None)?;
    let gated = Case { gated: true, activation: 0, warps: 2, out_type: Storage::BF16, ..Case::new(64, &[27], 1) };
    check_matmul(&gated, 9, 2, 1, None)?;
    check_matmul(&Case { bias: true, out_type: Storage::F32, ..gated }, 3, 1, 2, None)
}
