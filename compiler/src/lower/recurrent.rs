//! Ops that keep something from token to token.

use super::attributes::{count, mismatch, part};
use super::{Lowered, Lowering};
use crate::description::{Call, Diagnostic};
use crate::ir::{Conv, Format, Op, Replay, Results, Start, State, Type, Value, WeightRef};

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
