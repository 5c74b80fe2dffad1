//! `experts_hidden.cu`, `experts_sum.cu`, `route.cu` and the gathered `matmul.cu` against sums in f64.

use anyhow::{Context, Result, ensure};
use askama::Template;
use fuse_templates::{ExpertsHidden, ExpertsSum, Float, Matmul, Route, RouteRows, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::support::*;

/// Routed experts of one layer.
#[derive(Clone, Debug)]
pub struct Case {
    pub experts: usize,
    pub top_k: usize,
    /// Sizes: x, inside an expert, the result.
    pub k: usize,
    pub features: usize,
    pub outputs: usize,
    /// Rows of x.
    pub rows: usize,
    pub gated: bool,
    pub activation: usize,
    pub norm: bool,
    pub norm_weight: bool,
    /// 0 softmax, 1 sigmoid.
    pub scoring: usize,
    /// Logits come as so many copies of sums in fixed point, of rows that are not divided by their root mean square.
    pub copies: usize,
    pub biased: bool,
    pub normalise: bool,
    pub warps: usize,
    pub depth: usize,
    /// Blocks that share the columns of a row tile of the sum, and whether its columns go through shared memory.
    pub split: usize,
    pub staged: bool,
    pub late: bool,
    pub residual: bool,
    pub zeros: usize,
    pub grid: u32,
}

const SCALE: f32 = 1.25;

impl Case {
    pub fn new(experts: usize, top_k: usize, rows: usize) -> Case {
        Case {
            experts,
            top_k,
            k: 70,
            features: 43,
            outputs: 37,
            rows,
            gated: true,
            activation: 0,
            norm: true,
            norm_weight: true,
            scoring: 0,
            copies: 0,
            biased: false,
            normalise: true,
            warps: rows.max(4),
            depth: 2,
            split: 1,
            staged: true,
            late: false,
            residual: true,
            zeros: 0,
            grid: 3,
        }
    }

    fn route(&self) -> Route {
        let &Case { experts, top_k, scoring, biased, normalise, .. } = self;
        Route { experts, top_k, scoring, biased, normalise, scale: Float(SCALE) }
    }

    fn most(&self) -> usize {
        (self.rows * self.top_k).min(self.experts)
    }

    fn inside(&self) -> Tiles {
        let rows = [self.features, 0, 0];
        Tiles { k: self.k, outputs: 1, rows, gated: self.gated, out_type: Storage::BF16 }
    }

    fn result(&self) -> Tiles {
        let rows = [self.outputs, 0, 0];
        Tiles { k: self.features, outputs: 1, rows, gated: false, out_type: Storage::F32 }
    }

    fn hidden_source(&self) -> Result<String> {
        let &Case { rows: batch, copies, warps, depth, norm, activation, .. } = self;
        let (name, tiles, route, eps) = ("kernel".into(), self.inside(), self.route(), Float(1e-5));
        Ok(ExpertsHidden { name, tiles, route, batch, copies, warps, depth, norm, eps, activation }.render()?)
    }

    fn sum_source(&self) -> Result<String> {
        let &Case { rows: batch, copies, warps, depth, split, staged, late, .. } = self;
        let (name, tiles, route) = ("kernel".into(), self.result(), self.route());
        Ok(ExpertsSum { name, tiles, route, batch, copies, warps, depth, split, staged, late }.render()?)
    }
}

/// The weights, inputs and routes of a case.
struct Problem {
    x: Vec<f32>,
    norm_weight: Vec<f32>,
    logits: Vec<f32>,
    bias: Vec<f32>,
    /// Of each expert: its gate and up, or its up; and its down.
    inner: Vec<Vec<Matrix>>,
    down: Vec<Matrix>,
    /// Of each row: its experts in their order, with their shares.
    chosen: Vec<Vec<(usize, f64)>>,
    /// The first row's in the order of its choice.
    first: Vec<usize>,
}

impl Problem {
    fn new(case: &Case) -> Problem {
        let mut random = Random((case.experts * 100 + case.rows) as u64);
        let random = &mut random;
        let parts = if case.gated { 2 } else { 1 };
        let inner = (0..case.experts)
            .map(|_| (0..parts).map(|_| Matrix::random(random, case.features, case.k)).collect())
            .collect();
        let down = (0..case.experts).map(|_| Matrix::random(random, case.outputs, case.features)).collect();
        // Logits in halves, all below zero: many are equal, and the first of them comes first.
        let logits: Vec<f32> =
            random.floats(case.rows * case.experts).iter().map(|value| (value * 4.0).round() / 2.0 - 3.0).collect();
        let bias: Vec<f32> = random.floats(case.experts).iter().map(|value| (value * 4.0).round() / 8.0).collect();
        let mut chosen: Vec<_> = logits.chunks(case.experts).map(|logits| route(case, logits, &bias)).collect();
        let first = chosen[0].iter().map(|&(expert, _)| expert).collect();
        chosen.iter_mut().for_each(|row| row.sort_by_key(|&(expert, _)| expert));
        let x = random.floats(case.rows * case.k).iter().map(|value| 3.0 * value + 0.5).collect();
        Problem { x, norm_weight: random.floats(case.k), logits, bias, inner, down, chosen, first }
    }

    fn packed_inner(&self, case: &Case) -> HostBuffer {
        HostBuffer::input(&self.inner.iter().flat_map(|parts| pack(parts, case.gated)).collect::<Vec<u16>>())
    }

    fn packed_down(&self) -> HostBuffer {
        HostBuffer::input(
            &self.down.iter().flat_map(|down| pack(std::slice::from_ref(down), false)).collect::<Vec<u16>>(),
        )
    }

    /// The logits as the kernels of few rows take them.
    fn given_logits(&self, case: &Case) -> HostBuffer {
        if case.copies == 0 {
            return HostBuffer::input(&self.logits);
        }
        // The first copy has what the others take away.
        let other = |copy: usize, at: usize| (copy * 1000 + at) as i64 * (1 << 30);
        let others = |at| (1..case.copies).map(|copy| other(copy, at)).sum::<i64>();
        let fixed = |(at, &logit): (usize, &f32)| {
            let x = &self.x[at / case.experts * case.k..][..case.k];
            let square = x.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / case.k as f64 + 1e-5;
            (f64::from(logit) * square.sqrt() * 2f64.powi(32)).round() as i64 - others(at)
        };
        let first = self.logits.iter().enumerate().map(fixed);
        let rest = (1..case.copies).flat_map(|copy| (0..self.logits.len()).map(move |at| other(copy, at)));
        HostBuffer::input(&first.chain(rest).collect::<Vec<i64>>())
    }

    /// Experts that any row chose, in their order; one row's in the order of its choice, as far as a warp has a lane for each.
    fn listed(&self) -> Vec<usize> {
        if self.chosen.len() == 1 && self.first.len() <= 32 {
            return self.first.clone();
        }
        let all: std::collections::BTreeSet<usize> = self.chosen.iter().flatten().map(|&(expert, _)| expert).collect();
        all.into_iter().collect()
    }

    /// `share f(gate x) up x` of an expert for a row whose values are `x`.
    fn inside(&self, case: &Case, expert: usize, x: &[f64], share: f64) -> Vec<f64> {
        let dot = |part: usize, row: usize| -> f64 {
            self.inner[expert][part].row(row).iter().zip(x).map(|(&w, &x)| f64::from(w) * x).sum()
        };
        (0..case.features)
            .map(|row| {
                let y = activate(case.activation, dot(0, row));
                share * if case.gated { y * dot(1, row) } else { y }
            })
            .collect()
    }

    /// Row `b` of x, normed.
    fn normed(&self, case: &Case, b: usize) -> Vec<f64> {
        let x: Vec<f64> = self.x[b * case.k..][..case.k].iter().map(|&value| value.into()).collect();
        if !case.norm {
            return x;
        }
        let scale = 1.0 / (x.iter().map(|value| value * value).sum::<f64>() / case.k as f64 + 1e-5).sqrt();
        let weight = |i: usize| if case.norm_weight { f64::from(self.norm_weight[i]) } else { 1.0 };
        x.iter().enumerate().map(|(i, value)| value * weight(i) * scale).collect()
    }
}

/// The experts of a row in the order of their choice, and their shares.
fn route(case: &Case, logits: &[f32], bias: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..case.experts).collect();
    let whole: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let rank = |expert: usize| match (case.biased, case.scoring) {
        (false, _) => logits[expert].into(),
        (true, 0) => f64::from(logits[expert]).exp() / whole + f64::from(bias[expert]),
        (true, _) => 1.0 / (1.0 + (-f64::from(logits[expert])).exp()) + f64::from(bias[expert]),
    };
    order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
    let score = |expert: usize| match case.scoring {
        0 => f64::from(logits[expert]).exp(),
        _ => 1.0 / (1.0 + (-f64::from(logits[expert])).exp()),
    };
    let counted: &[usize] = if case.normalise { &order[..case.top_k] } else { &order };
    let whole: f64 = counted.iter().map(|&expert| score(expert)).sum();
    let whole = if case.normalise || case.scoring == 0 { whole } else { 1.0 };
    order[..case.top_k].iter().map(|&expert| (expert, score(expert) / whole * f64::from(SCALE))).collect()
}

/// What is inside the chosen experts of few rows.
pub fn check_hidden(case: &Case, mutation: Option<Mutation>) -> Result<()> {
    let kernel = build(case.hidden_source()?, mutation)?;
    let problem = Problem::new(case);
    let listed = problem.listed();
    let mut expected = Vec::new();
    for &expert in &listed {
        for (b, chosen) in problem.chosen.iter().enumerate() {
            let share = chosen.iter().find(|(of, _)| *of == expert).map_or(0.0, |&(_, share)| share);
            expected.extend(problem.inside(case, expert, &problem.normed(case, b), share));
        }
    }
    let weights = problem.packed_inner(case);
    let (x, logits) = (HostBuffer::input(&problem.x), problem.given_logits(case));
    let norm_weight = HostBuffer::input(&problem.norm_weight);
    let hidden = HostBuffer::output::<u16>(expected.len());
    let zeros = HostBuffer::output::<f32>(case.zeros);
    let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
    let bias = HostBuffer::input(&problem.bias);
    let norm_weight = given(case.norm && case.norm_weight, &norm_weight);
    let mut arguments = vec![weights.address(), x.address(), norm_weight, logits.address(), hidden.address()];
    arguments.extend(case.biased.then(|| bias.address()));
    arguments.extend([given(case.zeros > 0, &zeros), case.zeros as u64]);
    let shared = (2 * case.rows * (case.k.div_ceil(32) * 32 + 32) * 2) as u32;
    kernel.launch([case.grid, 1, 1], 32 * case.warps as u32, shared, &arguments)?;
    if case.zeros > 0 {
        ensure!(zeros.written::<f32>()?.iter().all(|&value| value == 0.0), "floats that are not zero");
    }
    compare("hidden", &expected, &from_bf16(&hidden.written::<u16>()?), Bound::Stored)
}

/// The sum of the chosen experts of few rows.
pub fn check_sum(case: &Case, mutation: Option<Mutation>) -> Result<()> {
    let kernel = build(case.sum_source()?, mutation)?;
    let problem = Problem::new(case);
    let listed = problem.listed();
    let mut random = Random(9);
    let inside = random.rounded(listed.len() * case.rows * case.features);
    let residual = random.floats(case.rows * case.outputs);
    let mut expected = Vec::new();
    for b in 0..case.rows {
        for row in 0..case.outputs {
            let mut y = if case.residual { f64::from(residual[b * case.outputs + row]) } else { 0.0 };
            for (slot, &expert) in listed.iter().enumerate() {
                let x = &inside[(slot * case.rows + b) * case.features..][..case.features];
                let terms = problem.down[expert].row(row).iter().zip(x);
                y += terms.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
            }
            expected.push(y);
        }
    }
    let (weights, hidden) = (problem.packed_down(), HostBuffer::input(&to_bf16(&inside)));
    let (logits, residual) = (problem.given_logits(case), HostBuffer::input(&residual));
    let out = match case.split {
        1 => HostBuffer::output::<f32>(expected.len()),
        _ => HostBuffer::inout(&vec![0f32; expected.len()]),
    };
    let pairs = case.features.div_ceil(32).div_ceil(case.split);
    let shared = if case.staged { case.rows * (case.most() * pairs * 32 + 32) * 2 } else { 0 };
    let residual = if case.residual { residual.address() } else { 0 };
    let bias = HostBuffer::input(&problem.bias);
    let mut arguments = vec![weights.address(), hidden.address(), logits.address(), residual, out.address()];
    arguments.extend(case.biased.then(|| bias.address()));
    kernel.launch([case.grid * case.split as u32, 1, 1], 32 * case.warps as u32, shared as u32, &arguments)?;
    compare("sum", &expected, &out.written::<f32>()?, Bound::Exact)
}

/// Many rows: the route, then one product of each expert with the rows that go to it. `mutations`: of the two sources.
pub fn check_rows(case: &Case, by_pair: bool, columns: usize, mutations: [Option<Mutation>; 2]) -> Result<()> {
    let &Case { experts, top_k, rows, .. } = case;
    let route = RouteRows { name: "kernel".into(), route: case.route(), warps: 4 };
    let route = build(route.render()?, mutations[0])?;
    let problem = Problem::new(case);
    let logits = HostBuffer::input(&problem.logits);
    let (shares, slots) = (HostBuffer::output::<f32>(rows * experts), HostBuffer::output::<i32>(rows * experts));
    let takers = HostBuffer::output::<u32>(experts * rows.div_ceil(32));
    let bias = HostBuffer::input(&problem.bias);
    let mut arguments = vec![logits.address(), shares.address(), slots.address(), takers.address(), rows as u64];
    arguments.extend(case.biased.then(|| bias.address()));
    route.launch([rows.div_ceil(32) as u32, 1, 1], 128, 0, &arguments)?;
    let (left, numbers) = (shares.values::<f32>()?, slots.values::<i32>()?);
    let mut bits = vec![0u32; experts * rows.div_ceil(32)];
    for (row, chosen) in problem.chosen.iter().enumerate() {
        for (slot, &(expert, share)) in chosen.iter().enumerate() {
            let at = row * experts + expert;
            ensure!(numbers[at] == slot as i32, "route: row {row}, expert {expert} is slot {}", numbers[at]);
            ensure!((f64::from(left[at]) - share).abs() < 1e-5, "route: row {row}: share {}, not {share}", left[at]);
            bits[expert * rows.div_ceil(32) + row / 32] |= 1 << (row % 32);
        }
    }
    ensure!(takers.written::<u32>()? == bits, "route: the rows of experts differ");

    let (tiles, gated) = if by_pair { (case.result(), false) } else { (case.inside(), case.gated) };
    let (k, size, out_type) = (tiles.k, tiles.rows[0], tiles.out_type);
    let kernel = Matmul {
        name: "kernel".into(),
        tiles,
        row_tiles: 2,
        columns,
        row_warps: 2,
        split: 2,
        paired: !by_pair,
        activation: if by_pair { 5 } else { case.activation },
        experts,
        top_k,
        by_pair,
    };
    let kernel = build(kernel.render()?, mutations[1])?;
    let mut random = Random(11);
    let given = random.floats(if by_pair { rows * top_k } else { rows } * k);
    let kept = |value: f32| f64::from(round(value)) + f64::from(round(value - round(value)));
    let mut expected = Vec::new();
    for (row, chosen) in problem.chosen.iter().enumerate() {
        for (slot, &(expert, share)) in chosen.iter().enumerate() {
            if by_pair {
                let x = &given[(row * top_k + slot) * k..][..k];
                expected.extend((0..size).map(|at| {
                    let terms = problem.down[expert].row(at).iter().zip(x);
                    terms.map(|(&w, &x)| f64::from(w) * f64::from(round(x))).sum::<f64>()
                }));
            } else {
                let x: Vec<f64> = given[row * k..][..k].iter().map(|&value| kept(value)).collect();
                expected.extend(problem.inside(case, expert, &x, share));
            }
        }
    }
    let x: Vec<f32> = match by_pair {
        true => given,
        false => given
            .chunks(k)
            .flat_map(|row| {
                row.iter().copied().chain(row.iter().map(|&value| value - round(value))).collect::<Vec<f32>>()
            })
            .collect(),
    };
    let weights = if by_pair { problem.packed_down() } else { problem.packed_inner(case) };
    let x = HostBuffer::input(&to_bf16(&x));
    let bytes = if out_type == Storage::F32 { 4 } else { 2 };
    let out = HostBuffer::output::<u8>(expected.len() * bytes);
    let row_tiles = row_tiles(&vec![size; if gated { 2 } else { 1 }], gated);
    let grid = [row_tiles.div_ceil(4) as u32, rows.div_ceil(8 * columns) as u32, experts as u32];
    let (weights, x) = (weights.address(), x.address());
    let mut arguments = vec![weights, x, 0, 0, out.address(), 0, 0, rows as u64];
    arguments.extend([shares.address(), slots.address(), takers.address()]);
    kernel.launch(grid, 128, 0, &arguments)?;
    match out_type {
        Storage::F32 => compare("product", &expected, &out.written::<f32>()?, Bound::Exact),
        Storage::BF16 => compare("product", &expected, &from_bf16(&out.written::<u16>()?), Bound::Stored),
    }
}

#[test]
fn insides_of_few_rows() -> Result<()> {
    let cases = [
        Case::new(6, 2, 1),
        Case::new(6, 2, 2),
        Case::new(40, 3, 4),
        Case { warps: 8, depth: 1, ..Case::new(8, 8, 8) },
        // More than a word of experts, sixteen to a row; whole rings; more blocks than row tiles.
        Case { k: 256, features: 16, depth: 2, zeros: 77, ..Case::new(128, 16, 1) },
        Case { k: 600, features: 9, depth: 3, grid: 40, ..Case::new(3, 1, 2) },
        Case { gated: false, norm: false, activation: 2, ..Case::new(7, 2, 2) },
        Case { norm_weight: false, scoring: 1, ..Case::new(65, 4, 2) },
        Case { normalise: false, ..Case::new(33, 4, 4) },
        Case { scoring: 1, normalise: false, k: 33, ..Case::new(5, 5, 1) },
        // More experts of one row than a warp has lanes.
        Case::new(70, 40, 1),
        // Logits that the kernel in front added up: equal ones are equal sums.
        Case { copies: 4, ..Case::new(128, 8, 1) },
        Case { copies: 1, normalise: false, ..Case::new(40, 3, 4) },
        Case { copies: 3, scoring: 1, ..Case::new(9, 2, 2) },
        // A bias for the choice: of a softmax and of sigmoids.
        Case { biased: true, scoring: 1, ..Case::new(66, 6, 2) },
        Case { biased: true, normalise: false, norm: false, ..Case::new(12, 3, 1) },
    ];
    let sources: Result<Vec<(String, String)>> =
        cases.iter().map(|case| Ok((case.hidden_source()?, "kernel".into()))).collect();
    fuse_tests::host_build::HostKernel::build_all(&sources?)?;
    cases.iter().try_for_each(|case| check_hidden(case, None).with_context(|| format!("{case:?}")))
}

#[test]
fn sums_of_few_rows() -> Result<()> {
    let cases = [
        Case::new(6, 2, 1),
        Case { split: 2, ..Case::new(6, 2, 2) },
        Case { split: 2, staged: false, late: true, depth: 3, ..Case::new(40, 3, 4) },
        Case { warps: 8, staged: false, residual: false, ..Case::new(8, 8, 8) },
        // Shares of several pairs, in rings that they do and do not fill, over one block and over many.
        Case { features: 600, depth: 5, grid: 1, ..Case::new(70, 8, 1) },
        Case { features: 768, warps: 6, depth: 10, split: 2, grid: 3, ..Case::new(32, 8, 1) },
        Case { features: 300, warps: 6, depth: 4, split: 2, grid: 2, outputs: 70, ..Case::new(12, 4, 2) },
        Case { features: 20, outputs: 5, grid: 4, ..Case::new(3, 1, 4) },
        Case { biased: true, scoring: 1, split: 2, ..Case::new(66, 6, 2) },
        Case { biased: true, ..Case::new(12, 3, 1) },
        Case { copies: 2, split: 2, ..Case::new(40, 3, 4) },
        Case::new(70, 40, 1),
    ];
    let sources: Result<Vec<(String, String)>> =
        cases.iter().map(|case| Ok((case.sum_source()?, "kernel".into()))).collect();
    fuse_tests::host_build::HostKernel::build_all(&sources?)?;
    cases.iter().try_for_each(|case| check_sum(case, None).with_context(|| format!("{case:?}")))
}

#[test]
fn many_rows() -> Result<()> {
    for (case, columns) in [
        (Case::new(6, 2, 16), 1),
        (Case::new(40, 3, 70), 1),
        (Case { scoring: 1, normalise: false, gated: false, activation: 3, ..Case::new(4, 1, 40) }, 2),
        (Case { biased: true, scoring: 1, ..Case::new(40, 3, 70) }, 1),
        // Every row goes to every expert; more rows than a warp has bits for in one go.
        (Case { k: 32, features: 16, outputs: 16, gated: false, activation: 3, ..Case::new(2, 2, 1040) }, 8),
    ] {
        for by_pair in [false, true] {
            check_rows(&case, by_pair, columns, [None, None]).with_context(|| format!("{by_pair}, {case:?}"))?;
        }
    }
    Ok(())
}
