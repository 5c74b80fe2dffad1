//! `attention.cu` against softmax in f64, with what it does before: norm, rotation, append.

use anyhow::{Result, ensure};
use fuse_kernels::{Attention, Heads, RopeTable, Splits, Storage};
use fuse_tests::host_build::HostBuffer;

use crate::support::*;

/// One attention, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Attention,
    /// The norms of q and k have weights; under `norm`.
    pub norm_weights: bool,
    /// Position and sequence of each row; -1: skipped.
    pub rows: Vec<(i32, i32)>,
}

/// Floats that a launch sets to zero beside its work.
pub const ZEROS: usize = 700;
/// Enough keys for several rounds of every stream of a block.
pub const CONTEXT: usize = 300;
/// Epsilons of the norms of q and k.
pub const NORM: Option<(f32, f32)> = Some((1e-5, 1e-6));

/// Heads that do nothing but attend, to all keys in one block.
pub fn plain(heads: usize, key_heads: usize, head_dim: usize) -> Heads {
    Heads {
        heads,
        key_heads,
        head_dim,
        group: heads / key_heads,
        warps: 4,
        splits: Splits { max: 1, keys: 16, window: 0, merged: 1 },
        chains: 2,
        held: 1,
        late: false,
        scale: 2.0 / (head_dim as f32).sqrt(),
        softcap: None,
        append: false,
        norm: None,
        rope: None,
        sinks: false,
    }
}

/// Heads whose keys and values are appended first.
pub fn appending(heads: usize, key_heads: usize, head_dim: usize) -> Heads {
    Heads { append: true, ..plain(heads, key_heads, head_dim) }
}

impl Case {
    pub fn of(attention: Heads) -> Case {
        let kernel = Attention { attention, out: Storage::F32 };
        Case { kernel, norm_weights: true, rows: vec![(270, 0), (0, 1)] }
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let Attention { attention, out: storage } = &self.kernel;
        let &Heads { heads, head_dim: dim, splits, .. } = attention;
        let left = splits.left();
        let rows = self.rows.len();
        let mut problem = Problem::new(attention, self.norm_weights, &self.rows);
        let inputs = Inputs::new(&problem);
        let out = room(left * rows * heads * dim, *storage);
        let statistics = HostBuffer::output::<f32>(left * rows * heads * 2);
        let zeros = HostBuffer::output::<f32>(ZEROS);
        let mut arguments = inputs.arguments();
        arguments.extend([("out", out.address()), ("statistics", given(left > 1, &statistics))]);
        arguments.extend([("zeros", zeros.address()), ("zero_count", ZEROS as u64)]);
        kernel.launch(rows, &arguments)?;
        check_zeros(&zeros)?;
        problem.check_caches(&inputs.caches)?;

        let mut expected = Vec::new();
        let mut got = Vec::new();
        let parts = match storage {
            Storage::F32 => out.values::<f32>()?,
            Storage::BF16 => from_bf16(&out.values::<u16>()?),
            Storage::F16 | Storage::Tiled => from_f16(&out.values::<u16>()?),
        };
        let statistics = statistics.values::<f32>()?;
        for (row, &(position, _)) in self.rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
            for head in 0..heads {
                expected.extend(problem.attended(row, head));
                let at = |split: usize| (split * rows + row) * heads + head;
                if left == 1 {
                    got.extend_from_slice(&parts[at(0) * dim..][..dim]);
                } else {
                    let seen = position as usize + 1 - problem.first_key(position);
                    let active = seen.div_ceil(splits.keys).min(splits.max).div_ceil(splits.merged);
                    let peak = (0..active).map(|split| statistics[2 * at(split)]).fold(f32::NEG_INFINITY, f32::max);
                    let weight =
                        |split: usize| (statistics[2 * at(split)] - peak).exp2() * statistics[2 * at(split) + 1];
                    let total: f32 = (0..active).map(weight).sum();
                    got.extend((0..dim).map(|d| {
                        (0..active).map(|split| weight(split) * parts[at(split) * dim + d]).sum::<f32>() / total
                    }));
                }
            }
        }
        let bound = if *storage != Storage::F32 { Bound::Rounded } else { Bound::Exact };
        compare("attention", &expected, &got, bound)
    }
}

pub fn check_zeros(zeros: &HostBuffer) -> Result<()> {
    let left = zeros.written::<f32>()?.iter().filter(|&&value| value != 0.0).count();
    ensure!(left == 0, "{left} of {ZEROS} zeros are not zero");
    Ok(())
}

/// What some heads are given, and what they should make of it.
pub struct Problem<'a> {
    attention: &'a Heads,
    norm_weights: bool,
    /// Position and sequence of each row.
    places: &'a [(i32, i32)],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    sinks: Vec<f32>,
    /// Keys and values: NaN beyond the live ones.
    caches: [Vec<f32>; 2],
}

impl<'a> Problem<'a> {
    pub fn new(attention: &'a Heads, norm_weights: bool, places: &'a [(i32, i32)]) -> Problem<'a> {
        let &Heads { heads, key_heads, head_dim: dim, append, .. } = attention;
        let (rows, padded) = (places.len(), dim.next_multiple_of(8));
        let mut random = Random(dim as u64 * 100 + heads as u64);
        let q = random.floats(rows * heads * dim);
        let k = random.floats(rows * key_heads * dim);
        let v = random.floats(rows * key_heads * dim);
        let (q_weight, k_weight, sinks) = (random.floats(dim), random.floats(dim), random.floats(heads));
        let sequences = 1 + places.iter().map(|row| row.1).max().expect("a row") as usize;
        let caches = [random, Random(5)].map(|mut random| {
            let mut cache = vec![f32::NAN; sequences * key_heads * CONTEXT * padded];
            for &(position, sequence) in places {
                for head in 0..key_heads {
                    for at in 0..(position + i32::from(!append)).max(0) as usize {
                        let from = ((sequence as usize * key_heads + head) * CONTEXT + at) * padded;
                        cache[from..from + padded].fill(0.0);
                        cache[from..from + dim].copy_from_slice(&random.rounded(dim));
                    }
                }
            }
            cache
        });
        Problem { attention, norm_weights, places, q, k, v, q_weight, k_weight, sinks, caches }
    }

    fn padded(&self) -> usize {
        self.attention.head_dim.next_multiple_of(8)
    }

    fn first_key(&self, position: i32) -> usize {
        match self.attention.splits.window {
            0 => 0,
            window => (position + 1 - window as i32).max(0) as usize,
        }
    }

    /// One head as the softmax sees it.
    fn transformed(&self, head: &[f32], weight: &[f32], eps: Option<f32>, position: i32) -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|&value| f64::from(value)).collect();
        if !self.attention.append {
            return head;
        }
        if let Some(eps) = eps {
            let mean = head.iter().map(|value| value * value).sum::<f64>() / head.len() as f64;
            for (value, &weight) in head.iter_mut().zip(weight) {
                let weight = if self.norm_weights { f64::from(weight) } else { 1.0 };
                *value *= weight / (mean + f64::from(eps)).sqrt();
            }
        }
        match &self.attention.rope {
            Some(rope) => rotated(&head, position, rope),
            None => head,
        }
    }

    /// Checks the caches after a launch: the appended rows are there, all else is as it was. Takes over what they hold.
    pub fn check_caches(&mut self, buffers: &[HostBuffer; 2]) -> Result<()> {
        let &Heads { key_heads, head_dim: dim, append, norm, .. } = self.attention;
        let padded = self.padded();
        for (row, &(position, sequence)) in self.places.iter().enumerate() {
            for head in (0..key_heads).filter(|_| append && position >= 0) {
                let from = (row * key_heads + head) * dim;
                let eps = norm.map(|(_, eps)| eps);
                let fresh = self.transformed(&self.k[from..from + dim], &self.k_weight, eps, position);
                let value = self.v[from..from + dim].iter().map(|&v| v.into()).collect();
                let at = ((sequence as usize * key_heads + head) * CONTEXT + position as usize) * padded;
                for (cache, fresh) in self.caches.iter_mut().zip([fresh, value]) {
                    cache[at..at + padded].fill(0.0);
                    for (to, value) in cache[at..].iter_mut().zip(fresh) {
                        *to = round(value as f32);
                    }
                }
            }
        }
        for (name, (cache, buffer)) in ["keys", "values"].into_iter().zip(self.caches.iter_mut().zip(buffers)) {
            let got = from_bf16(&buffer.values::<u16>()?);
            ensure!(
                cache.iter().zip(&got).all(|(a, b)| a.is_nan() == b.is_nan()),
                "{name}: other places of the cache were written than the appended ones"
            );
            let numbers =
                |values: &[f32]| values.iter().map(|&v| if v.is_nan() { 0.0 } else { v }).collect::<Vec<f32>>();
            let expected: Vec<f64> = numbers(cache).iter().map(|&value| value.into()).collect();
            compare(name, &expected, &numbers(&got), Bound::Rounded)?;
            *cache = got;
        }
        Ok(())
    }

    /// What a head of a row makes of the keys in the caches: nothing at position -1.
    pub fn attended(&self, row: usize, head: usize) -> Vec<f64> {
        let &Heads { heads, key_heads, head_dim: dim, scale, softcap, norm, sinks, .. } = self.attention;
        let padded = self.padded();
        let (position, sequence) = self.places[row];
        if position < 0 {
            return vec![0.0; dim];
        }
        let from = (row * heads + head) * dim;
        let eps = norm.map(|(eps, _)| eps);
        let query = self.transformed(&self.q[from..from + dim], &self.q_weight, eps, position);
        let key_head = head / (heads / key_heads);
        let sink = if sinks { f64::from(self.sinks[head]).exp() } else { 0.0 };
        let (mut total, mut sum) = (sink, vec![0.0; dim]);
        for at in self.first_key(position)..=position as usize {
            let from = ((sequence as usize * key_heads + key_head) * CONTEXT + at) * padded;
            let dot: f64 = query.iter().zip(&self.caches[0][from..]).map(|(q, &k)| q * f64::from(k)).sum();
            let mut score = dot * f64::from(scale);
            if let Some(cap) = softcap.map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            total += score.exp();
            for (sum, &v) in sum.iter_mut().zip(&self.caches[1][from..]) {
                *sum += score.exp() * f64::from(v);
            }
        }
        sum.iter().map(|sum| sum / total).collect()
    }
}

/// A problem in memory: what every kernel that attends is given.
pub struct Inputs {
    pub caches: [HostBuffer; 2],
    rows: [HostBuffer; 3],
    places: [HostBuffer; 2],
    vectors: [HostBuffer; 3],
    has: [bool; 3],
}

impl Inputs {
    pub fn new(problem: &Problem<'_>) -> Inputs {
        let attention = problem.attention;
        let weights = attention.norm.is_some() && problem.norm_weights;
        let places = [|row: &(i32, i32)| row.0, |row: &(i32, i32)| row.1];
        Inputs {
            caches: problem.caches.each_ref().map(|cache| HostBuffer::inout(&to_bf16(cache))),
            rows: [&problem.q, &problem.k, &problem.v].map(|values| HostBuffer::input(values)),
            places: places.map(|of| HostBuffer::input(&problem.places.iter().map(of).collect::<Vec<i32>>())),
            vectors: [&problem.q_weight, &problem.k_weight, &problem.sinks].map(|values| HostBuffer::input(values)),
            has: [attention.append, weights, attention.sinks],
        }
    }

    /// q, k, v, both caches, positions, sequences, the norms' weights and the sinks; null where the case has none.
    pub fn arguments(&self) -> Vec<(&'static str, u64)> {
        let [append, weights, sinks] = self.has;
        vec![
            ("q", self.rows[0].address()),
            ("k", given(append, &self.rows[1])),
            ("v", given(append, &self.rows[2])),
            ("key_cache", self.caches[0].address()),
            ("value_cache", self.caches[1].address()),
            ("context", CONTEXT as u64),
            ("positions", self.places[0].address()),
            ("sequences", self.places[1].address()),
            ("q_weight", given(weights, &self.vectors[0])),
            ("k_weight", given(weights, &self.vectors[1])),
            ("sinks", given(sinks, &self.vectors[2])),
        ]
    }
}

/// A rotation of the first `dim` values of a head. Angles a position: 10000^(-2i / dim).
pub fn rotation(dim: usize, interleaved: bool, magnitude: f32) -> RopeTable {
    let frequencies = (0..dim / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / dim as f32)).collect();
    RopeTable { dim, interleaved, frequencies, magnitude }
}

/// A head turned by a position. The angle is rounded to fp32 before its sine is taken.
pub fn rotated(head: &[f64], position: i32, table: &RopeTable) -> Vec<f64> {
    let &RopeTable { dim, interleaved, magnitude, .. } = table;
    let mut turned = head.to_vec();
    for (pair, &frequency) in table.frequencies.iter().enumerate() {
        let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
        let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + dim / 2) };
        turned[a] = f64::from(magnitude) * (head[a] * cosine - head[b] * sine);
        turned[b] = f64::from(magnitude) * (head[b] * cosine + head[a] * sine);
    }
    turned
}

fn check_all(cases: &[Case]) -> Result<()> {
    check_each(cases, |case| &case.kernel, |case| case.check(None))
}

#[test]
fn head_sizes_and_groups() -> Result<()> {
    check_all(&[
        Case::of(plain(3, 1, 12)),
        Case::of(plain(4, 2, 20)),
        Case::of(Heads { warps: 2, chains: 1, ..plain(2, 2, 80) }),
        Case { kernel: Attention { attention: plain(2, 1, 96), out: Storage::BF16 }, ..Case::of(plain(2, 1, 96)) },
        Case::of(Heads { group: 2, ..plain(8, 2, 16) }),
        Case::of(Heads { group: 1, warps: 1, ..plain(3, 1, 8) }),
        Case::of(Heads { warps: 8, ..plain(2, 1, 256) }),
        Case { rows: vec![(5, 1), (-1, 0), (299, 0)], ..Case::of(plain(4, 2, 64)) },
    ])
}

#[test]
fn appends_normalises_and_rotates() -> Result<()> {
    let rope = |dim, interleaved, magnitude| Some(rotation(dim, interleaved, magnitude));
    let unweighted = Heads { norm: NORM, rope: rope(20, false, 1.0), ..appending(2, 1, 20) };
    let grouped = Heads { norm: NORM, group: 2, rope: rope(8, true, 1.0), ..appending(8, 2, 24) };
    check_all(&[
        Case::of(appending(3, 3, 20)),
        Case::of(Heads { rope: rope(64, false, 1.0), late: true, ..appending(6, 2, 64) }),
        Case::of(Heads { rope: rope(12, true, 1.25), ..appending(4, 1, 12) }),
        Case::of(Heads { rope: rope(32, false, 1.0), norm: NORM, ..appending(4, 2, 80) }),
        // A head so wide that a lane holds keys or values.
        Case::of(Heads { rope: rope(64, false, 1.0), warps: 2, ..appending(2, 1, 144) }),
        // A layer without RoPE.
        Case::of(Heads { norm: NORM, ..appending(4, 2, 24) }),
        Case { norm_weights: false, ..Case::of(unweighted) },
        Case { rows: vec![(140, 2), (-1, 0), (0, 1)], ..Case::of(grouped) },
    ])
}

#[test]
fn splits_windows_caps_and_sinks() -> Result<()> {
    let splits = |max, keys, window, heads| Heads { splits: Splits { max, keys, window, merged: 1 }, ..heads };
    let at = |rows: &[(i32, i32)], heads| Case { rows: rows.to_vec(), ..Case::of(heads) };
    let rotated = Heads { rope: Some(rotation(20, false, 1.0)), ..appending(4, 2, 20) };
    check_all(&[
        Case::of(splits(3, 4, 0, plain(4, 2, 20))),
        // Five keys in four splits of two: the last is empty.
        at(&[(4, 0)], splits(4, 1, 0, Heads { late: true, ..appending(2, 1, 16) })),
        // The newest key is alone in its split; then alone in the cache; then in the last round of a long split.
        at(&[(4, 0), (0, 1), (6, 2)], splits(3, 2, 0, appending(4, 2, 16))),
        at(&[(128, 0), (256, 1)], splits(2, 100, 0, appending(2, 1, 64))),
        // Groups that share a key head each store the newest key.
        at(&[(12, 0), (15, 1)], splits(4, 4, 0, Heads { group: 1, ..appending(4, 1, 20) })),
        at(&[(9, 0)], splits(1, 8, 1, appending(2, 1, 16))),
        Case::of(splits(1, 8, 7, plain(4, 2, 20))),
        at(&[(30, 0), (3, 1), (9, 2), (-1, 3)], splits(4, 2, 9, rotated)),
        Case::of(Heads { softcap: Some(1.5), ..plain(4, 2, 20) }),
        Case::of(Heads { sinks: true, ..plain(4, 2, 20) }),
        Case::of(splits(3, 4, 12, Heads { sinks: true, softcap: Some(3.0), ..plain(6, 2, 32) })),
    ])
}

#[test]
fn several_tiles_in_flight() -> Result<()> {
    let at = |rows: &[(i32, i32)], heads| Case { rows: rows.to_vec(), ..Case::of(heads) };
    check_all(&[
        at(&[(270, 0), (4, 1), (-1, 2)], Heads { held: 3, ..appending(4, 2, 16) }),
        at(
            &[(127, 0), (128, 1)],
            Heads { held: 2, warps: 2, rope: Some(rotation(64, false, 1.0)), ..appending(4, 2, 64) },
        ),
        at(&[(200, 0), (33, 1)], Heads { held: 2, chains: 1, ..plain(4, 2, 80) }),
    ])
}

#[test]
fn splits_that_clusters_merge() -> Result<()> {
    let splits = |max, merged, keys, heads| Heads { splits: Splits { max, keys, window: 0, merged }, ..heads };
    let at = |rows: &[(i32, i32)], heads| Case { rows: rows.to_vec(), ..Case::of(heads) };
    let rotated = Heads { rope: Some(rotation(20, false, 1.0)), ..appending(4, 2, 20) };
    let mut rounded = at(&[(90, 0), (2, 1)], splits(4, 4, 8, plain(4, 2, 32)));
    rounded.kernel.out = Storage::F16;
    check_all(&[
        // All of a head's blocks; some of them with no keys, and rows that are skipped.
        at(&[(270, 0), (4, 1), (-1, 2)], splits(4, 4, 4, appending(4, 2, 16))),
        rounded,
        // Two and three clusters, of which some are not needed; shares of the results that blocks divide or not.
        at(&[(270, 0), (6, 1), (30, 2), (-1, 3)], splits(6, 3, 4, rotated)),
        at(&[(100, 0), (20, 1)], splits(6, 2, 4, Heads { sinks: true, ..appending(7, 1, 20) })),
        at(&[(250, 0)], splits(8, 8, 16, Heads { sinks: true, late: true, softcap: Some(1.5), ..plain(2, 1, 64) })),
    ])
}
