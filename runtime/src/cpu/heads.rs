//! Products of heads, and heads side by side.

use std::ops::Range;

use super::execute::Execution;
use super::step::{Buffer, HeadProductStep};
use super::tile::Operand;

impl Execution<'_> {
    /// Items are units of the result of each head, for each row.
    pub(super) fn head_product(&self, step: &HeadProductStep, items: Range<usize>) {
        let recipe = self.weights.recipe(step.matrices[0]);
        let (units, unit_rows, heads) = (recipe.units(0), recipe.unit_rows(), step.matrices.len());
        let (columns, rows) = (self.size(step.x) / heads, self.size(step.out) / heads);
        for item in items {
            let (row, head, unit) = (item / units / heads, item / units % heads, item % units);
            let whole = self.factor(step.x, None, row);
            let x = Operand { x: &whole.x[head * columns..(head + 1) * columns], ..whole };
            let first = unit * unit_rows;
            let length = unit_rows.min(rows - first);
            let values = self.one_unit(step.matrices[head], 0, unit, x);
            self.write(step.out, row, head * rows + first, length).copy_from_slice(&values[..length]);
        }
    }

    pub(super) fn concat(&self, parts: [Buffer; 2], sizes: [usize; 2], out: Buffer, row: usize, part: Range<usize>) {
        let [a, b] = parts.map(|buffer| self.row(buffer, row));
        let [first, second] = sizes;
        let whole = first + second;
        let values = part.clone().map(|at| match (at / whole, at % whole) {
            (head, at) if at < first => a[head * first + at],
            (head, at) => b[head * second + at - first],
        });
        self.write(out, row, part.start, part.len()).iter_mut().zip(values).for_each(|(out, value)| *out = value);
    }
}
