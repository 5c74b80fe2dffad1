//! Products of heads, and heads side by side.

use super::attributes::{count, mismatch, part};
use super::{Lowered, Lowering};
use crate::description::Call;
use crate::ir::{Op, Part, Type, WeightRef};

impl Lowering<'_> {
    pub(super) fn head_linear(&mut self, call: &Call) -> Lowered {
        let heads = self.heads(call, "x")?;
        let (features, turned) = (count(call, "features"), call.flag("transposed"));
        // Rows of a head that is stored transposed are the columns of its matrix.
        let (rows, axis) = if turned { (heads.size, 2) } else { (features, 1) };
        let part = part(call, "part", axis, rows)?;
        if let Some(Part { size, .. }) = part.filter(|part| part.size != rows) {
            return Err(mismatch(call, format!("`part` takes {size} rows of a head, and {rows} are needed")));
        }
        let split = Some(heads.count);
        let name = WeightRef { split, turned, ..WeightRef::of(&call.weights["weight"], None, part) };
        let weight = self.named_weight(call, &name, &[heads.count, features, heads.size])?;
        let x = self.operand(call, "x");
        Ok(self.node(call, Op::HeadProduct, &[x, weight], Type::activation(&[heads.count, features])))
    }

    pub(super) fn concat(&mut self, call: &Call) -> Lowered {
        let (a, b) = (self.heads(call, "a")?, self.heads(call, "b")?);
        if a.count != b.count {
            return Err(mismatch(call, format!("`a` has {a}, `b` has {b}: they must have as many heads")));
        }
        let operands = [self.operand(call, "a"), self.operand(call, "b")];
        Ok(self.node(call, Op::Concat, &operands, Type::activation(&[a.count, a.size + b.size])))
    }
}
