//! `append.cu` against norm and rotation in f64.

use anyhow::{Context, Result, ensure};
use askama::Template;
use fuse_templates::{Append, Float, Rope};
use fuse_tests::host_build::{HostBuffer, HostKernel};

use crate::attention::{frequencies, rotated};
use crate::support::*;

/// One append, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Query heads; 0: q stays as it is.
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub warps: usize,
    /// The norms of q and k: 1 rms_norm, 2 layer_norm, 0 none.
    pub norms: [usize; 2],
    pub weights: bool,
    /// Dimensions that rotate, interleaved, magnitude.
    pub rope: Option<(usize, bool, f32)>,
    /// Position and sequence of each row; -1: skipped.
    pub rows: Vec<(i32, i32)>,
}

const CONTEXT: usize = 40;

impl Case {
    pub fn new(heads: usize, key_heads: usize, head_dim: usize) -> Case {
        let rows = vec![(-1, 1), (7, 0), (8, 0), (39, 1)];
        Case { heads, key_heads, head_dim, warps: 8, norms: [0; 2], weights: true, rope: None, rows }
    }

    fn source(&self) -> String {
        Append {
            name: "kernel".into(),
            rope: self.rope.map_or_else(Rope::none, |(dim, interleaved, magnitude)| {
                Rope::new(&frequencies(dim), dim, interleaved, magnitude)
            }),
            heads: self.heads,
            key_heads: self.key_heads,
            head_dim: self.head_dim,
            norm_q: self.norms[0],
            norm_k: self.norms[1],
            eps_q: Float(1e-5),
            eps_k: Float(0.25),
            warps: self.warps,
        }
        .render()
        .expect("the template renders")
    }

    /// A head of q (0) or k (1) as attention reads it.
    fn transformed(&self, which: usize, head: &[f32], weight: &[f32], position: i32) -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|&value| f64::from(value)).collect();
        let size = head.len() as f64;
        if self.norms[which] > 0 {
            let mean = if self.norms[which] == 2 { head.iter().sum::<f64>() / size } else { 0.0 };
            let square = head.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / size;
            for (value, &weight) in head.iter_mut().zip(weight) {
                let eps = [1e-5, 0.25][which];
                *value = (*value - mean) * if self.weights { f64::from(weight) } else { 1.0 } / (square + eps).sqrt();
            }
        }
        self.rope.map_or(head.clone(), |rope| rotated(&head, position, rope))
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let (rows, heads, key_heads, dim) = (self.rows.len(), self.heads, self.key_heads, self.head_dim);
        let padded = dim.next_multiple_of(8);
        let mut random = Random(dim as u64);
        let [q, k, v] = [heads, key_heads, key_heads].map(|heads| random.floats(rows * heads * dim));
        let weights = [(); 2].map(|()| random.floats(dim));

        let mut queries: Vec<f64> = Vec::new();
        let mut caches = [(); 2].map(|()| vec![f64::NAN; 2 * key_heads * CONTEXT * padded]);
        for (row, &(position, sequence)) in self.rows.iter().enumerate() {
            for head in 0..heads {
                let from = &q[(row * heads + head) * dim..][..dim];
                queries.extend(self.transformed(0, from, &weights[0], position));
            }
            for head in (0..key_heads).filter(|_| position >= 0) {
                let from = (row * key_heads + head) * dim;
                let key = self.transformed(1, &k[from..from + dim], &weights[1], position);
                let value = v[from..from + dim].iter().map(|&value| f64::from(value)).collect();
                let at = ((sequence as usize * key_heads + head) * CONTEXT + position as usize) * padded;
                for (cache, head) in caches.iter_mut().zip([key, value]) {
                    cache[at..at + padded].fill(0.0);
                    cache[at..at + dim].copy_from_slice(&head);
                }
            }
        }

        let nan = vec![f32::NAN; 2 * key_heads * CONTEXT * padded];
        let buffers = [(); 2].map(|()| HostBuffer::inout(&to_bf16(&nan)));
        let out = HostBuffer::output::<f32>(rows * heads * dim);
        let inputs = [&q, &k, &v, &weights[0], &weights[1]].map(|values| HostBuffer::input(values));
        let places = [|row: &(i32, i32)| row.0, |row: &(i32, i32)| row.1]
            .map(|of| HostBuffer::input(&self.rows.iter().map(of).collect::<Vec<i32>>()));
        let weight = |which: usize| if self.weights { inputs[3 + which].address() } else { 0 };
        let arguments = [
            inputs[0].address(),
            inputs[1].address(),
            inputs[2].address(),
            places[0].address(),
            places[1].address(),
            weight(0),
            weight(1),
            out.address(),
            buffers[0].address(),
            buffers[1].address(),
            CONTEXT as u64,
        ];
        let grid = [rows as u32, (heads + 2 * key_heads).div_ceil(self.warps) as u32, 1];
        kernel.launch(grid, 32 * self.warps as u32, 0, &arguments)?;
        if heads > 0 {
            compare("queries", &queries, &out.written::<f32>()?, Bound::Exact)?;
        }
        for (name, (cache, buffer)) in ["keys", "values"].into_iter().zip(caches.iter().zip(&buffers)) {
            let got = from_bf16(&buffer.values::<u16>()?);
            ensure!(
                cache.iter().zip(&got).all(|(a, b)| a.is_nan() == b.is_nan()),
                "{name}: other places of the cache were written than those of the rows"
            );
            let pairs = cache.iter().zip(&got).filter(|(a, _)| !a.is_nan());
            let (expected, got): (Vec<f64>, Vec<f32>) = pairs.map(|(&a, &b)| (a, b)).unzip();
            compare(name, &expected, &got, Bound::Stored)?;
        }
        Ok(())
    }
}

#[test]
fn norms_rotations_and_heads() -> Result<()> {
    let cases = [
        Case { rope: Some((64, false, 1.0)), ..Case::new(4, 2, 64) },
        Case { rope: Some((12, true, 1.25)), norms: [1, 1], ..Case::new(3, 1, 20) },
        Case { rope: Some((32, false, 1.0)), norms: [2, 1], weights: false, ..Case::new(2, 2, 80) },
        Case { norms: [0, 2], warps: 2, ..Case::new(3, 3, 12) },
        // Nothing happens to q.
        Case::new(0, 5, 9),
    ];
    let sources: Vec<(String, String)> = cases.iter().map(|case| (case.source(), "kernel".into())).collect();
    HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}
