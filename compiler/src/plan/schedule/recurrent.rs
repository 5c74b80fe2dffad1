//! Ops that go from token to token: one kernel each, for the rows of a decode step and for those of a prompt.

use anyhow::Result;

use super::Builder;
use crate::ir::{NodeId, Results, Role};
use crate::plan::kernels::{Conv, KernelSpec, Storage};

impl Builder<'_, '_> {
    pub(super) fn conv(&mut self, node: NodeId) -> Result<()> {
        let channels = self.graph().type_of(node.result(0)).row_size();
        let (weight, sizes) = (self.vector(node, Role::Weight(0), 0.0)?, self.weight(node, Role::Weight(0))?.1);
        let spec = Conv { channels, taps: sizes.iter().product::<usize>() / channels, prompt: self.rows.prompt };
        let (x, inputs) = (self.pointer(node, Role::X)?, self.pointer(node, Role::Inputs)?);
        let bias = self.vector(node, Role::Bias(0), 0.0)?;
        let (out, _) = self.result_f32(node.result(0));
        self.set(node.result(1), inputs, Storage::F32);
        let mut operands = vec![("x", x), ("weight", weight), ("bias", bias), ("inputs", inputs), ("out", out)];
        operands.extend([("positions", self.positions()), ("sequences", self.sequences()), ("rows", self.count())]);
        self.launch(KernelSpec::Conv(spec), self.rows.count, &operands)
    }
}
