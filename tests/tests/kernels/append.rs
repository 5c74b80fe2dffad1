//! `append.cu` against norm and rotation in f64.

use anyhow::{Result, ensure};
use fuse_kernels::{Append, NormKind};
use fuse_tests::host_build::HostBuffer;

use crate::attention::{rotated, rotation};
use crate::support::*;

/// One append, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Append,
    /// The norms have weights.
    pub weights: bool,
    /// Position and sequence of each row; -1: skipped.
    pub rows: Vec<(i32, i32)>,
}

const CONTEXT: usize = 40;

/// An append that neither normalises nor rotates.
pub fn plain(heads: usize, key_heads: usize, head_dim: usize) -> Append {
    Append { heads, key_heads, head_dim, q_norm: None, k_norm: None, rope: None }
}

/// A norm of the heads of q, and another of the heads of k.
pub fn norms(q: NormKind, k: NormKind) -> [Option<(NormKind, f32)>; 2] {
    [Some((q, 1e-5)), Some((k, 0.25))]
}

impl Case {
    pub fn of(kernel: Append) -> Case {
        Case { kernel, weights: true, rows: vec![(-1, 1), (7, 0), (8, 0), (39, 1)] }
    }

    /// A head of q or k as attention reads it.
    fn transformed(&self, norm: Option<(NormKind, f32)>, head: &[f32], weight: &[f32], position: i32) -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|&value| f64::from(value)).collect();
        let size = head.len() as f64;
        if let Some((kind, eps)) = norm {
            let mean = if kind == NormKind::Layer { head.iter().sum::<f64>() / size } else { 0.0 };
            let square = head.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / size;
            for (value, &weight) in head.iter_mut().zip(weight) {
                let weight = if self.weights { f64::from(weight) } else { 1.0 };
                *value = (*value - mean) * weight / (square + f64::from(eps)).sqrt();
            }
        }
        self.kernel.rope.as_ref().map_or(head.clone(), |rope| rotated(&head, position, rope))
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let &Append { heads, key_heads, head_dim: dim, q_norm, k_norm, .. } = &self.kernel;
        let (rows, padded) = (self.rows.len(), dim.next_multiple_of(8));
        let mut random = Random(dim as u64);
        let [q, k, v] = [heads, key_heads, key_heads].map(|heads| random.floats(rows * heads * dim));
        let [q_weight, k_weight] = [(); 2].map(|()| random.floats(dim));

        let mut queries: Vec<f64> = Vec::new();
        let mut caches = [(); 2].map(|()| vec![f64::NAN; 2 * key_heads * CONTEXT * padded]);
        for (row, &(position, sequence)) in self.rows.iter().enumerate() {
            for head in 0..heads {
                let from = &q[(row * heads + head) * dim..][..dim];
                queries.extend(self.transformed(q_norm, from, &q_weight, position));
            }
            for head in (0..key_heads).filter(|_| position >= 0) {
                let from = (row * key_heads + head) * dim;
                let key = self.transformed(k_norm, &k[from..from + dim], &k_weight, position);
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
        let [q, k, v, q_weight, k_weight] = [&q, &k, &v, &q_weight, &k_weight].map(|values| HostBuffer::input(values));
        let [positions, sequences] = [|row: &(i32, i32)| row.0, |row: &(i32, i32)| row.1]
            .map(|of| HostBuffer::input(&self.rows.iter().map(of).collect::<Vec<i32>>()));
        let arguments = [
            ("q", q.address()),
            ("k", k.address()),
            ("v", v.address()),
            ("positions", positions.address()),
            ("sequences", sequences.address()),
            ("q_weight", given(self.weights, &q_weight)),
            ("k_weight", given(self.weights, &k_weight)),
            ("q_out", out.address()),
            ("key_cache", buffers[0].address()),
            ("value_cache", buffers[1].address()),
            ("context", CONTEXT as u64),
        ];
        kernel.launch(rows, &arguments)?;
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

/// Heads that fill blocks of eight, that leave some of their warps without work, and that need several blocks.
#[test]
fn norms_rotations_and_heads() -> Result<()> {
    let [rms, layer] = [NormKind::Rms, NormKind::Layer];
    let [q_norm, k_norm] = norms(rms, rms);
    let both = Append { rope: Some(rotation(12, true, 1.25)), q_norm, k_norm, ..plain(3, 1, 20) };
    let [q_norm, k_norm] = norms(layer, rms);
    let unweighted = Append { rope: Some(rotation(32, false, 1.0)), q_norm, k_norm, ..plain(2, 2, 80) };
    check_each(
        &[
            Case::of(Append { rope: Some(rotation(64, false, 1.0)), ..plain(4, 2, 64) }),
            Case::of(both),
            Case { weights: false, ..Case::of(unweighted) },
            Case::of(Append { k_norm: Some((layer, 0.25)), ..plain(9, 4, 12) }),
            // Nothing happens to q.
            Case::of(plain(0, 5, 9)),
        ],
        |case| &case.kernel,
        |case| case.check(None),
    )
}
