//! Steps that go from token to token: the rows of a chunk one after the other, each with what its sequence keeps.

use std::ops::Range;

use super::execute::Execution;
use super::math::for_each_isa;
use super::step::ConvStep;

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
}

for_each_isa! {
    /// `sums += a · b`, element by element.
    pub(crate) fn add_product(sums: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}
