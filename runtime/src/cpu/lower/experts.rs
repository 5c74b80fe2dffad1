//! Routed experts, as two steps.

use anyhow::{Result, ensure};
use fusec::ir::{Experts, Format, NodeId, Results, Role, Value, WeightRef};

use super::Lowering;
use crate::cpu::pack::Recipe;
use crate::cpu::step::{HiddenStep, Step, SumStep};

impl Lowering<'_> {
    pub(super) fn experts(&mut self, node: NodeId, experts: &Experts) -> Result<()> {
        let x = self.input(self.operand(node, Role::X)?)?;
        let (chosen, shares) = (self.operand(node, Role::Chosen)?, self.operand(node, Role::Shares)?);
        ensure!(chosen.node == shares.node, "the experts and their shares come from two routers");
        let routed = self.input(chosen)?;
        let top_k = self.graph.type_of(shares).row_size();
        let mut inner = vec![self.operand(node, Role::Up)?];
        if experts.gated {
            inner.insert(0, self.operand(node, Role::Gate)?);
        }
        let [count, features, columns] = self.sizes(inner[0])?;
        ensure!(
            columns == self.shapes[x].size,
            "the experts have {columns} columns, their operand {}",
            self.shapes[x].size
        );
        let down = self.operand(node, Role::Down)?;
        let [_, outputs, _] = self.sizes(down)?;
        let each = |this: &mut Self, weights: &[Value], rows: usize, columns: usize| -> Result<Vec<usize>> {
            let formats = weights.iter().map(|&weight| this.held(weight, false)).collect::<Result<Vec<Format>>>()?;
            let names = weights.iter().map(|&weight| this.weight_ref(weight));
            let names: Vec<WeightRef> = names.collect::<Result<_>>()?;
            let recipe = |expert: usize| Recipe {
                names: names.iter().map(|name| name.matrix(expert)).collect(),
                rows: vec![rows; names.len()],
                columns,
                formats: formats.clone(),
                transposed: false,
                paired: names.len() == 2,
            };
            Ok((0..count).map(|expert| this.packed(recipe(expert))).collect())
        };
        let matrices = each(self, &inner, features, columns)?;
        let hidden = self.new_buffer(top_k * features);
        let (activation, gating) = (experts.activation, experts.gating);
        let coded = self.coded(x, &matrices);
        let mut biases = Vec::new();
        for role in [Role::GateBias, Role::UpBias] {
            if let Some(bias) = self.graph.operand(node, role) {
                biases.push(self.constant(bias, count * features)?);
            }
        }
        let step = HiddenStep { x, coded, routed, top_k, matrices, activation, gating, biases, out: hidden };
        self.push(Step::ExpertHidden(step));
        let matrices = each(self, &[down], outputs, features)?;
        let out = self.result(node.result(0));
        let coded = self.coded(hidden, &matrices);
        let bias = match self.graph.operand(node, Role::DownBias) {
            Some(bias) => self.constant(bias, count * outputs)?,
            None => Box::default(),
        };
        self.push(Step::ExpertSum(SumStep { hidden, coded, routed, top_k, matrices, bias, out }));
        Ok(())
    }
}
