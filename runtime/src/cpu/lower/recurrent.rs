//! States, and ops that go from token to token.

use anyhow::{Context, Result, ensure};
use fusec::ir::{NodeId, Results, Role, Start, State};

use super::{Home, Lowering};
use crate::cpu::step::{CacheShape, ConvStep, RecallStep, Step};

impl Lowering<'_> {
    /// A cache by position, or values that each token changes.
    pub(super) fn state(&mut self, node: NodeId, state: &State) -> Result<()> {
        let ty = self.graph.type_of(node.result(0));
        let by_position = *state == State::cache(&state.name);
        ensure!(by_position || state.start == Start::Zeros, "the state {state} begins with nothing");
        let [heads, dim] = match by_position {
            true => self.sizes(node.result(0))?,
            false => {
                let first = ty.fixed_sizes().next().context("a state has sizes")?;
                [first, ty.row_size() / first]
            }
        };
        self.homes.insert(node.result(0), Home::Cache(self.caches.len()));
        self.caches.push(CacheShape { name: state.name.clone(), heads, dim, by_position });
        Ok(())
    }

    pub(super) fn conv(&mut self, node: NodeId) -> Result<()> {
        self.positions(node)?;
        let x = self.input(self.operand(node, Role::X)?)?;
        let inputs = self.cache(self.operand(node, Role::Inputs)?)?;
        let (channels, taps) = (self.shapes[x].size, self.caches[inputs].heads + 1);
        ensure!(self.caches[inputs].dim == channels, "{channels} values per token, and another number is kept");
        let by_channel = self.constant(self.operand(node, Role::Weight(0))?, channels * taps)?;
        let weight = (0..channels * taps).map(|at| by_channel[at % channels * taps + at / channels]).collect();
        let bias = self.graph.operand(node, Role::Bias(0));
        let bias = bias.map_or(Ok(Box::default()), |bias| self.constant(bias, channels))?;
        let out = self.result(node.result(0));
        self.homes.insert(node.result(1), Home::Cache(inputs));
        self.push(Step::Conv(ConvStep { x, weight, bias, inputs, out }));
        Ok(())
    }

    pub(super) fn recall(&mut self, node: NodeId) -> Result<()> {
        self.positions(node)?;
        let mut operand = |role| self.operand(node, role).and_then(|value| self.input(value));
        let [q, k, v, decay] = [operand(Role::Q)?, operand(Role::K)?, operand(Role::V)?, operand(Role::Decay)?];
        let beta = self.graph.operand(node, Role::Beta).map(|beta| self.input(beta)).transpose()?;
        let memory = self.operand(node, Role::Memory)?;
        let [heads, key_dim, dim] = self.sizes(memory)?;
        let memory = self.cache(memory)?;
        let out = self.result(node.result(0));
        self.homes.insert(node.result(1), Home::Cache(memory));
        self.push(Step::Recall(RecallStep { q, k, v, decay, beta, heads, key_dim, dim, memory, out }));
        Ok(())
    }
}
