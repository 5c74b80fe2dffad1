//! Two values, or a value and a weight, element by element.

use anyhow::{Context, Result};
use fusec::ir::{NodeId, Op, Results, Role};

use super::Lowering;
use crate::cpu::step::{Operand, Step};

impl Lowering<'_> {
    pub(super) fn pair(&mut self, node: NodeId) -> Result<()> {
        let graph = self.graph;
        let [left, right] = [self.operand(node, Role::A)?, self.operand(node, Role::B)?];
        let (op, [ty, other]) = (graph.op(node), [left, right].map(|value| graph.type_of(value)));
        let a = self.input(left)?;
        let b = match graph.op(right.node) {
            Op::Weight(_) => {
                let each = ty.values_per(other).with_context(|| format!("{op} of {ty} and {other}"))?;
                let weight = self.constant(right, ty.row_size() / each)?;
                let factor = |&value: &f32| if *op == Op::Decay { -value.exp() } else { value };
                Operand::Constant(weight.iter().flat_map(|value| vec![factor(value); each]).collect())
            }
            _ => Operand::Buffer(self.input(right)?),
        };
        let out = self.result(node.result(0));
        let step = match (op, b) {
            (Op::Glu, Operand::Buffer(b)) => Step::Glu { a, b, out },
            (_, b) => Step::Combine { multiply: *op != Op::Add, a: Operand::Buffer(a), b, out },
        };
        self.push(step);
        Ok(())
    }
}
