//! What is computed element by element, by a kernel of its own.

use anyhow::{Context, Result, bail};

use super::Builder;
use crate::ir::{NodeId, Op, Results, Role};
use crate::plan::kernels::{Elementwise, Expression, KernelSpec, Spread};
use crate::plan::place::NULL;

impl Builder<'_, '_> {
    /// Two values, or a value and a weight.
    pub(super) fn pair(&mut self, node: NodeId, op: &Op) -> Result<()> {
        let [a, b] = [self.operand(node, Role::A)?, self.operand(node, Role::B)?];
        let [a, ty] = [a, b].map(|value| self.graph().type_of(value));
        let weight = matches!(self.graph().op(b.node), Op::Weight(_));
        let each = a.values_per(ty).with_context(|| format!("{op} of {a} and {ty}"))?;
        let spread = |of| Expression::Spread { of, each, weight };
        self.elementwise(
            node,
            match op {
                Op::Add if a == ty => Expression::Add,
                Op::Mul if a == ty => Expression::Mul,
                Op::Glu if a == ty => Expression::Glu { per_row: false },
                Op::Glu if ty.row_size() == 1 => Expression::Glu { per_row: true },
                Op::Add => spread(Spread::Add),
                Op::Mul => spread(Spread::Mul),
                Op::Glu => spread(Spread::Glu),
                Op::Decay => spread(Spread::Decay),
                _ => bail!("{op} has not two operands"),
            },
        )
    }

    pub(super) fn elementwise(&mut self, node: NodeId, kind: Expression) -> Result<()> {
        let (a, b) = match kind {
            Expression::Spread { weight: true, .. } => (self.pointer(node, Role::A)?, self.vector(node, Role::B, 0.0)?),
            Expression::Add | Expression::Mul | Expression::Glu { .. } | Expression::Spread { .. } => {
                (self.pointer(node, Role::A)?, self.pointer(node, Role::B)?)
            }
            Expression::Scale(_)
            | Expression::Softcap(_)
            | Expression::Clamp(_)
            | Expression::Activate(_)
            | Expression::Apply(_) => (self.pointer(node, Role::X)?, NULL),
            Expression::Sum(_) => bail!("a sum of rows is no node of its own"),
        };
        let size = self.graph().type_of(node.result(0)).row_size();
        let (out, storage) = self.result(node.result(0));
        let spec = KernelSpec::Elementwise(Elementwise { kind, size, out: storage });
        self.launch(spec, self.rows.count, &[("a", a), ("b", b), ("out", out)])?;
        self.note_logits(node);
        Ok(())
    }
}
