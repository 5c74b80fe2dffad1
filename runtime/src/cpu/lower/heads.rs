//! Products of heads, and heads side by side.

use anyhow::{Result, ensure};
use fusec::ir::{NodeId, Results, Role};

use super::Lowering;
use crate::cpu::pack::Recipe;
use crate::cpu::step::{HeadProductStep, Step};

impl Lowering<'_> {
    pub(super) fn head_product(&mut self, node: NodeId) -> Result<()> {
        let x = self.input(self.operand(node, Role::X)?)?;
        let weight = self.operand(node, Role::Weight(0))?;
        let [heads, rows, columns] = self.sizes(weight)?;
        ensure!(
            heads * columns == self.shapes[x].size,
            "{heads} heads of {columns} values are not {} values",
            self.shapes[x].size
        );
        let (name, format) = (self.weight_ref(weight)?, self.held(weight, false)?);
        let recipe = |head: usize| Recipe {
            names: vec![name.matrix(head)],
            rows: vec![rows],
            columns,
            formats: vec![format],
            transposed: false,
            paired: false,
        };
        let matrices = (0..heads).map(|head| self.packed(recipe(head))).collect();
        let out = self.result(node.result(0));
        self.push(Step::HeadProduct(HeadProductStep { x, matrices, out }));
        Ok(())
    }

    pub(super) fn concat(&mut self, node: NodeId) -> Result<()> {
        let (a, b) = (self.operand(node, Role::A)?, self.operand(node, Role::B)?);
        let ([_, first], [_, second]) = (self.sizes(a)?, self.sizes(b)?);
        let parts = [self.input(a)?, self.input(b)?];
        let out = self.result(node.result(0));
        self.push(Step::Concat { parts, sizes: [first, second], out });
        Ok(())
    }
}
