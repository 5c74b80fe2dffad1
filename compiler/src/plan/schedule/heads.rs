//! Products of heads, and heads side by side.

use anyhow::{Result, bail};

use super::Builder;
use super::shapes::matmul_shape;
use crate::ir::{NodeId, Results, Role};
use crate::plan::kernels::{Concat, KernelSpec, Matmul, Tiles};
use crate::plan::place::Source;
use crate::plan::{Arg, Recipe};

impl Builder<'_, '_> {
    /// A product of each head by a matrix of its own, of few rows and of many.
    pub(super) fn head_product(&mut self, node: NodeId) -> Result<()> {
        let (tensor, sizes) = self.weight(node, Role::Weight(0))?;
        let [heads, rows, k] = sizes[..] else { bail!("the weight {tensor} has {} dimensions, not 3", sizes.len()) };
        let part = self.part(node, Role::Weight(0), rows)?;
        let format = self.packed_format(&[part.from], k, true, false);
        let recipe = Recipe::Experts { parts: vec![part], k, gated: false, count: heads, format };
        let weights = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
        let x = self.rounded(self.place(node, Role::X)?, heads * k, format.activations())?.arg;
        let (out, storage) = self.result(node.result(0));
        let tiles = Tiles { weights: format, k, rows: vec![rows], gated: false, out: storage };
        let spec = Matmul { heads: Some(heads), ..matmul_shape(tiles, false, None, self.rows.count) };
        let operands = [("weights", weights), ("x", x), ("out0", out), ("rows", self.count())];
        self.launch(KernelSpec::Matmul(spec), self.rows.count, &operands)
    }

    pub(super) fn concat(&mut self, node: NodeId) -> Result<()> {
        let sizes = |role| self.operand(node, role).map(|value| self.graph().type_of(value).fixed_sizes().collect());
        let (a, b): (Vec<usize>, Vec<usize>) = (sizes(Role::A)?, sizes(Role::B)?);
        let ([heads, first], [_, second]) = (&a[..], &b[..]) else { bail!("heads of {a:?} and of {b:?}") };
        let spec = Concat { heads: *heads, first: *first, second: *second };
        let (a, b) = (self.pointer(node, Role::A)?, self.pointer(node, Role::B)?);
        let (out, _) = self.result_f32(node.result(0));
        self.launch(KernelSpec::Concat(spec), self.rows.count, &[("a", a), ("b", b), ("out", out)])
    }
}
