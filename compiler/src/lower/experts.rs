//! Routed experts.

use super::attributes::{count, mismatch, part, positive};
use super::{Lowered, Lowering};
use crate::description::Call;
use crate::ir::{Dim, Experts, Format, Op, Results, Route, Scoring, Type, WeightRef};

impl Lowering<'_> {
    pub(super) fn experts(&mut self, call: &Call) -> Lowered {
        let (x, router) = (self.activation(call, "x")?, self.activation(call, "router")?);
        let (inputs, experts) = (self.graph.type_of(x).row_size(), self.graph.type_of(router).row_size());
        let (top_k, features, outputs) = (count(call, "top_k"), count(call, "features"), count(call, "out_features"));
        if top_k > experts {
            return Err(mismatch(call, format!("`top_k` is {top_k}, and `router` has {experts} logits")));
        }
        let scoring = if call.flag("sigmoid") { Scoring::Sigmoid } else { Scoring::Softmax };
        let bias = call.weights.contains_key("choice_bias");
        let mut logits = vec![router];
        if bias {
            let name = WeightRef::whole(&call.weights["choice_bias"]);
            // The choice hangs on differences that bf16 does not hold.
            logits.push(self.weight_of_type(call, &name, Type::weight(Format::F32, &[experts]))?);
        }
        let normalise = call.flag("normalise");
        let route = Route { top_k, scoring, bias, normalise, scale: positive(call, "scale")? };
        let chosen = Type { format: Format::I32, shape: vec![Dim::Tokens, Dim::Fixed(top_k)] };
        let routed = self.graph.add(Op::Route(route), &logits, vec![chosen, Type::activation(&[top_k])], call.layer);
        let mut operands = vec![x, routed.result(0), routed.result(1)];
        let gated = call.weights.contains_key("gate");
        let roles = [("gate", features, inputs), ("up", features, inputs), ("down", outputs, features)];
        for (role, rows, columns) in roles.into_iter().skip(usize::from(!gated)) {
            let stacked = call.weights[role].contains("{expert}");
            let part = part(call, &format!("{role}_part"), usize::from(!stacked), rows)?;
            let name = WeightRef::of(&call.weights[role], Some(experts), part);
            operands.push(self.named_weight(call, &name, &[experts, rows, columns])?);
        }
        let activation = call.activation("kind").expect("the signature requires it");
        let op = Op::Experts(Experts { activation, gated });
        Ok(self.node(call, op, &operands, Type::activation(&[outputs])))
    }
}
