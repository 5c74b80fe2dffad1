//! `attention_wide.cu` against softmax in f64: rows of several sequences, whose keys and values are in the caches.

use anyhow::Result;
use fuse_kernels::{AttentionWide, Splits, Storage};
use fuse_tests::host_build::HostBuffer;

use crate::caught::caught;
use crate::matmul_wgmma::untiled;
use crate::support::*;

/// One attention, as the compiler may emit it.
#[derive(Clone, Debug)]
struct Case {
    kernel: AttentionWide,
    /// Of each row; the rows are of one sequence each, the last sequence first.
    positions: Vec<i32>,
}

fn plain(heads: usize, key_heads: usize, head_dim: usize) -> AttentionWide {
    AttentionWide {
        heads,
        key_heads,
        head_dim,
        value_dim: head_dim,
        latent: false,
        group: 1,
        splits: Splits { max: 1, keys: 16, window: 0, merged: 1 },
        scale: 2.0 / (head_dim as f32).sqrt(),
        softcap: None,
        sinks: false,
        out: Storage::F32,
    }
}

/// Values that are the first of their keys.
fn latent(heads: usize, head_dim: usize, value_dim: usize) -> AttentionWide {
    AttentionWide { value_dim, latent: true, ..plain(heads, 1, head_dim) }
}

impl Case {
    fn of(kernel: AttentionWide, positions: &[i32]) -> Case {
        Case { kernel, positions: positions.to_vec() }
    }

    fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let &AttentionWide { heads, key_heads, head_dim, value_dim, latent, splits, sinks, out: storage, .. } =
            &self.kernel;
        let rows = self.positions.len();
        let context = self.positions.iter().max().map_or(0, |&most| most as usize) + 3;
        let mut random = Random((head_dim * 100 + heads + rows) as u64);
        let (q, sink_logits) = (random.floats(rows * heads * head_dim), random.floats(heads));
        // NaN where a sequence has no keys.
        let sequences: Vec<i32> = (0..rows as i32).rev().collect();
        let mut cache = |dim: usize| {
            let padded = dim.next_multiple_of(8);
            let mut cache = vec![f32::NAN; rows * key_heads * context * padded];
            for (row, &position) in self.positions.iter().enumerate() {
                for head in 0..key_heads {
                    for at in 0..=position {
                        let place = (sequences[row] as usize * key_heads + head) * context + at as usize;
                        cache[place * padded..][..padded].fill(0.0);
                        cache[place * padded..][..dim].copy_from_slice(&random.rounded(dim));
                    }
                }
            }
            cache
        };
        let keys = cache(head_dim);
        let values = if latent { keys.clone() } else { cache(value_dim) };
        let mut expected = Vec::new();
        for (row, &position) in self.positions.iter().enumerate() {
            for head in 0..heads {
                let place = (sequences[row] as usize * key_heads + head / (heads / key_heads)) * context;
                let query = &q[(row * heads + head) * head_dim..][..head_dim];
                expected.extend(self.attended(
                    query,
                    position,
                    sinks.then(|| sink_logits[head].into()),
                    place,
                    [&keys, &values],
                ));
            }
        }

        let out = room(splits.max * rows * heads * value_dim, storage);
        let statistics = HostBuffer::output::<f32>(splits.max * rows * heads * 2);
        let (keys, values) = (HostBuffer::input(&to_bf16(&keys)), HostBuffer::input(&to_bf16(&values)));
        let (q, sink_logits) = (HostBuffer::input(&q), HostBuffer::input(&sink_logits));
        let (positions, sequences) = (HostBuffer::input(&self.positions), HostBuffer::input(&sequences));
        let mut arguments = vec![
            ("q", q.address()),
            ("key_cache", keys.address()),
            ("positions", positions.address()),
            ("sequences", sequences.address()),
            ("sinks", given(sinks, &sink_logits)),
            ("out", out.address()),
            ("statistics", given(splits.max > 1, &statistics)),
            ("context", context as u64),
            ("rows", rows as u64),
        ];
        arguments.extend((!latent).then(|| ("value_cache", values.address())));
        kernel.launch(rows, &arguments)?;
        if splits.max > 1 {
            return compare("attention", &expected, &self.combined(&out, &statistics)?, Bound::Exact);
        }
        match storage {
            Storage::Tiled => compare("attention", &expected, &untiled(&out.written()?, rows), Bound::Stored),
            Storage::F32 => compare("attention", &expected, &written(&out, storage)?, Bound::Exact),
            Storage::BF16 | Storage::F16 => compare("attention", &expected, &written(&out, storage)?, Bound::Stored),
        }
    }

    /// What the splits of each row come to, by their largest scores in powers of two.
    fn combined(&self, out: &HostBuffer, statistics: &HostBuffer) -> Result<Vec<f32>> {
        let AttentionWide { heads, value_dim, splits: Splits { max, keys, window, .. }, .. } = self.kernel;
        let (sums, statistics) = (out.values::<f32>()?, statistics.values::<f32>()?);
        let rows = self.positions.len();
        let mut combined = Vec::new();
        for (row, &position) in self.positions.iter().enumerate() {
            let seen = (position + 1) as usize;
            let seen = if window > 0 { seen.min(window) } else { seen };
            let used = seen.div_ceil(keys).min(max);
            for head in 0..heads {
                let at = |split: usize| (split * rows + row) * heads + head;
                let peak = (0..used).map(|split| statistics[2 * at(split)]).fold(f32::NEG_INFINITY, f32::max);
                let weight = |split: usize| {
                    f64::from(statistics[2 * at(split)] - peak).exp2() * f64::from(statistics[2 * at(split) + 1])
                };
                let total: f64 = (0..used).map(weight).sum();
                for d in 0..value_dim {
                    let sum: f64 =
                        (0..used).map(|split| weight(split) * f64::from(sums[at(split) * value_dim + d])).sum();
                    combined.push((sum / total) as f32);
                }
            }
        }
        Ok(combined)
    }

    fn attended(
        &self,
        query: &[f32],
        position: i32,
        sink: Option<f64>,
        place: usize,
        [keys, values]: [&[f32]; 2],
    ) -> Vec<f64> {
        let &AttentionWide { head_dim, value_dim, latent, splits, scale, softcap, .. } = &self.kernel;
        let padded = head_dim.next_multiple_of(8);
        let value_padded = if latent { padded } else { value_dim.next_multiple_of(8) };
        let end = (position + 1) as usize;
        let begin = if splits.window > 0 { end.saturating_sub(splits.window) } else { 0 };
        let scores: Vec<f64> = (begin..end)
            .map(|at| {
                let key = &keys[(place + at) * padded..];
                let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let score = dot * f64::from(scale);
                softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let peak = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - peak).exp());
        let value = |at: usize, d: usize| f64::from(values[(place + at) * value_padded + d]);
        let sum = |d: usize| (begin..end).zip(&weights).map(|(at, weight)| weight * value(at, d)).sum::<f64>();
        (0..value_dim).map(|d| if end > 0 { sum(d) / total } else { 0.0 }).collect()
    }
}

#[test]
fn wide_heads_and_latent_values() -> Result<()> {
    let split =
        |max, keys, kernel: AttentionWide| AttentionWide { splits: Splits { max, keys, ..kernel.splits }, ..kernel };
    let window = |window, kernel: AttentionWide| AttentionWide { splits: Splits { window, ..kernel.splits }, ..kernel };
    let group = |group, kernel| AttentionWide { group, ..kernel };
    let cases = [
        Case::of(group(2, plain(4, 2, 264)), &[20, 3]),
        Case::of(group(4, split(3, 8, plain(4, 1, 512))), &[37, 5]),
        Case::of(group(2, window(9, AttentionWide { sinks: true, ..plain(2, 1, 260) })), &[40, 4]),
        Case::of(AttentionWide { softcap: Some(1.5), ..window(12, split(2, 4, plain(2, 2, 272))) }, &[30]),
        Case::of(AttentionWide { value_dim: 40, ..plain(2, 1, 24) }, &[18, 2]),
        Case::of(group(4, latent(4, 576, 512)), &[19]),
        Case::of(group(2, split(4, 6, latent(6, 44, 36))), &[33, 2, 9]),
        // Rows of prompts: some at no position, results in 16 bits and in tiles.
        Case::of(AttentionWide { out: Storage::BF16, ..group(2, latent(2, 40, 32)) }, &[-1, 7, 12]),
        Case::of(AttentionWide { out: Storage::Tiled, ..group(2, plain(2, 1, 320)) }, &[-1, 4, 8, 1]),
    ];
    check_each(&cases, |case| &case.kernel, |case| case.check(None))
}

#[test]
fn in_a_wide_attention() {
    let kernel = AttentionWide {
        group: 2,
        splits: Splits { max: 2, keys: 20, window: 59, merged: 1 },
        sinks: true,
        ..latent(4, 300, 264)
    };
    let case = Case::of(kernel, &[70, 11]);
    caught(
        "in_a_wide_attention",
        |mutation| case.check(mutation),
        &[
            ("score[t] = base + t < end ? dot : NEGATIVE_INFINITY", "score[t] = dot", "attention"),
            ("first + split * share", "split * share", "attention"),
            ("sum[h][c][i] *= keep", "sum[h][c][i] *= 1.0f", "attention"),
            (", total[h] *= keep", "", "attention"),
            ("SINKS && split == 0", "SINKS", "attention"),
            ("chunk < chunks ? *((const Vec4*)row + chunk) : none", "*((const Vec4*)row + chunk)", "attention"),
            ("smaller(base + t, end - 1)", "base + t", "attention"),
            ("  block_barrier();\n  for (int i", "  for (int i", "shared memory"),
            ("first_head + h) * HEAD_DIM + at]", "first_head) * HEAD_DIM + at]", "attention"),
            ("key_head = first_head / (HEADS / KEY_HEADS)", "key_head = first_head", "buffer of"),
            ("base += AT_ONCE * WARPS", "base += WARPS", "attention"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
        ],
    );
}
