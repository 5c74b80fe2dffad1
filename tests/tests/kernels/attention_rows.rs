//! `attention_rows.cu` against softmax in f64: many rows of one sequence, whose keys and values are in the caches.

use anyhow::Result;
use fuse_kernels::{AttentionRows, Storage};
use fuse_tests::host_build::HostBuffer;

use crate::matmul_wgmma::untiled;
use crate::support::*;

/// One attention, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: AttentionRows,
    pub rows: usize,
    /// Rows before them at position -1.
    pub idle: usize,
    /// The position of the first row after them.
    pub first: usize,
    /// Of results in fp32.
    pub bound: Bound,
}

/// The sequence that the rows are of, of two.
const SEQUENCE: usize = 1;

/// Heads that see all keys, by four warps with the same queries.
pub fn plain(heads: usize, key_heads: usize, head_dim: usize) -> AttentionRows {
    AttentionRows {
        heads,
        key_heads,
        head_dim,
        window: 0,
        scale: 2.0 / (head_dim as f32).sqrt(),
        softcap: None,
        sinks: false,
        row_warps: 1,
        parts: 4,
        keys: 64,
        out: Storage::F32,
    }
}

/// Warps with 16 queries each, and warps that share them.
pub fn shaped(row_warps: usize, parts: usize, kernel: AttentionRows) -> AttentionRows {
    AttentionRows { row_warps, parts, ..kernel }
}

impl Case {
    pub fn of(kernel: AttentionRows, rows: usize) -> Case {
        Case { kernel, rows, idle: 0, first: 0, bound: Bound::Exact }
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let &AttentionRows { heads, key_heads, head_dim: dim, out: storage, .. } = &self.kernel;
        let rows = self.rows;
        let positions: Vec<i32> =
            (0..rows).map(|row| if row < self.idle { -1 } else { (self.first + row - self.idle) as i32 }).collect();
        let live = self.first + rows - self.idle;

        // Keys and values: NaN before and after those of the sequence, and in the other sequence.
        let (context, padded) = (live + 3, dim.next_multiple_of(8));
        let mut random = Random((dim * 100 + heads + rows) as u64);
        let q = random.floats(rows * heads * dim);
        let sinks = random.floats(heads);
        let caches = [(); 2].map(|()| {
            let mut cache = vec![f32::NAN; 2 * key_heads * context * padded];
            for head in 0..key_heads {
                for at in 0..live {
                    let from = ((SEQUENCE * key_heads + head) * context + at) * padded;
                    cache[from..from + padded].fill(0.0);
                    cache[from..from + dim].copy_from_slice(&random.rounded(dim));
                }
            }
            cache
        });

        let mut expected = Vec::new();
        for (row, &position) in positions.iter().enumerate() {
            for head in 0..heads {
                let query = &q[(row * heads + head) * dim..][..dim];
                let place = (SEQUENCE * key_heads + head / (heads / key_heads)) * context;
                let sink = self.kernel.sinks.then(|| f64::from(sinks[head]));
                expected.extend(self.attended(query, position, sink, &caches.each_ref().map(|c| &c[place * padded..])));
            }
        }

        let out = room(rows * heads * dim, storage);
        let buffers = caches.each_ref().map(|cache| HostBuffer::input(&to_bf16(cache)));
        let (q, sinks) = (HostBuffer::input(&q), HostBuffer::input(&sinks));
        let (positions, sequences) = (HostBuffer::input(&positions), HostBuffer::input(&vec![SEQUENCE as i32; rows]));
        let arguments = [
            ("q", q.address()),
            ("key_cache", buffers[0].address()),
            ("value_cache", buffers[1].address()),
            ("positions", positions.address()),
            ("sequences", sequences.address()),
            ("sinks", given(self.kernel.sinks, &sinks)),
            ("out", out.address()),
            ("context", context as u64),
            ("rows", rows as u64),
        ];
        kernel.launch(rows, &arguments)?;
        match storage {
            Storage::Tiled => compare("attention", &expected, &untiled(&out.written()?, rows), Bound::Stored),
            Storage::BF16 | Storage::F16 => compare("attention", &expected, &written(&out, storage)?, Bound::Stored),
            Storage::F32 => compare("attention", &expected, &written(&out, storage)?, self.bound),
        }
    }

    /// What a query makes of the keys and values of its key head: nothing at position -1.
    fn attended(&self, query: &[f32], position: i32, sink: Option<f64>, [keys, values]: &[&[f32]; 2]) -> Vec<f64> {
        let &AttentionRows { head_dim, window, scale, softcap, .. } = &self.kernel;
        let padded = head_dim.next_multiple_of(8);
        let end = (position + 1) as usize;
        let begin = if window > 0 { end.saturating_sub(window) } else { 0 };
        let scores: Vec<f64> = (begin..end)
            .map(|at| {
                let dot: f64 = query.iter().zip(&keys[at * padded..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let score = dot * f64::from(scale);
                softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let peak = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - peak).exp());
        let sum =
            |d: usize| (begin..end).zip(&weights).map(|(at, w)| w * f64::from(values[at * padded + d])).sum::<f64>();
        (0..head_dim).map(|d| if end > 0 { sum(d) / total } else { 0.0 }).collect()
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
    check_each(cases, |case| &case.kernel, |case| case.check(None))
}

#[test]
fn head_sizes_and_shapes() -> Result<()> {
    let stored = |kernel| AttentionRows { out: Storage::BF16, ..kernel };
    check_all(&[
        Case::of(plain(4, 2, 64), 16),
        Case::of(stored(shaped(4, 1, plain(4, 1, 64))), 40),
        Case::of(shaped(2, 2, plain(3, 1, 12)), 24),
        Case::of(shaped(4, 1, plain(2, 2, 80)), 70),
        Case::of(stored(shaped(2, 2, plain(2, 1, 96))), 16),
        Case::of(stored(plain(3, 1, 20)), 16),
        Case::of(shaped(4, 1, plain(7, 1, 128)), 16),
        Case::of(AttentionRows { keys: 32, ..shaped(2, 2, plain(2, 1, 256)) }, 24),
        Case { first: 70, ..Case::of(plain(1, 1, 136), 16) },
        // In the order that products of many rows read.
        Case::of(AttentionRows { out: Storage::Tiled, ..shaped(4, 1, plain(4, 1, 64)) }, 40),
        Case::of(AttentionRows { out: Storage::Tiled, ..plain(16, 4, 20) }, 16),
        // Sizes that no 16 bytes of a query have.
        Case::of(plain(2, 1, 9), 16),
    ])
}

#[test]
fn chunks_windows_caps_and_sinks() -> Result<()> {
    let window = |window, kernel| AttentionRows { window, ..kernel };
    let sinks = |kernel| AttentionRows { sinks: true, ..kernel };
    let capped = AttentionRows { softcap: Some(3.0), ..sinks(window(12, shaped(2, 2, plain(6, 2, 32)))) };
    let peaked = AttentionRows { scale: 100.0 * plain(2, 1, 24).scale, ..plain(2, 1, 24) };
    check_all(&[
        // A later chunk, whole and with idle rows; one whose first blocks are idle.
        Case { first: 150, ..Case::of(shaped(4, 1, plain(4, 2, 32)), 32) },
        Case { first: 100, idle: 5, ..Case::of(plain(4, 2, 20), 24) },
        Case { idle: 37, ..Case::of(shaped(2, 2, plain(2, 2, 24)), 48) },
        Case { idle: 16, ..Case::of(plain(2, 1, 16), 16) },
        // Windows of one key, shorter than a tile, longer.
        Case { first: 3, ..Case::of(window(1, plain(2, 1, 16)), 16) },
        Case { first: 190, idle: 3, ..Case::of(window(9, plain(4, 2, 20)), 32) },
        Case { first: 60, ..Case::of(window(100, shaped(4, 1, plain(3, 3, 16))), 80) },
        Case::of(AttentionRows { softcap: Some(1.5), ..plain(4, 2, 20) }, 16),
        Case { idle: 2, ..Case::of(sinks(plain(4, 2, 20)), 16) },
        Case { first: 40, ..Case::of(capped, 32) },
        // Scores of hundreds, peaks that rise and fall. A hi/lo split leaves out 2^-17 of a query: little, but not beside such scores.
        Case { first: 130, bound: Bound::Rounded, ..Case::of(peaked, 16) },
    ])
}
