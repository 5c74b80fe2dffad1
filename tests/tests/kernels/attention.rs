//! `attention.cu` against softmax in f64, with what it does before: norm, rotation, append.

use anyhow::{Context, Result, ensure};
use askama::Template;
use fuse_templates::{Attention, Float, Heads, Rope, Splits, Storage};
use fuse_tests::host_build::{HostBuffer, HostKernel};

use crate::support::*;

/// Dimensions that rotate, interleaved, magnitude.
type Rotation = (usize, bool, f32);

/// One attention, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub group: usize,
    pub warps: usize,
    pub chains: usize,
    pub late: bool,
    pub splits: Splits,
    pub rope: Option<Rotation>,
    pub softcap: f32,
    pub append: bool,
    pub norm: bool,
    /// Weights of the norms of q and k; under `norm`.
    pub norm_weights: bool,
    pub sinks: bool,
    pub out_type: Storage,
    /// Position and sequence of each row; -1: skipped.
    pub rows: Vec<(i32, i32)>,
}

/// Floats that a launch sets to zero beside its work.
pub const ZEROS: usize = 700;
/// Enough keys for several rounds of every stream of a block.
pub const CONTEXT: usize = 300;

impl Case {
    pub fn new(heads: usize, key_heads: usize, head_dim: usize) -> Case {
        Case {
            heads,
            key_heads,
            head_dim,
            group: heads / key_heads,
            warps: 4,
            chains: 2,
            late: false,
            splits: Splits { max: 1, keys: 16, window: 0 },
            rope: None,
            softcap: 0.0,
            append: false,
            norm: false,
            norm_weights: true,
            sinks: false,
            out_type: Storage::F32,
            rows: vec![(270, 0), (0, 1)],
        }
    }

    pub fn source(&self) -> String {
        Attention {
            name: "kernel".into(),
            splits: self.splits.clone(),
            rope: self.rope_template(),
            attention: self.heads_template(),
            out_type: self.out_type,
        }
        .render()
        .expect("the template renders")
    }

    pub fn rope_template(&self) -> Rope {
        self.rope.map_or_else(Rope::none, |(dim, interleaved, magnitude)| {
            Rope::new(&frequencies(dim), dim, interleaved, magnitude)
        })
    }

    pub fn heads_template(&self) -> Heads {
        Heads {
            heads: self.heads,
            key_heads: self.key_heads,
            head_dim: self.head_dim,
            group: self.group,
            warps: self.warps,
            chains: self.chains,
            late: self.late,
            scale: Float(self.scale()),
            softcap: Float(self.softcap),
            append: self.append,
            norm: self.norm,
            eps_q: Float(1e-5),
            eps_k: Float(1e-6),
            sinks: self.sinks,
        }
    }

    pub fn scale(&self) -> f32 {
        2.0 / (self.head_dim as f32).sqrt()
    }

    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }

    /// One head as the softmax sees it.
    fn transformed(&self, head: &[f32], weight: &[f32], eps: f64, position: i32) -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|&value| f64::from(value)).collect();
        if !self.append {
            return head;
        }
        if self.norm {
            let mean = head.iter().map(|value| value * value).sum::<f64>() / head.len() as f64;
            for (value, &weight) in head.iter_mut().zip(weight) {
                *value *= if self.norm_weights { f64::from(weight) } else { 1.0 } / (mean + eps).sqrt();
            }
        }
        match self.rope {
            Some(rotation) => rotated(&head, position, rotation),
            None => head,
        }
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let (rows, heads, dim) = (self.rows.len(), self.heads, self.head_dim);
        let mut problem = Problem::new(self);
        let inputs = Inputs::new(self, &problem);
        let splits = self.splits.max;
        let size = if self.out_type == Storage::F32 { 4 } else { 2 };
        let out = HostBuffer::output::<u8>(splits * rows * heads * dim * size);
        let statistics = HostBuffer::output::<f32>(splits * rows * heads * 2);
        let zeros = HostBuffer::output::<f32>(ZEROS);
        let mut arguments = inputs.arguments();
        arguments.extend([
            out.address(),
            if splits > 1 { statistics.address() } else { 0 },
            CONTEXT as u64,
            zeros.address(),
            ZEROS as u64,
        ]);
        let grid = [(heads / self.group) as u32, splits as u32, rows as u32];
        kernel.launch(grid, 32 * self.warps as u32, 0, &arguments)?;
        check_zeros(&zeros)?;
        problem.check_caches(self, &inputs.caches)?;

        let mut expected = Vec::new();
        let mut got = Vec::new();
        let parts = match self.out_type {
            Storage::F32 => out.values::<f32>()?,
            Storage::BF16 => from_bf16(&out.values::<u16>()?),
        };
        let statistics = statistics.values::<f32>()?;
        for (row, &(position, _)) in self.rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
            for head in 0..heads {
                expected.extend(problem.attended(self, row, head));
                let at = |split: usize| (split * rows + row) * heads + head;
                if splits == 1 {
                    got.extend_from_slice(&parts[at(0) * dim..][..dim]);
                } else {
                    let seen = position as usize + 1 - self.first_key(position);
                    let active = seen.div_ceil(self.splits.keys).min(splits);
                    let peak = (0..active).map(|split| statistics[2 * at(split)]).fold(f32::NEG_INFINITY, f32::max);
                    let weight = |split: usize| (statistics[2 * at(split)] - peak).exp2();
                    let total: f32 = (0..active).map(|split| weight(split) * statistics[2 * at(split) + 1]).sum();
                    got.extend((0..dim).map(|d| {
                        (0..active).map(|split| weight(split) * parts[at(split) * dim + d]).sum::<f32>() / total
                    }));
                }
            }
        }
        let bound = if self.out_type == Storage::BF16 { Bound::Rounded } else { Bound::Exact };
        compare("attention", &expected, &got, bound)
    }

    fn first_key(&self, position: i32) -> usize {
        match self.splits.window {
            0 => 0,
            window => (position + 1 - window as i32).max(0) as usize,
        }
    }
}

pub fn check_zeros(zeros: &HostBuffer) -> Result<()> {
    let left = zeros.written::<f32>()?.iter().filter(|&&value| value != 0.0).count();
    ensure!(left == 0, "{left} of {ZEROS} zeros are not zero");
    Ok(())
}

/// The values of a case.
pub struct Problem {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    sinks: Vec<f32>,
    /// Keys and values: NaN beyond the live ones.
    caches: [Vec<f32>; 2],
}

impl Problem {
    pub fn new(case: &Case) -> Problem {
        let (rows, key_heads, dim, padded) = (case.rows.len(), case.key_heads, case.head_dim, case.padded());
        let mut random = Random(dim as u64 * 100 + case.heads as u64);
        let q = random.floats(rows * case.heads * dim);
        let k = random.floats(rows * key_heads * dim);
        let v = random.floats(rows * key_heads * dim);
        let (q_weight, k_weight, sinks) = (random.floats(dim), random.floats(dim), random.floats(case.heads));
        let sequences = 1 + case.rows.iter().map(|row| row.1).max().expect("a row") as usize;
        let caches = [random, Random(5)].map(|mut random| {
            let mut cache = vec![f32::NAN; sequences * key_heads * CONTEXT * padded];
            for &(position, sequence) in &case.rows {
                for head in 0..key_heads {
                    for at in 0..(position + i32::from(!case.append)).max(0) as usize {
                        let from = ((sequence as usize * key_heads + head) * CONTEXT + at) * padded;
                        cache[from..from + padded].fill(0.0);
                        cache[from..from + dim].copy_from_slice(&random.rounded(dim));
                    }
                }
            }
            cache
        });
        Problem { q, k, v, q_weight, k_weight, sinks, caches }
    }

    /// Checks the caches after a launch: the appended rows are there, all else is as it was. Takes over what they hold.
    pub fn check_caches(&mut self, case: &Case, buffers: &[HostBuffer; 2]) -> Result<()> {
        let (key_heads, dim, padded) = (case.key_heads, case.head_dim, case.padded());
        for (row, &(position, sequence)) in case.rows.iter().enumerate() {
            for head in (0..key_heads).filter(|_| case.append && position >= 0) {
                let from = (row * key_heads + head) * dim;
                let fresh = case.transformed(&self.k[from..from + dim], &self.k_weight, 1e-6, position);
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
    pub fn attended(&self, case: &Case, row: usize, head: usize) -> Vec<f64> {
        let (heads, key_heads, dim, padded) = (case.heads, case.key_heads, case.head_dim, case.padded());
        let (position, sequence) = case.rows[row];
        if position < 0 {
            return vec![0.0; dim];
        }
        let from = (row * heads + head) * dim;
        let query = case.transformed(&self.q[from..from + dim], &self.q_weight, 1e-5, position);
        let key_head = head / (heads / key_heads);
        let sink = if case.sinks { f64::from(self.sinks[head]).exp() } else { 0.0 };
        let (mut total, mut sum) = (sink, vec![0.0; dim]);
        for at in case.first_key(position)..=position as usize {
            let from = ((sequence as usize * key_heads + key_head) * CONTEXT + at) * padded;
            let dot: f64 = query.iter().zip(&self.caches[0][from..]).map(|(q, &k)| q * f64::from(k)).sum();
            let mut score = dot * f64::from(case.scale());
            if case.softcap > 0.0 {
                score = f64::from(case.softcap) * (score / f64::from(case.softcap)).tanh();
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
    given: [bool; 3],
}

impl Inputs {
    pub fn new(case: &Case, problem: &Problem) -> Inputs {
        let weights = case.norm && case.norm_weights;
        let places = [|row: &(i32, i32)| row.0, |row: &(i32, i32)| row.1];
        Inputs {
            caches: problem.caches.each_ref().map(|cache| HostBuffer::inout(&to_bf16(cache))),
            rows: [&problem.q, &problem.k, &problem.v].map(|values| HostBuffer::input(values)),
            places: places.map(|of| HostBuffer::input(&case.rows.iter().map(of).collect::<Vec<i32>>())),
            vectors: [&problem.q_weight, &problem.k_weight, &problem.sinks].map(|values| HostBuffer::input(values)),
            given: [case.append, weights, case.sinks],
        }
    }

    /// q, k, v, both caches, positions, sequences, the norms' weights and the sinks; null where the case has none.
    pub fn arguments(&self) -> Vec<u64> {
        let [append, weights, sinks] = self.given;
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        vec![
            self.rows[0].address(),
            given(append, &self.rows[1]),
            given(append, &self.rows[2]),
            self.caches[0].address(),
            self.caches[1].address(),
            self.places[0].address(),
            self.places[1].address(),
            given(weights, &self.vectors[0]),
            given(weights, &self.vectors[1]),
            given(sinks, &self.vectors[2]),
        ]
    }
}

/// Angles a position: 10000^(-2i / dim).
pub fn frequencies(dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / dim as f32)).collect()
}

/// A head turned by a position. The angle is rounded to fp32 before its sine is taken.
pub fn rotated(head: &[f64], position: i32, (dim, interleaved, magnitude): Rotation) -> Vec<f64> {
    let mut turned = head.to_vec();
    for (pair, frequency) in frequencies(dim).into_iter().enumerate() {
        let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
        let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + dim / 2) };
        turned[a] = f64::from(magnitude) * (head[a] * cosine - head[b] * sine);
        turned[b] = f64::from(magnitude) * (head[b] * cosine + head[a] * sine);
    }
    turned
}

fn check_all(cases: &[Case]) -> Result<()> {
    let sources: Vec<(String, String)> = cases.iter().map(|case| (case.source(), "kernel".into())).collect();
    HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

#[test]
fn head_sizes_and_groups() -> Result<()> {
    check_all(&[
        Case::new(3, 1, 12),
        Case::new(4, 2, 20),
        Case { warps: 2, chains: 1, ..Case::new(2, 2, 80) },
        Case { out_type: Storage::BF16, ..Case::new(2, 1, 96) },
        Case { group: 2, ..Case::new(8, 2, 16) },
        Case { group: 1, warps: 1, ..Case::new(3, 1, 8) },
        Case { warps: 8, ..Case::new(2, 1, 256) },
        Case { rows: vec![(5, 1), (-1, 0), (299, 0)], ..Case::new(4, 2, 64) },
    ])
}

#[test]
fn appends_normalises_and_rotates() -> Result<()> {
    check_all(&[
        Case { append: true, ..Case::new(3, 3, 20) },
        Case { append: true, rope: Some((64, false, 1.0)), late: true, ..Case::new(6, 2, 64) },
        Case { append: true, rope: Some((12, true, 1.25)), ..Case::new(4, 1, 12) },
        Case { append: true, rope: Some((32, false, 1.0)), norm: true, ..Case::new(4, 2, 80) },
        // A head so wide that a lane holds keys or values.
        Case { append: true, rope: Some((64, false, 1.0)), warps: 2, ..Case::new(2, 1, 144) },
        // A layer without RoPE.
        Case { append: true, norm: true, ..Case::new(4, 2, 24) },
        Case { append: true, norm: true, norm_weights: false, rope: Some((20, false, 1.0)), ..Case::new(2, 1, 20) },
        Case {
            append: true,
            norm: true,
            group: 2,
            rope: Some((8, true, 1.0)),
            rows: vec![(140, 2), (-1, 0), (0, 1)],
            ..Case::new(8, 2, 24)
        },
    ])
}

#[test]
fn splits_windows_caps_and_sinks() -> Result<()> {
    let splits = |max, keys, window| Splits { max, keys, window };
    check_all(&[
        Case { splits: splits(3, 4, 0), ..Case::new(4, 2, 20) },
        // Five keys in four splits of two: the last is empty.
        Case { splits: splits(4, 1, 0), append: true, late: true, rows: vec![(4, 0)], ..Case::new(2, 1, 16) },
        // The newest key is alone in its split; then alone in the cache; then in the last round of a long split.
        Case { splits: splits(3, 2, 0), append: true, rows: vec![(4, 0), (0, 1), (6, 2)], ..Case::new(4, 2, 16) },
        Case { splits: splits(2, 100, 0), append: true, rows: vec![(128, 0), (256, 1)], ..Case::new(2, 1, 64) },
        // Groups that share a key head each store the newest key.
        Case { splits: splits(4, 4, 0), append: true, group: 1, rows: vec![(12, 0), (15, 1)], ..Case::new(4, 1, 20) },
        Case { splits: splits(1, 8, 1), append: true, rows: vec![(9, 0)], ..Case::new(2, 1, 16) },
        Case { splits: splits(1, 8, 7), ..Case::new(4, 2, 20) },
        Case {
            splits: splits(4, 2, 9),
            append: true,
            rope: Some((20, false, 1.0)),
            rows: vec![(30, 0), (3, 1), (9, 2), (-1, 3)],
            ..Case::new(4, 2, 20)
        },
        Case { softcap: 1.5, ..Case::new(4, 2, 20) },
        Case { sinks: true, ..Case::new(4, 2, 20) },
        Case { sinks: true, softcap: 3.0, splits: splits(3, 4, 12), ..Case::new(6, 2, 32) },
    ])
}
