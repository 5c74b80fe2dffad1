//! `experts_hidden.cu`, `experts_sum.cu`, `route.cu` and the gathered `matmul.cu` against sums in f64.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use fuse_kernels::{
    Activation, ExpertsHidden, ExpertsSum, Format, Gather, Gating, Matmul, ROUTER_COPIES, Route, RouteRows, Scoring,
    Storage, Tiles,
};
use fuse_tests::host_build::HostBuffer;

use crate::matmul;
use crate::support::*;

/// Values of x, inside an expert, and of the result.
const SIZES: [usize; 3] = [70, 43, 37];
const EPS: f32 = 1e-5;

/// What is inside the chosen experts of few rows.
#[derive(Clone, Debug)]
pub struct Hidden {
    pub kernel: ExpertsHidden,
    /// The norm has weights.
    pub norm_weight: bool,
    /// Floats that the launch sets to zero.
    pub zeros: usize,
}

/// The sum of the chosen experts of few rows.
#[derive(Clone, Debug)]
pub struct Sum {
    pub kernel: ExpertsSum,
    pub residual: bool,
}

/// Many rows: the route, then one product of each expert with the rows that go to it.
#[derive(Clone, Debug)]
pub struct Rows {
    pub route: RouteRows,
    /// It gathers: of what is inside experts, or by pair of their results.
    pub product: Matmul,
    pub rows: usize,
}

pub fn route(experts: usize, top_k: usize) -> Route {
    Route {
        experts,
        top_k,
        scoring: Scoring::Softmax,
        biased: false,
        normalise: true,
        scale: 1.25,
        scaled: false,
        groups: None,
    }
}

pub fn hidden(experts: usize, top_k: usize, batch: usize) -> ExpertsHidden {
    ExpertsHidden {
        tiles: inside(SIZES[0], SIZES[1]),
        route: route(experts, top_k),
        batch,
        summed: false,
        warps: batch.max(4),
        depth: 2,
        blocks: 3,
        norm: Some(EPS),
        alike: false,
        activation: Activation::Silu,
        gating: Gating::default(),
        biased: false,
    }
}

pub fn sum(experts: usize, top_k: usize, batch: usize) -> ExpertsSum {
    ExpertsSum {
        tiles: tiles(SIZES[1], &SIZES[2..]),
        route: route(experts, top_k),
        batch,
        summed: false,
        warps: batch.max(4),
        depth: 2,
        split: 1,
        staged: true,
        blocks: 3,
        late: false,
        biased: false,
    }
}

/// Gate and up of an expert with this many values inside.
pub fn inside(k: usize, features: usize) -> Tiles {
    Tiles { gated: true, out: Storage::BF16, ..tiles(k, &[features]) }
}

impl Hidden {
    pub fn of(kernel: ExpertsHidden) -> Hidden {
        Hidden { kernel, norm_weight: true, zeros: 0 }
    }
}

impl Sum {
    pub fn of(kernel: ExpertsSum) -> Sum {
        Sum { kernel, residual: true }
    }
}

impl Rows {
    /// `share f(gate x) up x` of each expert of a row, by warps with `columns` groups of eight rows.
    pub fn inside(route: Route, tiles: Tiles, activation: Activation, rows: usize, columns: usize) -> Rows {
        let activation = Some(activation);
        Rows::gathering(route, Matmul { paired: true, activation, ..matmul::plain(tiles, [2, columns, 2, 2]) }, rows)
    }

    /// `down x` of each expert of a row, whose x are its own.
    pub fn by_pair(route: Route, tiles: Tiles, rows: usize, columns: usize) -> Rows {
        let mut case = Rows::gathering(route, matmul::plain(tiles, [2, columns, 2, 2]), rows);
        case.product.gather.iter_mut().for_each(|gather| gather.by_pair = true);
        case
    }

    fn gathering(route: Route, product: Matmul, rows: usize) -> Rows {
        let gather = Some(Gather { experts: route.experts, top_k: route.top_k, by_pair: false, biased: false });
        Rows { route: RouteRows { route }, product: Matmul { gather, ..product }, rows }
    }
}

/// Logits of rows, and the experts that they stand for.
struct Chosen {
    logits: Vec<f32>,
    bias: Vec<f32>,
    /// Of each row: its experts in their order, with their shares.
    rows: Vec<Vec<(usize, f64)>>,
    /// The first row's in the order of its choice.
    first: Vec<usize>,
}

impl Chosen {
    fn new(route: &Route, rows: usize) -> Chosen {
        let mut random = Random((route.experts * 100 + rows) as u64);
        // Logits in halves, all below zero: many are equal, and the first of them comes first.
        let logits: Vec<f32> =
            random.floats(rows * route.experts).iter().map(|value| (value * 4.0).round() / 2.0 - 3.0).collect();
        let bias: Vec<f32> = random.floats(route.experts).iter().map(|value| (value * 4.0).round() / 8.0).collect();
        let mut rows: Vec<_> = logits.chunks(route.experts).map(|logits| choose(route, logits, &bias)).collect();
        let first = rows[0].iter().map(|&(expert, _)| expert).collect();
        rows.iter_mut().for_each(|row| row.sort_by_key(|&(expert, _)| expert));
        Chosen { logits, bias, rows, first }
    }

    /// The logits as the kernels of few rows take them: as they are, or as copies of sums in fixed point, of rows that are not divided by
    /// their root mean square.
    fn given_logits(&self, summed: bool, x: &[f32]) -> HostBuffer {
        if !summed {
            return HostBuffer::input(&self.logits);
        }
        let (experts, k) = (self.logits.len() / self.rows.len(), x.len() / self.rows.len());
        // The first copy has what the others take away.
        let other = |copy: usize, at: usize| (copy * 1000 + at) as i64 * (1 << 30);
        let others = |at| (1..ROUTER_COPIES).map(|copy| other(copy, at)).sum::<i64>();
        let fixed = |(at, &logit): (usize, &f32)| {
            let x = &x[at / experts * k..][..k];
            let square = x.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / k as f64 + f64::from(EPS);
            (f64::from(logit) * square.sqrt() * 2f64.powi(32)).round() as i64 - others(at)
        };
        let first = self.logits.iter().enumerate().map(fixed);
        let rest = (1..ROUTER_COPIES).flat_map(|copy| (0..self.logits.len()).map(move |at| other(copy, at)));
        HostBuffer::input(&first.chain(rest).collect::<Vec<i64>>())
    }

    /// Experts that any row chose, in their order; one row's in the order of its choice, as far as a warp has a lane for each.
    fn listed(&self) -> Vec<usize> {
        if self.rows.len() == 1 && self.first.len() <= 32 {
            return self.first.clone();
        }
        let all: BTreeSet<usize> = self.rows.iter().flatten().map(|&(expert, _)| expert).collect();
        all.into_iter().collect()
    }
}

/// What the share of an expert is multiplied by, where there are such factors.
fn expert_scale(expert: usize) -> f32 {
    0.5 + expert as f32 / 8.0
}

fn expert_scales(route: &Route) -> HostBuffer {
    HostBuffer::input(&(0..route.experts).map(expert_scale).collect::<Vec<f32>>())
}

/// The experts of a row in the order of their choice, and their shares.
fn choose(route: &Route, logits: &[f32], bias: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..route.experts).collect();
    let softmax = route.scoring == Scoring::Softmax;
    let whole: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let rank = |expert: usize| match (route.biased, route.scoring) {
        (false, _) => logits[expert].into(),
        (true, Scoring::Softmax) => f64::from(logits[expert]).exp() / whole + f64::from(bias[expert]),
        (true, Scoring::Sigmoid) => 1.0 / (1.0 + (-f64::from(logits[expert])).exp()) + f64::from(bias[expert]),
    };
    if let Some([count, kept]) = route.groups {
        let size = route.experts / count;
        let score = |group: usize| {
            let mut ranks: Vec<f64> = (group * size..(group + 1) * size).map(rank).collect();
            ranks.sort_by(|a, b| b.total_cmp(a));
            ranks[..if route.biased { 2 } else { 1 }].iter().sum::<f64>()
        };
        let mut groups: Vec<usize> = (0..count).collect();
        groups.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        order.retain(|expert| groups[..kept].contains(&(expert / size)));
    }
    order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
    let score = |expert: usize| match route.scoring {
        Scoring::Softmax => f64::from(logits[expert]).exp(),
        Scoring::Sigmoid => 1.0 / (1.0 + (-f64::from(logits[expert])).exp()),
    };
    let every: Vec<usize> = (0..route.experts).collect();
    let counted: &[usize] = if route.normalise { &order[..route.top_k] } else { &every };
    let whole: f64 = counted.iter().map(|&expert| score(expert)).sum();
    let whole = if route.normalise || softmax { whole } else { 1.0 };
    let scale = |expert: usize| f64::from(route.scale) * if route.scaled { expert_scale(expert).into() } else { 1.0 };
    order[..route.top_k].iter().map(|&expert| (expert, score(expert) / whole * scale(expert))).collect()
}

/// What is made of a gate and the other product: as they are, or bounded.
pub const BOUNDED: Gating = Gating { limit: Some(0.9), slope: 1.7, offset: 1.0 };

/// Biases of each expert, for the gate and up or for one product; zeros where there are none.
fn biases_of(random: &mut Random, experts: usize, tiles: &Tiles, biased: bool) -> Vec<Vec<Vec<f32>>> {
    let parts = if tiles.gated { 2 } else { 1 };
    let own = |random: &mut Random| if biased { random.floats(tiles.rows[0]) } else { vec![0.0; tiles.rows[0]] };
    (0..experts).map(|_| (0..parts).map(|_| own(random)).collect()).collect()
}

fn packed_biases(biases: &[Vec<Vec<f32>>], tiles: &Tiles) -> HostBuffer {
    HostBuffer::input(&biases.iter().flat_map(|parts| pack_bias(parts, tiles.gated)).collect::<Vec<f32>>())
}

/// A weight of each expert: of the gate and of up, or of one.
fn weights_of(random: &mut Random, experts: usize, tiles: &Tiles) -> Vec<Vec<Matrix>> {
    let parts = if tiles.gated { 2 } else { 1 };
    let matrices =
        |random: &mut Random| (0..parts).map(|_| Matrix::of(tiles.weights, random, tiles.rows[0], tiles.k)).collect();
    (0..experts).map(|_| matrices(random)).collect()
}

fn packed(weights: &[Vec<Matrix>], tiles: &Tiles) -> HostBuffer {
    HostBuffer::input(&weights.iter().flat_map(|parts| pack(parts, tiles.gated)).collect::<Vec<u16>>())
}

/// `W x`, or `f(gate x) up x` and what other gating there is; with biases.
fn product(
    parts: &[Matrix],
    biases: &[Vec<f32>],
    activation: Option<Activation>,
    gating: &Gating,
    x: &[f64],
) -> Vec<f64> {
    let dot = |part: usize, row: usize| -> f64 {
        let products = parts[part].row(row).iter().zip(x).map(|(&w, &x)| f64::from(w) * x);
        products.sum::<f64>() + f64::from(biases[part][row])
    };
    let limit = gating.limit.map_or(f64::INFINITY, f64::from);
    let (slope, offset) = (f64::from(gating.slope), f64::from(gating.offset));
    let gate = |row| activate(activation, slope * dot(0, row).min(limit)) / slope;
    let up = |row| if parts.len() > 1 { dot(1, row).clamp(-limit, limit) + offset } else { 1.0 };
    (0..parts[0].rows).map(|row| gate(row) * up(row)).collect()
}

impl Hidden {
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let ExpertsHidden { tiles, route, batch, summed, norm, activation, gating, biased, .. } = &self.kernel;
        let chosen = Chosen::new(route, *batch);
        let mut random = Random(tiles.k as u64);
        let weights = weights_of(&mut random, route.experts, tiles);
        let biases = biases_of(&mut Random(5), route.experts, tiles, *biased);
        // What half precision has no room for as it is.
        let size = if self.kernel.alike { 4e6 } else { 1.0 };
        let x: Vec<f32> = random.floats(batch * tiles.k).iter().map(|value| size * (3.0 * value + 0.5)).collect();
        let norm_weight = random.floats(tiles.k);
        let prepared = |x: &[f32]| -> Vec<f64> {
            let Some(eps) = norm else { return x.iter().map(|&value| value.into()).collect() };
            let square = x.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / x.len() as f64;
            let weight = |i: usize| if self.norm_weight { f64::from(norm_weight[i]) } else { 1.0 };
            let scale = 1.0 / (square + f64::from(*eps)).sqrt();
            x.iter().enumerate().map(|(i, &value)| f64::from(value) * weight(i) * scale).collect()
        };
        let rows: Vec<Vec<f64>> = x.chunks(tiles.k).map(prepared).collect();
        let mut expected = Vec::new();
        for &expert in &chosen.listed() {
            for (x, experts) in rows.iter().zip(&chosen.rows) {
                let share = experts.iter().find(|(of, _)| *of == expert).map_or(0.0, |&(_, share)| share);
                let products = product(&weights[expert], &biases[expert], Some(*activation), gating, x);
                expected.extend(products.iter().map(|y| share * y));
            }
        }

        let biases = packed_biases(&biases, tiles);
        let (weights, logits) = (packed(&weights, tiles), chosen.given_logits(*summed, &x));
        let before = HostBuffer::input(&crate::matvec::rms_before(&x, *batch));
        let (x, norm_weight) = (HostBuffer::input(&x), HostBuffer::input(&norm_weight));
        let (bias, out) = (HostBuffer::input(&chosen.bias), HostBuffer::output::<u16>(expected.len()));
        let zeros = HostBuffer::output::<f32>(self.zeros);
        let mut arguments = vec![
            ("weights", weights.address()),
            ("x", x.address()),
            ("norm_weight", given(norm.is_some() && self.norm_weight, &norm_weight)),
            ("logits", logits.address()),
            ("hidden", out.address()),
            ("zeros", given(self.zeros > 0, &zeros)),
            ("zero_count", self.zeros as u64),
        ];
        arguments.extend(route.biased.then(|| ("choice_bias", bias.address())));
        arguments.extend(self.kernel.alike.then(|| ("rms_before", before.address())));
        arguments.extend(biased.then(|| ("biases", biases.address())));
        let scales = expert_scales(route);
        arguments.extend(route.scaled.then(|| ("expert_scale", scales.address())));
        kernel.launch(*batch, &arguments)?;
        if self.zeros > 0 {
            ensure!(zeros.written::<f32>()?.iter().all(|&value| value == 0.0), "floats that are not zero");
        }
        // Half precision is one operand of x, rounded.
        let bound = if tiles.weights == Format::BF16 { Bound::Stored } else { Bound::Rounded };
        compare("hidden", &expected, &written(&out, tiles.out)?, bound)
    }
}

impl Sum {
    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let ExpertsSum { tiles, route, batch, summed, split, biased, .. } = &self.kernel;
        let (batch, k, size) = (*batch, tiles.k, tiles.rows[0]);
        let (chosen, mut random) = (Chosen::new(route, batch), Random(9));
        let weights = weights_of(&mut random, route.experts, tiles);
        let biases = biases_of(&mut Random(5), route.experts, tiles, *biased);
        let listed = chosen.listed();
        let inside = random.rounded(listed.len() * batch * k);
        let residual = random.floats(batch * size);
        let mut expected: Vec<f64> = residual.iter().map(|&value| value.into()).collect();
        if !self.residual {
            expected.fill(0.0);
        }
        for (at, x) in inside.chunks(k).enumerate() {
            let x: Vec<f64> = x.iter().map(|&value| value.into()).collect();
            let (expert, row) = (listed[at / batch], at % batch);
            let none = vec![vec![0.0; size]];
            let added = product(&weights[expert], &none, None, &Gating::default(), &x);
            let share = chosen.rows[row].iter().find(|(of, _)| *of == expert).map_or(0.0, |&(_, share)| share);
            let biased = added.iter().zip(&biases[expert][0]).map(|(y, &bias)| y + share * f64::from(bias));
            expected[row * size..][..size].iter_mut().zip(biased).for_each(|(sum, y)| *sum += y);
        }
        let biases = packed_biases(&biases, tiles);

        let (weights, hidden) = (packed(&weights, tiles), HostBuffer::input(&to_operands(tiles.weights, &inside)));
        // The rows that sums are of are whatever they are: one factor of all logits leaves their order alone.
        let logits = chosen.given_logits(*summed, &random.floats(batch * SIZES[0]));
        let (bias, residual) = (HostBuffer::input(&chosen.bias), HostBuffer::input(&residual));
        let out = match split {
            1 => HostBuffer::output::<f32>(expected.len()),
            _ => HostBuffer::inout(&vec![0f32; expected.len()]),
        };
        let mut arguments = vec![
            ("weights", weights.address()),
            ("hidden", hidden.address()),
            ("logits", logits.address()),
            ("residual", given(self.residual, &residual)),
            ("out", out.address()),
        ];
        arguments.extend(route.biased.then(|| ("choice_bias", bias.address())));
        arguments.extend(biased.then(|| ("biases", biases.address())));
        let scales = expert_scales(route);
        arguments.extend((*biased && route.scaled).then(|| ("expert_scale", scales.address())));
        kernel.launch(batch, &arguments)?;
        compare("sum", &expected, &out.written::<f32>()?, Bound::Exact)
    }
}

impl Rows {
    /// `mutations`: of the route, and of the product.
    pub fn check(&self, mutations: [Option<Mutation>; 2]) -> Result<()> {
        let Rows { route: RouteRows { route }, product: kernel, rows } = self;
        let (rows, experts, words) = (*rows, route.experts, rows.div_ceil(32));
        let chosen = Chosen::new(route, rows);
        let (logits, bias) = (HostBuffer::input(&chosen.logits), HostBuffer::input(&chosen.bias));
        let (shares, slots) = (HostBuffer::output::<f32>(rows * experts), HostBuffer::output::<i32>(rows * experts));
        let takers = HostBuffer::output::<u32>(experts * words);
        let mut arguments = vec![
            ("logits", logits.address()),
            ("shares", shares.address()),
            ("slots", slots.address()),
            ("takers", takers.address()),
            ("rows", rows as u64),
        ];
        arguments.extend(route.biased.then(|| ("choice_bias", bias.address())));
        let scales = expert_scales(route);
        arguments.extend(route.scaled.then(|| ("expert_scale", scales.address())));
        build(&self.route, mutations[0])?.launch(rows, &arguments)?;
        let (left, numbers) = (shares.values::<f32>()?, slots.values::<i32>()?);
        let mut bits = vec![0u32; experts * words];
        for (row, chosen) in chosen.rows.iter().enumerate() {
            for (slot, &(expert, share)) in chosen.iter().enumerate() {
                let at = row * experts + expert;
                ensure!(numbers[at] == slot as i32, "route: row {row}, expert {expert} is slot {}", numbers[at]);
                ensure!(
                    (f64::from(left[at]) - share).abs() < 1e-5,
                    "route: row {row}: share {}, not {share}",
                    left[at]
                );
                bits[expert * words + row / 32] |= 1 << (row % 32);
            }
        }
        ensure!(takers.written::<u32>()? == bits, "route: the rows of experts differ");

        let Matmul { tiles, activation, gating, gather: Some(gather), .. } = kernel else {
            panic!("the product gathers");
        };
        let (top_k, k, mut random) = (gather.top_k, tiles.k, Random(11));
        let weights = weights_of(&mut random, experts, tiles);
        let biases = biases_of(&mut Random(5), experts, tiles, gather.biased);
        let x = random.floats(if gather.by_pair { rows * top_k } else { rows } * k);
        let left_of = |value: f32| value - round(value);
        let split = |value: &f32| f64::from(round(*value)) + f64::from(round(left_of(*value)));
        let mut expected = Vec::new();
        for (row, chosen) in chosen.rows.iter().enumerate() {
            for (slot, &(expert, share)) in chosen.iter().enumerate() {
                let x = &x[if gather.by_pair { row * top_k + slot } else { row } * k..][..k];
                let x: Vec<f64> = match kernel.paired {
                    true => x.iter().map(split).collect(),
                    false => x.iter().map(|&value| round_operand(tiles.weights, value.into())).collect(),
                };
                // By pair x has its share already.
                let (of_product, of_bias) = if gather.by_pair { (1.0, share as f32) } else { (share, 1.0) };
                let biases: Vec<Vec<f32>> =
                    biases[expert].iter().map(|part| part.iter().map(|bias| bias * of_bias).collect()).collect();
                let products = product(&weights[expert], &biases, *activation, gating, &x);
                expected.extend(products.iter().map(|y| of_product * y));
            }
        }
        let halves = |row: &[f32]| [row.to_vec(), row.iter().copied().map(left_of).collect()].concat();
        let x: Vec<f32> = if kernel.paired { x.chunks(k).flat_map(halves).collect() } else { x };
        let (weights, x) = (packed(&weights, tiles), HostBuffer::input(&to_operands(tiles.weights, &x)));
        let out = room(expected.len(), tiles.out);
        let biases = packed_biases(&biases, tiles);
        let arguments = [
            ("bias", given(gather.biased, &biases)),
            ("weights", weights.address()),
            ("x", x.address()),
            ("out0", out.address()),
            ("rows", rows as u64),
            ("shares", shares.address()),
            ("slots", slots.address()),
            ("bits", takers.address()),
        ];
        build(kernel, mutations[1])?.launch(rows, &arguments)?;
        let bound = if tiles.out == Storage::F32 { Bound::Exact } else { Bound::Stored };
        compare("product", &expected, &written(&out, tiles.out)?, bound)
    }
}

#[test]
fn insides_of_few_rows() -> Result<()> {
    let sigmoid =
        |kernel: ExpertsHidden| ExpertsHidden { route: Route { scoring: Scoring::Sigmoid, ..kernel.route }, ..kernel };
    let unnormalised =
        |kernel: ExpertsHidden| ExpertsHidden { route: Route { normalise: false, ..kernel.route }, ..kernel };
    let biased = |kernel: ExpertsHidden| ExpertsHidden { route: Route { biased: true, ..kernel.route }, ..kernel };
    let summed = |kernel| ExpertsHidden { summed: true, ..kernel };
    let ungated = ExpertsHidden {
        tiles: Tiles { gated: false, ..inside(SIZES[0], SIZES[1]) },
        norm: None,
        activation: Activation::GeluTanh,
        ..hidden(7, 2, 2)
    };
    let grouped = |count, kept, kernel: ExpertsHidden| {
        let groups = Some([count, kept]);
        ExpertsHidden { route: Route { groups, ..kernel.route }, ..kernel }
    };
    let scaled = |kernel: ExpertsHidden| ExpertsHidden { route: Route { scaled: true, ..kernel.route }, ..kernel };
    let bounded = |kernel| ExpertsHidden { gating: BOUNDED, biased: true, ..kernel };
    let whole = ExpertsHidden { tiles: inside(256, 16), ..hidden(128, 16, 1) };
    check_each(
        &[
            Hidden::of(hidden(6, 2, 1)),
            Hidden::of(hidden(6, 2, 2)),
            Hidden::of(hidden(40, 3, 4)),
            Hidden::of(ExpertsHidden { warps: 8, depth: 1, ..hidden(8, 8, 8) }),
            // More than a word of experts, sixteen to a row; whole rings; more blocks than row tiles.
            Hidden { zeros: 77, ..Hidden::of(whole) },
            Hidden::of(ExpertsHidden { tiles: inside(600, 9), depth: 3, blocks: 40, ..hidden(3, 1, 2) }),
            Hidden::of(ungated.clone()),
            Hidden { norm_weight: false, ..Hidden::of(sigmoid(hidden(65, 4, 2))) },
            Hidden::of(unnormalised(hidden(33, 4, 4))),
            Hidden::of(sigmoid(unnormalised(ExpertsHidden { tiles: inside(33, SIZES[1]), ..hidden(5, 5, 1) }))),
            // More experts of one row than a warp has lanes.
            Hidden::of(hidden(70, 40, 1)),
            // Logits that the kernel before added up: equal ones are equal sums.
            Hidden::of(summed(hidden(128, 8, 1))),
            Hidden::of(summed(unnormalised(hidden(40, 3, 4)))),
            Hidden::of(summed(sigmoid(hidden(9, 2, 2)))),
            // Biases and bounds, of one row and of several, and of single products.
            Hidden::of(bounded(hidden(6, 2, 1))),
            Hidden::of(bounded(hidden(40, 3, 4))),
            Hidden::of(scaled(hidden(40, 3, 4))),
            Hidden::of(summed(scaled(hidden(9, 2, 1)))),
            Hidden::of(ExpertsHidden { biased: true, ..ungated.clone() }),
            // A bias for the choice: of a softmax and of sigmoids.
            Hidden::of(biased(sigmoid(hidden(66, 6, 2)))),
            // The best of groups, with a bias and without.
            Hidden::of(grouped(4, 2, biased(sigmoid(hidden(80, 6, 2))))),
            Hidden::of(grouped(8, 3, unnormalised(hidden(64, 5, 1)))),
            Hidden::of(biased(unnormalised(ExpertsHidden { norm: None, ..hidden(12, 3, 1) }))),
        ],
        |case| &case.kernel,
        |case| case.check(None),
    )
}

#[test]
fn sums_of_few_rows() -> Result<()> {
    let of = |k, rows, kernel| ExpertsSum { tiles: tiles(k, &[rows]), ..kernel };
    let split = |kernel: ExpertsSum| ExpertsSum { split: 2, blocks: 2 * kernel.blocks, ..kernel };
    let biased = |kernel: ExpertsSum| ExpertsSum { route: Route { biased: true, ..kernel.route }, ..kernel };
    let sigmoid =
        |kernel: ExpertsSum| ExpertsSum { route: Route { scoring: Scoring::Sigmoid, ..kernel.route }, ..kernel };
    let with_biases = |kernel| ExpertsSum { biased: true, ..kernel };
    let unstaged = ExpertsSum { warps: 8, staged: false, ..sum(8, 8, 8) };
    check_each(
        &[
            Sum::of(sum(6, 2, 1)),
            Sum::of(split(sum(6, 2, 2))),
            Sum::of(split(ExpertsSum { staged: false, late: true, depth: 3, ..sum(40, 3, 4) })),
            Sum { residual: false, ..Sum::of(unstaged) },
            // Shares of several pairs, in rings that they do and do not fill, over one block and over many.
            Sum::of(of(600, SIZES[2], ExpertsSum { depth: 5, blocks: 1, ..sum(70, 8, 1) })),
            Sum::of(split(of(768, SIZES[2], ExpertsSum { warps: 6, depth: 10, ..sum(32, 8, 1) }))),
            Sum::of(split(of(300, 70, ExpertsSum { warps: 6, depth: 4, blocks: 2, ..sum(12, 4, 2) }))),
            Sum::of(of(20, 5, ExpertsSum { blocks: 4, ..sum(3, 1, 4) })),
            Sum::of(split(biased(sigmoid(sum(66, 6, 2))))),
            Sum::of(biased(sum(12, 3, 1))),
            Sum::of(split(ExpertsSum { summed: true, ..sum(40, 3, 4) })),
            Sum::of(sum(70, 40, 1)),
            Sum::of(with_biases(sum(6, 2, 1))),
            Sum::of(with_biases(ExpertsSum { route: Route { scaled: true, ..route(6, 2) }, ..sum(6, 2, 2) })),
            Sum::of(with_biases(split(sum(40, 3, 4)))),
            Sum { residual: false, ..Sum::of(with_biases(split(of(300, 70, sum(66, 40, 1))))) },
        ],
        |case| &case.kernel,
        |case| case.check(None),
    )
}

#[test]
fn many_rows() -> Result<()> {
    let [k, features, outputs] = SIZES;
    let gated = |route: &Route, rows| Rows::inside(route.clone(), inside(k, features), Activation::Silu, rows, 1);
    let ungated = |route: &Route, k, features, rows, columns| {
        let tiles = Tiles { gated: false, ..inside(k, features) };
        Rows::inside(route.clone(), tiles, Activation::Relu, rows, columns)
    };
    let results =
        |route: &Route, rows, columns| Rows::by_pair(route.clone(), tiles(features, &[outputs]), rows, columns);
    let with_biases = |mut case: Rows, gating| {
        case.product.gating = gating;
        case.product.gather.iter_mut().for_each(|gather| gather.biased = true);
        case
    };
    let plain = route(6, 2);
    let wide = route(40, 3);
    let sigmoid = Route { scoring: Scoring::Sigmoid, normalise: false, ..route(4, 1) };
    let biased = Route { biased: true, scoring: Scoring::Sigmoid, ..route(40, 3) };
    // Every row goes to every expert; more rows than a warp has bits for in one go.
    let all = route(2, 2);
    for case in [
        gated(&plain, 16),
        results(&plain, 16, 1),
        gated(&wide, 70),
        results(&wide, 70, 1),
        with_biases(gated(&wide, 70), BOUNDED),
        with_biases(results(&wide, 70, 1), Gating::default()),
        ungated(&sigmoid, k, features, 40, 2),
        results(&sigmoid, 40, 2),
        gated(&biased, 70),
        gated(&Route { scaled: true, ..route(40, 3) }, 40),
        results(&biased, 70, 1),
        ungated(&all, 32, 16, 1040, 8),
        Rows::by_pair(all.clone(), tiles(16, &[16]), 1040, 8),
    ] {
        case.check([None, None]).map_err(|error| error.context(format!("{case:?}")))?;
    }
    Ok(())
}
