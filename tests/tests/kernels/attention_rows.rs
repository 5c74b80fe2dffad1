//! `attention_rows.cu` against softmax in f64: many rows of one sequence, whose keys and values are in the caches.

use anyhow::{Context, Result};
use askama::Template;
use fuse_templates::{AttentionRows, Float, Storage};
use fuse_tests::host_build::{HostBuffer, HostKernel};
use fusec::plan::{AttentionRowsSpec, KernelSpec};

use crate::support::*;

/// One attention, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    /// Warps with 16 queries each, warps that share them, and keys a tile.
    pub shape: (usize, usize, usize),
    pub window: usize,
    pub softcap: f32,
    pub sinks: bool,
    /// Multiplies the scores beyond what is usual.
    pub peaked: f32,
    pub out_type: Storage,
    pub rows: usize,
    /// Rows in front at position -1.
    pub idle: usize,
    /// The position of the first row behind them.
    pub first: usize,
}

/// The sequence that the rows are of, of two.
const SEQUENCE: usize = 1;

impl Case {
    pub fn new(heads: usize, key_heads: usize, head_dim: usize, rows: usize) -> Case {
        Case {
            heads,
            key_heads,
            head_dim,
            shape: (1, 4, 64),
            window: 0,
            softcap: 0.0,
            sinks: false,
            peaked: 1.0,
            out_type: Storage::F32,
            rows,
            idle: 0,
            first: 0,
        }
    }

    fn scale(&self) -> f32 {
        self.peaked * 2.0 / (self.head_dim as f32).sqrt()
    }

    pub fn source(&self) -> String {
        let (row_warps, parts, keys) = self.shape;
        AttentionRows {
            name: "kernel".into(),
            heads: self.heads,
            key_heads: self.key_heads,
            head_dim: self.head_dim,
            window: self.window,
            scale: Float(self.scale()),
            softcap: Float(self.softcap),
            sinks: self.sinks,
            row_warps,
            parts,
            keys,
            out_type: self.out_type,
        }
        .render()
        .expect("the template renders")
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let (heads, key_heads, dim, rows) = (self.heads, self.key_heads, self.head_dim, self.rows);
        let (row_warps, parts, keys) = self.shape;
        let spec = AttentionRowsSpec {
            heads,
            key_heads,
            head_dim: dim,
            window: self.window,
            scale: self.scale(),
            softcap: (self.softcap > 0.0).then_some(self.softcap),
            sinks: self.sinks,
            row_warps,
            parts,
            keys,
            out: fusec::plan::Storage::F32,
        };
        let grid = [key_heads as u32, (rows * heads / key_heads).div_ceil(spec.queries()) as u32, 1];
        let spec = KernelSpec::AttentionRows(spec);
        let positions: Vec<i32> =
            (0..rows).map(|row| if row < self.idle { -1 } else { (self.first + row - self.idle) as i32 }).collect();
        let live = self.first + rows - self.idle;

        // Keys and values: NaN in front of and behind those of the sequence, and in the other sequence.
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
                let sink = self.sinks.then(|| f64::from(sinks[head]));
                expected.extend(self.attended(query, position, sink, &caches.each_ref().map(|c| &c[place * padded..])));
            }
        }

        let size = if self.out_type == Storage::F32 { 4 } else { 2 };
        let out = HostBuffer::output::<u8>(rows * heads * dim * size);
        let buffers = caches.each_ref().map(|cache| HostBuffer::input(&to_bf16(cache)));
        let (q, sinks) = (HostBuffer::input(&q), HostBuffer::input(&sinks));
        let (positions, sequences) = (HostBuffer::input(&positions), HostBuffer::input(&vec![SEQUENCE as i32; rows]));
        let arguments = [
            q.address(),
            buffers[0].address(),
            buffers[1].address(),
            positions.address(),
            sequences.address(),
            if self.sinks { sinks.address() } else { 0 },
            out.address(),
            context as u64,
            rows as u64,
        ];
        kernel.launch(grid, spec.threads() as u32, spec.shared_bytes() as u32, &arguments)?;
        // What is left of a query of two bfloat16 is 2^-17 of it: little, but not beside a score of hundreds.
        let exact = if self.peaked > 1.0 { Bound::Rounded } else { Bound::Exact };
        match self.out_type {
            Storage::F32 => compare("attention", &expected, &out.written::<f32>()?, exact),
            Storage::BF16 => compare("attention", &expected, &from_bf16(&out.written::<u16>()?), Bound::Stored),
        }
    }

    /// What a query makes of the keys and values of its key head: nothing at position -1.
    fn attended(&self, query: &[f32], position: i32, sink: Option<f64>, [keys, values]: &[&[f32]; 2]) -> Vec<f64> {
        let padded = self.head_dim.next_multiple_of(8);
        let end = (position + 1) as usize;
        let begin = if self.window > 0 { end.saturating_sub(self.window) } else { 0 };
        let scores: Vec<f64> = (begin..end)
            .map(|at| {
                let dot: f64 = query.iter().zip(&keys[at * padded..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let (score, cap) = (dot * f64::from(self.scale()), f64::from(self.softcap));
                if cap > 0.0 { cap * (score / cap).tanh() } else { score }
            })
            .collect();
        let peak = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - peak).exp());
        let sum =
            |d: usize| (begin..end).zip(&weights).map(|(at, w)| w * f64::from(values[at * padded + d])).sum::<f64>();
        (0..self.head_dim).map(|d| if end > 0 { sum(d) / total } else { 0.0 }).collect()
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
    let sources: Vec<(String, String)> = cases.iter().map(|case| (case.source(), "kernel".into())).collect();
    HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

#[test]
fn head_sizes_and_shapes() -> Result<()> {
    check_all(&[
        Case::new(4, 2, 64, 16),
        Case { shape: (4, 1, 64), out_type: Storage::BF16, ..Case::new(4, 1, 64, 40) },
        Case { shape: (2, 2, 64), ..Case::new(3, 1, 12, 24) },
        Case { shape: (4, 1, 64), ..Case::new(2, 2, 80, 70) },
        Case { shape: (2, 2, 64), out_type: Storage::BF16, ..Case::new(2, 1, 96, 16) },
        Case { out_type: Storage::BF16, ..Case::new(3, 1, 20, 16) },
        Case { shape: (4, 1, 64), ..Case::new(7, 1, 128, 16) },
        Case { shape: (2, 2, 32), ..Case::new(2, 1, 256, 24) },
        Case { first: 70, ..Case::new(1, 1, 136, 16) },
        // Sizes that no 16 bytes of a query have.
        Case::new(2, 1, 9, 16),
    ])
}

#[test]
fn chunks_windows_caps_and_sinks() -> Result<()> {
    check_all(&[
        // A later chunk, whole and with idle rows; one whose first blocks are idle.
        Case { first: 150, shape: (4, 1, 64), ..Case::new(4, 2, 32, 32) },
        Case { first: 100, idle: 5, ..Case::new(4, 2, 20, 24) },
        Case { idle: 37, shape: (2, 2, 64), ..Case::new(2, 2, 24, 48) },
        Case { idle: 16, ..Case::new(2, 1, 16, 16) },
        // Windows of one key, shorter than a tile, longer.
        Case { window: 1, first: 3, ..Case::new(2, 1, 16, 16) },
        Case { window: 9, first: 190, idle: 3, ..Case::new(4, 2, 20, 32) },
        Case { window: 100, first: 60, shape: (4, 1, 64), ..Case::new(3, 3, 16, 80) },
        Case { softcap: 1.5, ..Case::new(4, 2, 20, 16) },
        Case { sinks: true, idle: 2, ..Case::new(4, 2, 20, 16) },
        Case { sinks: true, softcap: 3.0, window: 12, first: 40, shape: (2, 2, 64), ..Case::new(6, 2, 32, 32) },
        // Scores of hundreds, peaks that rise and fall.
        Case { peaked: 100.0, first: 130, ..Case::new(2, 1, 24, 16) },
    ])
}
