//! Routed experts: of the weights, only those of the chosen experts are read.

use std::ops::Range;

use fusec::ir::{Gating, Route, Scoring};

use super::blocks::{COLUMNS, UNIT_ROWS};
use super::execute::Execution;
use super::math;
use super::step::{Buffer, HiddenStep, RouteStep, SumStep};
use super::tile::{self, Operand, Sums};

impl Execution<'_> {
    pub(super) fn route(&self, step: &RouteStep, rows: Range<usize>) {
        let Route { top_k, scoring, normalise, scale, .. } = step.route;
        for row in rows {
            let logits = self.row(step.x, row);
            let (chosen, shares) = self.write(step.out, row, 0, 2 * top_k).split_at_mut(top_k);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            let score = |expert: usize| match scoring {
                Scoring::Softmax => (logits[expert] - largest).exp() / sum,
                Scoring::Sigmoid => sigmoid(logits[expert]),
            };
            let rank = |expert: usize| match step.bias.get(expert) {
                Some(bias) => score(expert) + bias,
                None => logits[expert],
            };
            let kept = step.route.groups.map(|[count, kept]| {
                let size = logits.len() / count;
                (size, best_groups(size, count, kept, if step.route.bias { 2 } else { 1 }, rank))
            });
            let may = |expert: usize| kept.as_ref().is_none_or(|(size, groups)| groups.contains(&(expert / size)));
            for place in 0..top_k {
                let free =
                    (0..logits.len()).filter(|&expert| may(expert) && !chosen[..place].contains(&(expert as f32)));
                let better = |best: usize, expert: usize| if rank(expert) > rank(best) { expert } else { best };
                let expert = free.reduce(better).expect("there are at least top_k experts");
                chosen[place] = expert as f32;
                shares[place] = score(expert);
            }
            let whole = if normalise { shares.iter().sum() } else { 1.0 };
            for (share, &expert) in shares.iter_mut().zip(&*chosen) {
                *share *= scale / whole * step.scales.get(expert as usize).copied().unwrap_or(1.0);
            }
        }
    }

    /// Items are units of one expert's rows, for each chosen expert of each row.
    pub(super) fn expert_hidden(&self, step: &HiddenStep, items: Range<usize>) {
        let recipe = self.weights.recipe(step.matrices[0]);
        let (units, unit_rows) = (recipe.units(0), recipe.unit_rows());
        let features = self.size(step.out) / step.top_k;
        for item in items {
            let (row, slot, unit) = (item / units / step.top_k, item / units % step.top_k, item % units);
            let expert = self.row(step.routed, row)[slot] as usize;
            let matrix = step.matrices[expert];
            let x = self.factor(step.x, step.coded, row);
            let first = unit * unit_rows;
            let length = unit_rows.min(features - first);
            let out = self.write(step.out, row, slot * features + first, length);
            let biased = |part: usize| {
                let mut values = self.one_unit(matrix, part, unit, x);
                if let Some(bias) = step.biases.get(part) {
                    let bias = &bias[expert * features + first..][..length];
                    values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
                values
            };
            let (mut gate, mut up) = (biased(0), [0.0; UNIT_ROWS]);
            let is_gated = self.weights.recipe(matrix).paired;
            if is_gated {
                up = biased(1);
            }
            if !step.gating.is_plain() {
                let Gating { limit, slope, offset } = step.gating;
                let limit = limit.unwrap_or(f32::INFINITY);
                gate.iter_mut().for_each(|gate| *gate = slope * gate.clamp(f32::NEG_INFINITY, limit));
                up.iter_mut().for_each(|up| *up = (up.clamp(-limit, limit) + offset) / slope);
            }
            out.copy_from_slice(&gate[..length]);
            math::activate(self.isa, step.activation, out);
            if is_gated {
                math::multiply(self.isa, out, &up[..length]);
            }
        }
    }

    /// Items are units of the result, for each row.
    pub(super) fn expert_sum(&self, step: &SumStep, items: Range<usize>) {
        let recipe = self.weights.recipe(step.matrices[0]);
        let (units, unit_rows) = (recipe.units(0), recipe.unit_rows());
        let (features, outputs) = (self.size(step.hidden) / step.top_k, self.size(step.out));
        for item in items {
            let (row, unit) = (item / units, item % units);
            let hidden = self.factor(step.hidden, step.coded, row);
            let (chosen, shares) = self.row(step.routed, row).split_at(step.top_k);
            let first = unit * unit_rows;
            let out = self.write(step.out, row, first, unit_rows.min(outputs - first));
            out.fill(0.0);
            for (slot, (&expert, share)) in chosen.iter().zip(shares).enumerate() {
                let mut own = Operand { x: &hidden.x[slot * features..(slot + 1) * features], ..hidden };
                if step.coded.is_some() {
                    own.coded = hidden.coded.part(slot * features / COLUMNS..(slot + 1) * features / COLUMNS);
                }
                let mut values = self.one_unit(step.matrices[expert as usize], 0, unit, own);
                if let Some(bias) = step.bias.get(expert as usize * outputs + first..) {
                    values[..out.len()].iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
                out.iter_mut().zip(values).for_each(|(out, value)| *out += share * value);
            }
        }
    }

    /// `a · sigmoid(b)`, where `b` has as many values as `a`, or one for several.
    pub(super) fn glu(&self, a: Buffer, b: Buffer, out: Buffer, row: usize, part: Range<usize>) {
        let each = self.size(a) / self.size(b);
        let b = self.row(b, row);
        let values = self.row(a, row)[part.clone()].iter().zip(part.clone());
        let out = self.write(out, row, part.start, part.len());
        for (out, (a, at)) in out.iter_mut().zip(values) {
            *out = a * sigmoid(b[at / each]);
        }
    }

    /// Unit `unit` of tensor `part` of a matrix, times one vector.
    pub(super) fn one_unit(&self, matrix: usize, part: usize, unit: usize, x: Operand<'_>) -> [f32; UNIT_ROWS] {
        let mut sums: Sums = Default::default();
        let bytes = self.weights.unit(matrix, part, unit);
        tile::multiply_unit(self.isa, self.weights.recipe(matrix).formats[part], bytes, &[x], &mut sums);
        sums[0]
    }
}

/// The best `kept` of `count` groups of `size` experts: by the sum of the `best` largest ranks of each, the first of equal ones first.
fn best_groups(size: usize, count: usize, kept: usize, best: usize, rank: impl Fn(usize) -> f32) -> Vec<usize> {
    let score = |group: usize| {
        let mut ranks: Vec<f32> = (group * size..(group + 1) * size).map(&rank).collect();
        ranks.sort_by(|a, b| b.total_cmp(a));
        ranks.iter().take(best).sum::<f32>()
    };
    let mut groups: Vec<(usize, f32)> = (0..count).map(|group| (group, score(group))).collect();
    groups.sort_by(|a, b| b.1.total_cmp(&a.1));
    groups.into_iter().take(kept).map(|(group, _)| group).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
