//! Steps that go from token to token: the rows of a chunk one after the other, each with what its sequence keeps.

use std::ops::Range;

use super::execute::Execution;
use super::math::for_each_isa;
use super::step::{ConvStep, RecallStep};

impl Execution<'_> {
    /// Items are channels.
    pub(super) fn conv(&self, step: &ConvStep, count: usize, channels: Range<usize>) {
        let (size, width) = (self.size(step.x), channels.len());
        let kept = step.weight.len() / size - 1;
        let of = |tap: usize| &step.weight[tap * size..][channels.clone()];
        for row in 0..count {
            let x = &self.row(step.x, row)[channels.clone()];
            let out = self.write(step.out, row, channels.start, width);
            match step.bias.get(channels.clone()) {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for tap in 0..kept {
                let before = self.kept(step.inputs, row, tap * size + channels.start, width);
                if self.rows.positions[row] == 0 {
                    before.fill(0.0);
                }
                add_product(self.isa, out, of(tap), before);
                if tap > 0 {
                    self.kept(step.inputs, row, (tap - 1) * size + channels.start, width).copy_from_slice(before);
                }
            }
            add_product(self.isa, out, of(kept), x);
            self.kept(step.inputs, row, (kept - 1) * size + channels.start, width).copy_from_slice(x);
        }
    }

    /// Items are heads.
    pub(super) fn recall(&self, step: &RecallStep, count: usize, heads: Range<usize>) {
        let &RecallStep { key_dim, dim, .. } = step;
        let share = step.heads / (self.size(step.k) / key_dim);
        let decays = self.size(step.decay) / step.heads;
        for head in heads {
            for row in 0..count {
                let memory = self.kept(step.memory, row, head * key_dim * dim, key_dim * dim);
                if self.rows.positions[row] == 0 {
                    memory.fill(0.0);
                }
                let [q, k] = [step.q, step.k].map(|buffer| &self.row(buffer, row)[head / share * key_dim..][..key_dim]);
                let v = &self.row(step.v, row)[head * dim..][..dim];
                let decay = &self.row(step.decay, row)[head * decays..][..decays];
                let beta = step.beta.map(|beta| self.row(beta, row)[head]);
                recall(self.isa, memory, Token { q, k, v, decay, beta }, self.write(step.out, row, head * dim, dim));
            }
        }
    }
}

/// What a token brings to one head.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: &'a [f32],
    beta: Option<f32>,
}

for_each_isa! {
    /// What a token makes of the memory of a head, and what it recalls. `out` is as long as `v`, and a row of the memory.
    pub(crate) fn recall(memory: &mut [f32], token: Token<'_>, out: &mut [f32]) {
        let Token { q, k, v, decay, beta } = token;
        out.fill(0.0);
        for (at, (row, k)) in memory.chunks_exact_mut(v.len()).zip(k).enumerate() {
            let factor = decay[at % decay.len()].exp();
            for (kept, out) in row.iter_mut().zip(&mut *out) {
                *kept *= factor;
                *out += k * *kept;
            }
        }
        for (out, v) in out.iter_mut().zip(v) {
            *out = beta.map_or(*v, |beta| beta * (v - *out));
        }
        for (row, k) in memory.chunks_exact_mut(v.len()).zip(k) {
            for (kept, new) in row.iter_mut().zip(&*out) {
                *kept += k * new;
            }
        }
        out.fill(0.0);
        for (row, q) in memory.chunks_exact(v.len()).zip(q) {
            for (out, kept) in out.iter_mut().zip(row) {
                *out += q * kept;
            }
        }
    }
}

for_each_isa! {
    /// `sums += a · b`, element by element.
    pub(crate) fn add_product(sums: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}
