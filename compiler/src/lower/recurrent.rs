//! Ops that keep something from token to token.

use super::attributes::{count, mismatch, part};
use super::shapes::words;
use super::{Lowered, Lowering};
use crate::description::{Call, Diagnostic};
use crate::ir::{Conv, Format, Op, Recall, Replay, Results, Start, State, Type, Value, WeightRef};

impl Lowering<'_> {
    pub(super) fn conv(&mut self, call: &Call) -> Lowered {
        let x = self.activation(call, "x")?;
        let result = self.graph.type_of(x).clone();
        let (channels, taps) = (result.row_size(), count(call, "taps"));
        if taps < 2 {
            return Err(mismatch(call, "`taps` is 1: a convolution depends on a token before its own, at least"));
        }
        let part = part(call, "part", 0, channels)?;
        let name = |role: &str| WeightRef::of(&call.weights[role], None, part);
        let weight = self.named_weight(call, &name("weight"), &[channels, 1, taps])?;
        let bias = call.weights.contains_key("bias");
        let bias = bias.then(|| self.named_weight(call, &name("bias"), &[channels])).transpose()?;
        let (inputs, named) = self.state(call, "inputs", &[taps - 1, channels])?;
        let mut operands = vec![x, inputs, self.values["positions"], weight];
        operands.extend(bias);
        let kept = self.graph.type_of(inputs).clone();
        let op = Op::Conv(Conv { bias: bias.is_some() });
        let node = self.graph.add(op, &operands, vec![result, kept], call.layer);
        self.states.push((named, node.result(1)));
        Ok(node.result(0))
    }

    pub(super) fn recall(&mut self, call: &Call) -> Lowered {
        let [q, k, v] = [self.heads(call, "q")?, self.heads(call, "k")?, self.heads(call, "v")?];
        let differ = |message: String| Err(mismatch(call, message));
        if q != k {
            return differ(format!("`q` has {q}, `k` has {k}: they must be alike"));
        }
        if !v.count.is_multiple_of(k.count) {
            return differ(format!("`v` has {v}, `k` has {k}: the heads of `v` cannot share those of `k` evenly"));
        }
        let delta = call.values.contains_key("beta");
        let each = Type::activation(&[v.count]);
        for (role, types) in [("decay", vec![each.clone(), Type::activation(&[v.count, k.size])]), ("beta", vec![each])]
        {
            if role == "beta" && !delta {
                continue;
            }
            let value = self.activation(call, role)?;
            let ty = self.graph.type_of(value);
            if !types.contains(ty) {
                let message = format!("`{role}` (`{}`) is {}, and `v` has {v}", call.values[role], words(ty));
                return Err(mismatch(call, message).help(format!("`{role}` has one value per head of `v`")));
            }
        }
        let (memory, named) = self.state(call, "memory", &[v.count, k.size, v.size])?;
        let mut operands: Vec<Value> = ["q", "k", "v", "decay"].map(|role| self.operand(call, role)).into();
        operands.extend(delta.then(|| self.operand(call, "beta")));
        operands.extend([memory, self.values["positions"]]);
        let types = [operands[2], memory].map(|value| self.graph.type_of(value).clone());
        let node = self.graph.add(Op::Recall(Recall { delta }), &operands, types.into(), call.layer);
        self.states.push((named, node.result(1)));
        Ok(node.result(0))
    }

    /// A state of the call's layer, in fp32, and its name: `kind.N`, and `kind.N.1` and so on where the layer has more of them.
    fn state(&mut self, call: &Call, kind: &str, sizes: &[usize]) -> Result<(Value, String), Diagnostic> {
        let Some(layer) = call.layer else {
            let message =
                format!("`{}` keeps something for its layer, and [embed] and [head] are none", call.op.name());
            return Err(mismatch(call, message));
        };
        let first = format!("{kind}.{layer}");
        let of_layer =
            |name: &str| name.strip_prefix(&first).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let name = match self.states.iter().filter(|(name, _)| of_layer(name)).count() {
            0 => first,
            before => format!("{first}.{before}"),
        };
        let state = State { name: name.clone(), start: Start::Zeros, replay: Replay::Once };
        Ok((self.node(call, Op::State(state), &[], Type::weight(Format::F32, sizes)), name))
    }
}
