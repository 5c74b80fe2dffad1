//! A value with another one or with a weight, element by element.

use super::attributes::mismatch;
use super::shapes::words;
use super::{Lowered, Lowering};
use crate::description::Call;
use crate::ir::Op;

impl Lowering<'_> {
    pub(super) fn pair(&mut self, call: &Call, op: Op) -> Lowered {
        if !call.values.contains_key("b") {
            return self.with_weight(call, "a", op);
        }
        if call.count("features").is_some() {
            return Err(mismatch(call, "`features` is the size of a weight, and `b` is none"));
        }
        let [a, b] = [self.activation(call, "a")?, self.activation(call, "b")?];
        let [left, right] = [a, b].map(|value| self.graph.type_of(value).clone());
        if left.values_per(&right).is_none() {
            let (left, right) = (words(&left), words(&right));
            let message = format!("`a` (`{}`) is {left}, `b` (`{}`) is {right}", call.values["a"], call.values["b"]);
            return Err(mismatch(call, message).help("`b` has one value per token or per head, or as many as `a`"));
        }
        Ok(self.node(call, op, &[a, b], left))
    }

    pub(super) fn decay(&mut self, call: &Call) -> Lowered {
        self.with_weight(call, "x", Op::Decay)
    }

    fn with_weight(&mut self, call: &Call, role: &str, op: Op) -> Lowered {
        let a = self.activation(call, role)?;
        let left = self.graph.type_of(a).clone();
        if !call.weights.contains_key("weight") {
            return Err(mismatch(call, "neither `b` nor `weight` is given").help("give the choice an `else`"));
        }
        let count = call.count("features").unwrap_or(left.row_size());
        let weight = self.weight(call, "weight", &[count])?;
        if left.values_per(self.graph.type_of(weight)).is_none() {
            let message = format!("`{role}` (`{}`) is {}, and the weight has {count}", call.values[role], words(&left));
            return Err(mismatch(call, message).help("a weight has as many values as a token, one for each head, or 1"));
        }
        Ok(self.node(call, op, &[a, weight], left))
    }
}
