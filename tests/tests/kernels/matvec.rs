//! `matvec.cu` against sums in f64.

use anyhow::{Result, ensure};
use fuse_kernels::{Activation, Combine, Format, Matvec, NormKind, Splits, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::matmul_wgmma::untiled;
use crate::router::Router;
use crate::support::*;

/// One matvec, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Matvec,
    /// The norm has weights, and biases.
    pub norm_weight: bool,
    pub norm_bias: bool,
    pub bias: bool,
    /// Floats that the launch sets to zero.
    pub zeros: usize,
    /// A row of the result that the residual makes NaN, for the first row of x.
    pub broken: Option<usize>,
}

/// A product with nothing fused, by two blocks where there are row tiles for them.
pub fn plain(k: usize, rows: &[usize], batch: usize) -> Matvec {
    let tiles = tiles(k, rows);
    let blocks = tiles.count().min(2);
    Matvec { warps: batch.max(4), depth: 2, blocks, ..Matvec::plain(tiles, batch) }
}

/// A product with a gate and with another weight.
pub fn gated(activation: Activation, kernel: Matvec) -> Matvec {
    let tiles = Tiles { gated: true, ..kernel.tiles };
    Matvec { activation: Some(activation), blocks: tiles.count().min(2), tiles, ..kernel }
}

/// The same of a norm of x.
pub fn normed(kind: NormKind, kernel: Matvec) -> Matvec {
    Matvec { norm: Some((kind, 1e-5)), staged: true, ..kernel }
}

pub fn rms(kernel: Matvec) -> Matvec {
    normed(NormKind::Rms, kernel)
}

/// The same in half precision, where an earlier norm saw nearly these rows.
pub fn alike(format: Format, kernel: Matvec) -> Matvec {
    let kernel = rms(kernel);
    Matvec { alike: true, tiles: Tiles { weights: format, ..kernel.tiles }, ..kernel }
}

/// What that norm left: for each row a power of two within 64 times its inverse root mean square, either way.
pub fn rms_before(rows: &[f32], batch: usize) -> Vec<f32> {
    let inverse = |row: &[f32]| inverse_rms(row, 0.0) as f32;
    let near = |(b, row): (usize, &[f32])| inverse(row).log2().floor().exp2() * [1.0, 64.0, 1.0 / 64.0, 0.25][b % 4];
    rows.chunks(rows.len() / batch).enumerate().map(near).collect()
}

fn inverse_rms(row: &[f32], eps: f32) -> f64 {
    let square = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / row.len() as f64;
    1.0 / (square + f64::from(eps)).sqrt()
}

/// What x is in, where it is not computed: half precision beyond eight rows.
fn operands(kernel: &Matvec) -> Format {
    if kernel.batch > 8 { Format::F16 } else { kernel.tiles.weights }
}

/// The same of an fp32 x as it is.
fn paired(kernel: Matvec) -> Matvec {
    Matvec { paired: true, staged: true, ..kernel }
}

/// The same of the parts of a split attention.
pub fn combining(heads: usize, splits: Splits, kernel: Matvec) -> Matvec {
    let head_dim = kernel.tiles.k / heads;
    Matvec { combine: Some(Combine { heads, head_dim, splits }), staged: true, ..kernel }
}

/// The same with results in bfloat16.
fn stored(kernel: Matvec) -> Matvec {
    Matvec { tiles: Tiles { out: Storage::BF16, ..kernel.tiles }, ..kernel }
}

impl Case {
    pub fn of(kernel: Matvec) -> Case {
        Case { kernel, norm_weight: true, norm_bias: false, bias: false, zeros: 0, broken: None }
    }

    /// Runs it on random values and compares.
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let Matvec { tiles, batch, blocks, split, norm, combine, residual, argmax, .. } = &self.kernel;
        let (k, batch, blocks, storage) = (tiles.k, *batch, *blocks, tiles.out);
        let mut random = Random(k as u64 * 1000 + batch as u64);
        let mut problem = Problem::new(self, &mut random);

        let computed = norm.is_some() || self.kernel.paired;
        let positions = HostBuffer::input(&problem.positions);
        let statistics = HostBuffer::input(&problem.statistics);
        let x = if computed {
            HostBuffer::input(&problem.given)
        } else if combine.is_some() {
            HostBuffer::input(&to_f16(&problem.given))
        } else {
            HostBuffer::input(&to_operands(operands(&self.kernel), &problem.given))
        };
        let weights = HostBuffer::input(&problem.packed);
        let norm_weight = HostBuffer::input(&problem.norm_weight);
        let norm_bias = HostBuffer::input(&problem.norm_bias);
        let bias = HostBuffer::input(&problem.bias);
        let added = HostBuffer::input(&problem.residual);
        // Blocks add to zeros.
        let empty = |rows: usize| match split {
            1 => room(batch * rows, storage),
            _ => HostBuffer::inout(&vec![0u8; batch * rows * storage.bytes()]),
        };
        let outs: Vec<HostBuffer> = tiles.rows.iter().map(|&rows| empty(rows)).collect();
        let zeros = HostBuffer::output::<f32>(self.zeros);
        let maxima = HostBuffer::output::<u32>(batch * blocks * 2);
        let router = Router::new(self, &mut random);
        let (before, rms) = (HostBuffer::input(&problem.rms_before), HostBuffer::output::<f32>(batch));
        let mut arguments = vec![
            ("weights", weights.address()),
            ("x", x.address()),
            ("norm_weight", given(norm.is_some() && self.norm_weight, &norm_weight)),
            ("norm_bias", given(self.norm_bias, &norm_bias)),
            ("bias", given(self.bias, &bias)),
            ("residual", given(*residual, &added)),
            ("statistics", given(combine.is_some(), &statistics)),
            ("positions", given(combine.is_some(), &positions)),
            ("maxima", given(*argmax, &maxima)),
            ("zeros", given(self.zeros > 0, &zeros)),
            ("zero_count", self.zeros as u64),
        ];
        arguments.extend(["out0", "out1", "out2"].into_iter().zip(outs.iter().map(HostBuffer::address)));
        arguments.extend(router.iter().flat_map(|router| router.arguments(self)));
        arguments.extend(self.kernel.alike.then(|| ("rms_before", before.address())));
        arguments.extend(self.kernel.leaves_rms().then(|| ("rms", rms.address())));
        kernel.launch(batch, &arguments)?;
        if let Some((_, eps)) = norm.filter(|_| self.kernel.leaves_rms()) {
            for (row, left) in problem.given.chunks(k).zip(rms.written::<f32>()?) {
                let inverse = inverse_rms(row, eps) as f32;
                let near = left.log2().fract() == 0.0 && left <= inverse * 1.001 && inverse < left * 2.001;
                ensure!(near, "left {left} for an inverse root mean square of {inverse}");
            }
        }
        if let Some(router) = router {
            router.check(self, &problem.expected[0])?;
        }
        if self.zeros > 0 {
            let left = zeros.written::<f32>()?.iter().filter(|&&value| value != 0.0).count();
            ensure!(left == 0, "{left} of {} floats are not zero", self.zeros);
        }

        let bound =
            if computed || combine.is_some() || storage != Storage::F32 { Bound::Rounded } else { Bound::Exact };
        let mut first = Vec::new();
        for (index, buffer) in outs.iter().enumerate() {
            let mut got = match storage {
                Storage::Tiled => untiled(&buffer.written::<u16>()?, batch),
                _ => written(buffer, storage)?,
            };
            if let Some(row) = self.broken {
                ensure!(got[row].is_nan(), "row {row} is {}, not NaN", got[row]);
                (problem.expected[index][row], got[row]) = (0.0, 0.0);
            }
            compare(&format!("output {index}"), &problem.expected[index], &got, bound)?;
            if index == 0 {
                first = got;
            }
        }
        if *argmax {
            let maxima = maxima.written::<u32>()?;
            for (b, row) in first.chunks(tiles.rows[0]).enumerate() {
                let of_blocks = maxima[b * blocks * 2..][..blocks * 2].chunks(2);
                let best = of_blocks.map(|pair| (f32::from_bits(pair[0]), pair[1] as usize));
                let wins = |a: (f32, usize), b: (f32, usize)| b.0.is_nan() || b.0 > a.0 || (b.0 == a.0 && b.1 < a.1);
                let best = best.reduce(|a, b| if wins(a, b) { b } else { a });
                if let Some(broken) = self.broken.filter(|_| b == 0) {
                    let is_it = best.is_some_and(|(value, row)| value.is_nan() && row == broken);
                    ensure!(is_it, "row {b}: largest {best:?}, expected the NaN of row {broken}");
                    continue;
                }
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let expected = (largest, row.iter().position(|&value| value == largest).expect("it is one of them"));
                ensure!(best == Some(expected), "row {b}: largest {best:?}, expected {expected:?}");
            }
        }
        Ok(())
    }
}

/// The inputs of a case and what should come of them.
pub struct Problem {
    pub packed: Vec<u16>,
    pub given: Vec<f32>,
    rms_before: Vec<f32>,
    norm_weight: Vec<f32>,
    norm_bias: Vec<f32>,
    statistics: Vec<f32>,
    positions: Vec<i32>,
    pub bias: Vec<f32>,
    pub residual: Vec<f32>,
    pub expected: Vec<Vec<f64>>,
}

impl Problem {
    pub fn new(case: &Case, random: &mut Random) -> Problem {
        let Matvec { tiles, batch, norm, paired, combine, .. } = &case.kernel;
        let (k, batch) = (tiles.k, *batch);
        let rows = if tiles.gated { vec![tiles.rows[0]; 2] } else { tiles.rows.clone() };
        let weights: Vec<Matrix> = rows.iter().map(|&rows| Matrix::of(tiles.weights, random, rows, k)).collect();
        let biases: Vec<Vec<f32>> = rows.iter().map(|&rows| random.floats(rows)).collect();
        let mut residual = random.floats(batch * rows[0]);
        if let Some(row) = case.broken {
            residual[row] = f32::NAN;
        }
        let norm_weight = random.floats(k);
        let norm_bias = random.floats(k);
        let (mut statistics, mut positions) = (vec![0.0], vec![0]);
        let given = match combine {
            Some(Combine { heads, splits, .. }) => {
                positions = (0..batch as i32).map(|b| [3, 11, -1, 6, 0, 40, 8, 2][b as usize]).collect();
                statistics = vec![f32::NAN; splits.left() * batch * heads * 2];
                vec![f32::NAN; splits.left() * batch * k]
            }
            None if norm.is_some() || *paired => {
                // What half precision has no room for as it is.
                let size = |i: usize| if case.kernel.alike { [3e-9, 4e6][i / k % 2] } else { 1.0 };
                let given = |(i, value): (usize, &f32)| (3.0 * value + 0.5) * size(i);
                random.floats(batch * k).iter().enumerate().map(given).collect()
            }
            None => random.rounded(batch * k),
        };
        let mut problem = Problem {
            rms_before: rms_before(&given, batch),
            packed: pack(&weights, tiles.gated),
            bias: pack_bias(&biases, tiles.gated),
            expected: Vec::new(),
            given,
            norm_weight,
            norm_bias,
            statistics,
            positions,
            residual,
        };
        let x: Vec<Vec<f64>> = (0..batch).map(|b| problem.prepared(case, b, random)).collect();

        for (output, &rows) in tiles.rows.iter().enumerate() {
            let mut expected = Vec::new();
            for (b, x) in x.iter().enumerate() {
                expected.extend((0..rows).map(|row| {
                    let product = |weight: usize| {
                        let sum: f64 =
                            weights[weight].row(row).iter().zip(x).map(|(&weight, &x)| f64::from(weight) * x).sum();
                        sum + if case.bias { f64::from(biases[weight][row]) } else { 0.0 }
                    };
                    let mut y = activate(case.kernel.activation, product(output));
                    if tiles.gated {
                        y *= product(1);
                    }
                    if case.kernel.residual {
                        y += f64::from(problem.residual[b * rows + row]);
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
        let Matvec { tiles: Tiles { weights, k, .. }, batch, norm, paired, combine, .. } = &case.kernel;
        let (k, weights) = (*k, *weights);
        if let &Some(Combine { heads, head_dim, splits }) = combine {
            let position = self.positions[b];
            let seen = if splits.window > 0 { (position + 1).min(splits.window as i32) } else { position + 1 } as usize;
            let active = seen.div_ceil(splits.keys).min(splits.max).div_ceil(splits.merged);
            let mut total = vec![0.0; heads];
            let mut x = vec![0.0; k];
            for split in 0..active {
                for head in 0..heads {
                    let at = (split * batch + b) * heads + head;
                    let (peak, sum) = (4.0 * random.value(), 1.5 + random.value());
                    self.statistics[2 * at] = peak;
                    self.statistics[2 * at + 1] = sum;
                    let weight = f64::from(peak).exp2() * f64::from(sum);
                    total[head] += weight;
                    for d in 0..head_dim {
                        let value = round_operand(Format::F16, random.value().into());
                        self.given[at * head_dim + d] = value as f32;
                        x[head * head_dim + d] += weight * value;
                    }
                }
            }
            let mean = |(i, x): (usize, &f64)| if active > 0 { x / total[i / head_dim] } else { 0.0 };
            return x.iter().enumerate().map(mean).map(|x| round_operand(weights, x)).collect();
        }
        let x: Vec<f64> = self.given[b * k..][..k].iter().map(|&value| f64::from(value)).collect();
        // A hi/lo split goes through shared memory: under rms_norm before the division, under layer_norm after all. A half is rounded after all.
        let staged = |value: f64| {
            if weights != Format::BF16 {
                return round_operand(weights, value);
            }
            let kept = round(value as f32);
            f64::from(kept) + f64::from(round(value as f32 - kept))
        };
        let Some((kind, eps)) = *norm else {
            return if *paired { x.into_iter().map(staged).collect() } else { x };
        };
        let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / k as f64 } else { 0.0 };
        let variance = x.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / k as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        let weight = |i: usize| if case.norm_weight { f64::from(self.norm_weight[i]) } else { 1.0 };
        let bias = |i: usize| if case.norm_bias { f64::from(self.norm_bias[i]) } else { 0.0 };
        let normed = |(i, value): (usize, &f64)| match kind {
            NormKind::Rms if weights == Format::BF16 => staged(value * weight(i)) * scale,
            NormKind::Rms if case.kernel.alike => {
                let range = f64::from(self.rms_before[b]);
                staged(value * weight(i) * range) * scale / range
            }
            NormKind::Rms => staged(value * weight(i) * scale),
            NormKind::Layer => staged((value - mean) * scale * weight(i) + bias(i)),
        };
        x.iter().enumerate().map(normed).collect()
    }
}

pub fn check_all(cases: &[Case]) -> Result<()> {
    check_each(cases, |case| &case.kernel, |case| case.check(None))
}

#[test]
fn batches_and_odd_shapes() -> Result<()> {
    check_all(&[
        Case::of(plain(8, &[1], 1)),
        Case::of(plain(50, &[37], 1)),
        Case::of(plain(33, &[16], 2)),
        Case::of(plain(576, &[40], 4)),
        Case::of(Matvec { warps: 8, depth: 1, ..plain(130, &[25], 4) }),
        Case::of(Matvec { depth: 3, blocks: 5, ..plain(296, &[70], 8) }),
        Case::of(Matvec { warps: 2, depth: 4, ..plain(72, &[20], 1) }),
        Case::of(stored(plain(64, &[19], 2))),
    ])
}

/// Groups of eight rows share the weights, in half precision whatever these are.
#[test]
fn many_rows() -> Result<()> {
    let of = |weights, warps, kernel: Matvec| {
        let tiles = Tiles { weights, ..kernel.tiles };
        Case { bias: true, ..Case::of(Matvec { warps, staged: true, tiles, ..kernel }) }
    };
    let tiled = |case: Case| {
        let tiles = Tiles { out: Storage::Tiled, ..case.kernel.tiles };
        Case { kernel: Matvec { tiles, ..case.kernel }, ..case }
    };
    check_all(&[
        of(Format::BF16, 8, plain(64, &[37, 5, 20], 16)),
        of(Format::BF16, 16, Matvec { residual: true, ..plain(192, &[40], 32) }),
        of(Format::F16, 8, Matvec { depth: 3, blocks: 3, ..plain(320, &[100], 32) }),
        of(Format::F16, 16, stored(plain(64, &[19], 16))),
        tiled(of(Format::BF16, 8, gated(Activation::Silu, plain(64, &[64], 16)))),
        tiled(of(Format::F16, 8, gated(Activation::GeluTanh, plain(128, &[128], 32)))),
    ])
}

/// Row tiles end anywhere in the ring: shares of one to ten pairs, whole or ragged, in rings that they do and do not fill, and rings that
/// reach over several tiles or beyond the last.
#[test]
fn rings() -> Result<()> {
    let shapes = [(640, 2), (300, 2), (128, 4), (100, 4), (160, 4), (40, 8), (8, 4)];
    let kernel = |(k, warps), depth| Matvec { warps, depth, ..plain(k, &[70], 2) };
    let mut kernels: Vec<Matvec> =
        shapes.into_iter().flat_map(|shape| [1, 3, 4, 7].map(|depth| kernel(shape, depth))).collect();
    kernels.extend([2, 6, 10].map(|depth| kernel((640, 2), depth)));
    kernels.push(rms(Matvec { blocks: 5, ..kernel((300, 2), 4) }));
    check_all(&kernels.into_iter().map(Case::of).collect::<Vec<Case>>())
}

/// Row tiles that are finished together: rings of whole ones, the last of which may be short.
#[test]
fn units() -> Result<()> {
    let unit = |unit, share, kernel| Matvec { unit, depth: unit * share, ..kernel };
    let ahead = |kernel| Matvec { ahead: true, residual: true, ..kernel };
    check_all(&[
        Case::of(unit(2, 2, plain(256, &[150], 2))),
        Case::of(unit(4, 2, plain(256, &[150], 2))),
        Case::of(unit(3, 3, plain(300, &[150], 2))),
        Case::of(unit(4, 1, rms(Matvec { blocks: 3, ..plain(40, &[150], 2) }))),
        Case::of(unit(2, 1, gated(Activation::Silu, rms(Matvec { warps: 4, ..plain(128, &[150], 1) })))),
        Case::of(unit(2, 1, rms(Matvec { argmax: true, ..plain(90, &[150], 4) }))),
        Case::of(unit(2, 1, rms(Matvec { late: true, ..plain(90, &[150], 2) }))),
        Case { bias: true, ..Case::of(unit(2, 2, ahead(plain(256, &[150], 2)))) },
        Case { bias: true, ..Case::of(unit(2, 1, ahead(gated(Activation::Silu, rms(plain(128, &[150], 2)))))) },
        Case { bias: true, ..Case::of(unit(2, 1, Matvec { warps: 2, ..plain(64, &[32, 8, 24], 2) })) },
    ])
}

/// Two blocks add their halves of the columns to zeros, and a launch sets zeros for another.
#[test]
fn splits_and_zeros() -> Result<()> {
    let kernel = |k, batch| Matvec { residual: true, ahead: batch == 1, ..plain(k, &[75], batch) };
    let split = |kernel: Matvec| Matvec { split: 2, blocks: 2 * kernel.blocks, ..kernel };
    let staged = |kernel| Matvec { staged: true, ..kernel };
    let case = |kernel| Case { zeros: 1111, bias: true, ..Case::of(kernel) };
    let splits = Splits { max: 5, keys: 2, window: 0, merged: 1 };
    check_all(&[
        case(split(kernel(256, 1))),
        case(split(kernel(300, 2))),
        case(split(staged(Matvec { depth: 4, blocks: 5, ..kernel(1024, 4) }))),
        case(split(staged(kernel(33, 8)))),
        case(split(combining(4, splits, kernel(96, 4)))),
        case(rms(kernel(70, 2))),
    ])
}

#[test]
fn stages_what_has_no_norm() -> Result<()> {
    let staged = |kernel| Case { bias: true, ..Case::of(Matvec { staged: true, residual: true, ..kernel }) };
    check_all(&[
        staged(plain(50, &[37], 1)),
        staged(Matvec { depth: 3, ..plain(136, &[37], 2) }),
        staged(Matvec { warps: 8, blocks: 3, ..plain(296, &[70], 4) }),
        staged(stored(plain(33, &[20], 8))),
    ])
}

#[test]
fn bias_residual_and_activations() -> Result<()> {
    let mut cases = vec![
        Case { bias: true, ..Case::of(Matvec { residual: true, ..plain(40, &[21], 2) }) },
        Case { bias: true, ..Case::of(plain(40, &[21, 9, 34], 2)) },
        Case::of(plain(96, &[16, 17], 1)),
    ];
    cases
        .extend(Activation::ALL.map(|function| Case::of(Matvec { activation: Some(function), ..plain(24, &[18], 1) })));
    check_all(&cases)
}

#[test]
fn gates() -> Result<()> {
    check_all(&[
        Case::of(stored(gated(Activation::Silu, rms(plain(90, &[21], 1))))),
        Case { bias: true, ..Case::of(gated(Activation::GeluTanh, plain(64, &[8], 4))) },
        Case::of(gated(Activation::Silu, rms(plain(128, &[45], 8)))),
    ])
}

#[test]
fn norms() -> Result<()> {
    let layer = |kernel| normed(NormKind::Layer, kernel);
    let with_residual = Matvec { residual: true, ..rms(plain(101, &[33], 2)) };
    check_all(&[
        Case::of(rms(plain(70, &[33], 1))),
        Case { norm_weight: false, bias: true, ..Case::of(with_residual) },
        Case::of(rms(plain(96, &[32, 8, 8], 8))),
        Case { norm_bias: true, ..Case::of(layer(plain(70, &[18], 1))) },
        Case { norm_bias: true, ..Case::of(layer(plain(57, &[18], 4))) },
        // Rows side by side, in halves and quarters of the warps.
        Case::of(rms(Matvec { warps: 8, ..plain(150, &[18], 8) })),
        Case::of(rms(Matvec { warps: 8, ..plain(700, &[18], 4) })),
        Case { norm_weight: false, ..Case::of(layer(plain(64, &[5], 2))) },
        // In half precision, where an earlier norm saw nearly these rows.
        Case::of(alike(Format::F16, plain(70, &[33], 1))),
        Case { norm_weight: false, ..Case::of(alike(Format::F16, Matvec { warps: 8, ..plain(150, &[18], 8) })) },
        Case::of(alike(Format::F16, Matvec { warps: 8, ..plain(700, &[18], 4) })),
        // An fp32 x as it is.
        Case::of(paired(plain(70, &[33], 1))),
        Case { bias: true, ..Case::of(paired(plain(101, &[18, 8], 8))) },
    ])
}

#[test]
fn combines_splits() -> Result<()> {
    let splits = |max, keys, window| Splits { max, keys, window, merged: 1 };
    let with_residual = |kernel| Case::of(Matvec { residual: true, ..kernel });
    check_all(&[
        with_residual(combining(3, splits(4, 2, 0), plain(36, &[20], 1))),
        with_residual(combining(5, splits(3, 4, 0), plain(60, &[20], 8))),
        Case { bias: true, ..Case::of(combining(2, splits(8, 1, 5), plain(40, &[33], 4))) },
        // Heads of 8 and of 24 go four columns at a time, others one by one.
        Case::of(combining(3, splits(5, 2, 0), plain(24, &[18], 4))),
        with_residual(combining(4, splits(6, 3, 0), plain(96, &[18], 8))),
        with_residual(combining(4, Splits { merged: 2, ..splits(6, 3, 0) }, plain(96, &[18], 4))),
    ])
}

/// Positions 0 to 40 over one to nine splits, of which four go together: none, one, a part of four, four, and beyond.
#[test]
fn combines_any_number_of_splits() -> Result<()> {
    let case = |max| {
        let splits = Splits { max, keys: 4, window: 0, merged: 1 };
        Case::of(combining(2, splits, plain(if max % 2 == 0 { 32 } else { 22 }, &[9], 8)))
    };
    check_all(&(1..=9).map(case).collect::<Vec<Case>>())
}

#[test]
fn leaves_maxima() -> Result<()> {
    let argmax = |kernel| Case::of(Matvec { argmax: true, ..kernel });
    check_all(&[
        argmax(rms(plain(40, &[203], 1))),
        argmax(rms(Matvec { blocks: 5, ..plain(40, &[100], 2) })),
        argmax(Matvec { blocks: 4, ..plain(40, &[90], 8) }),
    ])
}

/// Wherever it lies in its tile, its warp and its block.
#[test]
fn the_largest_is_a_nan_where_there_is_one() -> Result<()> {
    let kernel = Matvec { argmax: true, residual: true, ..plain(40, &[100], 2) };
    let broken = |row| Case { broken: Some(row), ..Case::of(kernel.clone()) };
    check_all(&[0, 1, 15, 16, 40, 63, 98, 99].map(broken))
}
