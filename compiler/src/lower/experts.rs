//! Routed experts.

use super::attributes::{count, mismatch, number, part, positive};
use super::{Lowered, Lowering};
use crate::description::Call;
use crate::ir::{Dim, Experts, Format, Gating, Op, Results, Route, Scoring, Type, WeightRef};

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
        let groups = match (call.count("groups"), call.count("kept_groups")) {
            (Some(count), Some(kept)) => Some([count, kept]),
            (None, None) => None,
            _ => return Err(mismatch(call, "`groups` and `kept_groups` are given together, or neither is")),
        };
        if let Some([count, kept]) = groups {
            let size = experts / count.max(1);
            let fits = experts.is_multiple_of(count) && count <= 32 && kept <= count && top_k <= kept * size;
            if !fits || (bias && size < 2) {
                let message = format!("{top_k} of {experts} experts cannot be chosen from {kept} of {count} groups");
                return Err(mismatch(call, message).help("groups are even, at most 32, of two experts or more"));
            }
        }
        let expert_scale = call.weights.contains_key("expert_scale");
        if expert_scale {
            logits.push(self.weight(call, "expert_scale", &[experts])?);
        }
        let normalise = call.flag("normalise");
        let route = Route { top_k, scoring, bias, normalise, scale: positive(call, "scale")?, expert_scale, groups };
        let chosen = Type { format: Format::I32, shape: vec![Dim::Tokens, Dim::Fixed(top_k)] };
        let routed = self.graph.add(Op::Route(route), &logits, vec![chosen, Type::activation(&[top_k])], call.layer);
        let mut operands = vec![x, routed.result(0), routed.result(1)];
        let gated = call.weights.contains_key("gate");
        let roles = [("gate", features, inputs), ("up", features, inputs), ("down", outputs, features)];
        for (role, rows, columns) in roles.into_iter().skip(usize::from(!gated)) {
            let stacked = call.weights[role].contains("{expert}");
            let part = part(call, &format!("{role}_part"), usize::from(!stacked), rows)?;
            let turned = call.flag("transposed");
            let name = WeightRef { turned, ..WeightRef::of(&call.weights[role], Some(experts), part) };
            operands.push(self.named_weight(call, &name, &[experts, rows, columns])?);
        }
        let activation = call.activation("kind").expect("the signature requires it");
        let has = |role: &str| call.weights.contains_key(role);
        if gated && has("gate_bias") != has("up_bias") || !gated && has("gate_bias") {
            let message = "`gate_bias` and `up_bias` are given together, or neither is";
            let lacks = "`gate_bias` is given, and there is no `gate`";
            return Err(mismatch(call, if gated { message } else { lacks }));
        }
        for (role, rows) in [("gate", features), ("up", features), ("down", outputs)] {
            let bias = format!("{role}_bias");
            let Some(tensor) = call.weights.get(bias.as_str()) else { continue };
            let stacked = tensor.contains("{expert}");
            let part = part(call, &format!("{role}_part"), usize::from(!stacked), rows)?;
            let name = WeightRef::of(tensor, Some(experts), part);
            operands.push(self.named(call, &name, &[experts, rows], false)?);
        }
        let limit = match call.float("limit") {
            Some(_) => Some(positive(call, "limit")?),
            None => None,
        };
        let gating = Gating { limit, slope: positive(call, "slope")?, offset: number(call, "up_offset") };
        if !gated && !gating.is_plain() {
            return Err(mismatch(call, "`limit`, `slope` and `up_offset` are of experts with a `gate`"));
        }
        let op =
            Op::Experts(Experts { activation, gated, gating, biased: has("up_bias"), down_bias: has("down_bias") });
        Ok(self.node(call, op, &operands, Type::activation(&[outputs])))
    }
}
