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
const ZEROS: usize = 700;
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
        let rope = self.rope.map_or_else(Rope::none, |(dim, interleaved, magnitude)| {
            Rope::new(&frequencies(dim), dim, interleaved, magnitude)
        });
        Attention {
            name: "kernel".into(),
            splits: self.splits.clone(),
            rope,
            attention: Heads {
                heads: self.heads,
                key_heads: self.key_heads,
                head_dim: self.head_dim,
                group: self.group,
                warps: self.warps,
                scale: Float(self.scale()),
                softcap: Float(self.softcap),
                append: self.append,
                norm: self.norm,
                eps_q: Float(1e-5),
                eps_k: Float(1e-6),
                sinks: self.sinks,
            },
            out_type: self.out_type,
        }
        .render()
        .expect("the template renders")
    }

    fn scale(&self) -> f32 {
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
        let (rows, heads, key_heads, dim, padded) =
            (self.rows.len(), self.heads, self.key_heads, self.head_dim, self.padded());
        let mut random = Random(dim as u64 * 100 + heads as u64);
        let q = random.floats(rows * heads * dim);
        let k = random.floats(rows * key_heads * dim);
        let v = random.floats(rows * key_heads * dim);
        let (q_weight, k_weight, sinks) = (random.floats(dim), random.floats(dim), random.floats(heads));
        let sequences = 1 + self.rows.iter().map(|row| row.1).max().expect("a row") as usize;

        // Caches hold the earlier keys; everything beyond is NaN and stays so.
        let mut caches = [random, Random(5)].map(|mut random| {
            let mut cache = vec![f32::NAN; sequences * key_heads * CONTEXT * padded];
            for &(position, sequence) in &self.rows {
                for head in 0..key_heads {
                    for at in 0..(position + i32::from(!self.append)).max(0) as usize {
                        let from = ((sequence as usize * key_heads + head) * CONTEXT + at) * padded;
                        cache[from..from + padded].fill(0.0);
                        cache[from..from + dim].copy_from_slice(&random.rounded(dim));
                    }
                }
            }
            cache
        });
        let buffers = caches.each_ref().map(|cache| HostBuffer::inout(&to_bf16(cache)));

        let (q_buffer, k_buffer, v_buffer) = (HostBuffer::input(&q), HostBuffer::input(&k), HostBuffer::input(&v));
        let (q_norm, k_norm) = (HostBuffer::input(&q_weight), HostBuffer::input(&k_weight));
        let sink_buffer = HostBuffer::input(&sinks);
        let positions: Vec<i32> = self.rows.iter().map(|row| row.0).collect();
        let sequence_of: Vec<i32> = self.rows.iter().map(|row| row.1).collect();
        let (positions_buffer, sequences_buffer) = (HostBuffer::input(&positions), HostBuffer::input(&sequence_of));
        let splits = self.splits.max;
        let size = if self.out_type == Storage::F32 { 4 } else { 2 };
        let out = HostBuffer::output::<u8>(splits * rows * heads * dim * size);
        let statistics = HostBuffer::output::<f32>(splits * rows * heads * 2);
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        let zeros = HostBuffer::output::<f32>(ZEROS);
        kernel.launch(
            [(heads / self.group) as u32, splits as u32, rows as u32],
            32 * self.warps as u32,
            0,
            &[
                q_buffer.address(),
                given(self.append, &k_buffer),
                given(self.append, &v_buffer),
                buffers[0].address(),
                buffers[1].address(),
                positions_buffer.address(),
                sequences_buffer.address(),
                given(self.norm && self.norm_weights, &q_norm),
                given(self.norm && self.norm_weights, &k_norm),
                given(self.sinks, &sink_buffer),
                out.address(),
                given(splits > 1, &statistics),
                CONTEXT as u64,
                zeros.address(),
                ZEROS as u64,
            ],
        )?;
        let left = zeros.written::<f32>()?.iter().filter(|&&value| value != 0.0).count();
        anyhow::ensure!(left == 0, "{left} of {ZEROS} zeros are not zero");

        // The caches afterwards: the appended row is there, all else as it was.
        for (row, &(position, sequence)) in self.rows.iter().enumerate() {
            for head in (0..key_heads).filter(|_| self.append && position >= 0) {
                let from = (row * key_heads + head) * dim;
                let fresh = self.transformed(&k[from..from + dim], &k_weight, 1e-6, position);
                let at = ((sequence as usize * key_heads + head) * CONTEXT + position as usize) * padded;
                for (cache, fresh) in
                    caches.iter_mut().zip([fresh, v[from..from + dim].iter().map(|&v| v.into()).collect()])
                {
                    cache[at..at + padded].fill(0.0);
                    for (to, value) in cache[at..].iter_mut().zip(fresh) {
                        *to = round(value as f32);
                    }
                }
            }
        }
        let mut after = Vec::new();
        for (name, cache, buffer) in [("keys", &caches[0], &buffers[0]), ("values", &caches[1], &buffers[1])] {
            let got = from_bf16(&buffer.values::<u16>()?);
            ensure!(
                cache.iter().zip(&got).all(|(a, b)| a.is_nan() == b.is_nan()),
                "{name}: other places of the cache were written than the appended ones"
            );
            let numbers =
                |values: &[f32]| values.iter().map(|&v| if v.is_nan() { 0.0 } else { v }).collect::<Vec<f32>>();
            let expected: Vec<f64> = numbers(cache).iter().map(|&value| value.into()).collect();
            compare(name, &expected, &numbers(&got), Bound::Rounded)?;
            after.push(got);
        }

        // Attention over what the cache holds.
        let mut expected = Vec::new();
        let mut got = Vec::new();
        let parts = match self.out_type {
            Storage::F32 => out.values::<f32>()?,
            Storage::BF16 => from_bf16(&out.values::<u16>()?),
        };
        let statistics = statistics.values::<f32>()?;
        for (row, &(position, sequence)) in self.rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
            for (head, &sink) in sinks.iter().enumerate() {
                let from = (row * heads + head) * dim;
                let query = self.transformed(&q[from..from + dim], &q_weight, 1e-5, position);
                let key_head = head / (heads / key_heads);
                let first = match self.splits.window {
                    0 => 0,
                    window => (position + 1 - window as i32).max(0),
                };
                let (mut total, mut sum) = (if self.sinks { f64::from(sink).exp() } else { 0.0 }, vec![0.0; dim]);
                for at in first as usize..=position as usize {
                    let from = ((sequence as usize * key_heads + key_head) * CONTEXT + at) * padded;
                    let dot: f64 = query.iter().zip(&after[0][from..]).map(|(q, &k)| q * f64::from(k)).sum();
                    let mut score = dot * f64::from(self.scale());
                    if self.softcap > 0.0 {
                        score = f64::from(self.softcap) * (score / f64::from(self.softcap)).tanh();
                    }
                    total += score.exp();
                    for (sum, &v) in sum.iter_mut().zip(&after[1][from..]) {
                        *sum += score.exp() * f64::from(v);
                    }
                }
                expected.extend(sum.iter().map(|sum| sum / total));
                let at = |split: usize| (split * rows + row) * heads + head;
                if splits == 1 {
                    got.extend_from_slice(&parts[at(0) * dim..][..dim]);
                } else {
                    let seen = position as usize + 1 - first as usize;
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
        Case { warps: 2, ..Case::new(2, 2, 80) },
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
        Case { append: true, rope: Some((64, false, 1.0)), ..Case::new(6, 2, 64) },
        Case { append: true, rope: Some((12, true, 1.25)), ..Case::new(4, 1, 12) },
        Case { append: true, rope: Some((32, false, 1.0)), norm: true, ..Case::new(4, 2, 80) },
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
        Case { splits: splits(4, 1, 0), append: true, rows: vec![(4, 0)], ..Case::new(2, 1, 16) },
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
