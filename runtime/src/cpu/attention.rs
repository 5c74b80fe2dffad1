//! The two products of attention for one query head, each over eight lanes in a fixed order.

use super::math::{LANES, for_each_isa, sum_lanes};

/// Positions worked on together.
const BLOCK: usize = 4;

for_each_isa! {
    /// `out[i] = scale · q · keys[i]`; `keys` holds one row of `q`'s length for each of `out`.
    pub(crate) fn scores(q: &[f32], keys: &[f32], scale: f32, out: &mut [f32]) {
        let dim = q.len();
        let (q_lanes, q_rest) = q.as_chunks::<LANES>();
        let mut blocks = keys.chunks_exact(BLOCK * dim);
        let mut outs = out.chunks_exact_mut(BLOCK);
        for (keys, out) in blocks.by_ref().zip(outs.by_ref()) {
            let rows: [&[f32]; BLOCK] = std::array::from_fn(|i| &keys[i * dim..(i + 1) * dim]);
            let mut sums = [[0.0f32; LANES]; BLOCK];
            for (j, q) in q_lanes.iter().enumerate() {
                for i in 0..BLOCK {
                    let k = &rows[i][j * LANES..(j + 1) * LANES];
                    for lane in 0..LANES {
                        sums[i][lane] += q[lane] * k[lane];
                    }
                }
            }
            for i in 0..BLOCK {
                for (lane, q) in q_rest.iter().enumerate() {
                    sums[i][lane] += q * rows[i][q_lanes.len() * LANES + lane];
                }
                out[i] = scale * sum_lanes(sums[i]);
            }
        }
        for (key, out) in blocks.remainder().chunks_exact(dim).zip(outs.into_remainder()) {
            let mut sums = [0.0f32; LANES];
            let (key_lanes, key_rest) = key.as_chunks::<LANES>();
            for (q, k) in q_lanes.iter().zip(key_lanes) {
                for lane in 0..LANES {
                    sums[lane] += q[lane] * k[lane];
                }
            }
            for ((sum, q), k) in sums.iter_mut().zip(q_rest).zip(key_rest) {
                *sum += q * k;
            }
            *out = scale * sum_lanes(sums);
        }
    }
}

for_each_isa! {
    /// `out = factor · Σ weights[i] · values[i]`, summed in order of `i`.
    pub(crate) fn weighted_sum(weights: &[f32], values: &[f32], factor: f32, out: &mut [f32]) {
        out.fill(0.0);
        let dim = out.len();
        let blocks = weights.chunks_exact(BLOCK);
        let rest = blocks.remainder();
        for (w, rows) in blocks.zip(values.chunks_exact(BLOCK * dim)) {
            let (a, others) = rows.split_at(dim);
            let (b, others) = others.split_at(dim);
            let (c, d) = others.split_at(dim);
            for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *out = *out + w[0] * a + w[1] * b + w[2] * c + w[3] * d;
            }
        }
        let done = weights.len() - rest.len();
        for (w, row) in rest.iter().zip(values[done * dim..].chunks_exact(dim)) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += w * value;
            }
        }
        for out in out {
            *out *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::math::Isa;
    use super::*;

    #[test]
    fn products_match_plain_sums_at_odd_sizes() {
        for isa in [Isa::detect(), Isa::portable()] {
            for (dim, length) in [(1, 1), (6, 5), (8, 4), (64, 7), (80, 9), (13, 3)] {
                let q: Vec<f32> = (0..dim).map(|i| (i as f32 * 0.7).sin()).collect();
                let rows: Vec<f32> = (0..dim * length).map(|i| (i as f32 * 0.3).cos()).collect();
                let mut out = vec![0.0; length];
                scores(isa, &q, &rows, 0.5, &mut out);
                for (i, &score) in out.iter().enumerate() {
                    let want: f64 = (0..dim).map(|j| 0.5 * q[j] as f64 * rows[i * dim + j] as f64).sum();
                    assert!((score as f64 - want).abs() < 1e-5, "{dim} {length} {i}: {score} {want}");
                }
                let mut sum = vec![9.0; dim];
                weighted_sum(isa, &out, &rows, 2.0, &mut sum);
                for (j, &value) in sum.iter().enumerate() {
                    let want: f64 = (0..length).map(|i| 2.0 * out[i] as f64 * rows[i * dim + j] as f64).sum();
                    assert!((value as f64 - want).abs() < 1e-4, "{dim} {length} {j}: {value} {want}");
                }
            }
        }
    }
}
