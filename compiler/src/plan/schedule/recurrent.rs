//! Ops that go from token to token: one kernel each, for the rows of a decode step and for those of a prompt.

use anyhow::{Result, bail};

use super::Builder;
use crate::ir::{self, NodeId, Results, Role};
use crate::plan::kernels::{Conv, KernelSpec, Recall, Storage};

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

    pub(super) fn recall(&mut self, node: NodeId, recall: ir::Recall) -> Result<()> {
        let sizes = |role| self.operand(node, role).map(|value| self.graph().type_of(value).fixed_sizes().collect());
        let (k, state): (Vec<usize>, Vec<usize>) = (sizes(Role::K)?, sizes(Role::Memory)?);
        let ([key_heads, _], [heads, key_dim, dim]) = (&k[..], &state[..]) else {
            bail!("keys of {k:?} and a memory of {state:?}")
        };
        let decays: Vec<usize> = sizes(Role::Decay)?;
        let spec = Recall {
            key_heads: *key_heads,
            heads: *heads,
            key_dim: *key_dim,
            dim: *dim,
            delta: recall.delta,
            per_channel: decays.len() > 1,
            prompt: self.rows.prompt,
        };
        let memory = self.pointer(node, Role::Memory)?;
        let mut operands = vec![("q", self.pointer(node, Role::Q)?), ("k", self.pointer(node, Role::K)?)];
        operands.extend([("v", self.pointer(node, Role::V)?), ("decay", self.pointer(node, Role::Decay)?)]);
        operands.extend([("beta", self.optional(node, Role::Beta)?), ("memory", memory)]);
        let (out, _) = self.result_f32(node.result(0));
        self.set(node.result(1), memory, Storage::F32);
        operands.extend([("positions", self.positions()), ("sequences", self.sequences()), ("out", out)]);
        operands.push(("rows", self.count()));
        self.launch(KernelSpec::Recall(spec), self.rows.count, &operands)
    }
}
