//! Ops that go from token to token: a state, and how each token changes it. A token at position 0 begins anew.

use super::Tensor;
use super::operands::Operands;
use crate::ir::Role;

/// One token after the other. The second result is the state after the last.
pub(super) fn conv(operands: &Operands<'_>) -> Vec<Tensor> {
    let (x, weight, bias) = (operands.get(Role::X), operands.get(Role::Weight(0)), operands.find(Role::Bias(0)));
    let (mut out, mut inputs) = (x.clone(), operands.get(Role::Inputs).clone());
    let (channels, taps) = (x.row_size(), weight.row_size());
    for (token, &position) in operands.get(Role::Positions).data.iter().enumerate() {
        if position == 0.0 {
            inputs.data.fill(0.0);
        }
        for channel in 0..channels {
            let input = |tap: usize| match inputs.data.get(tap * channels + channel) {
                Some(&before) => before,
                None => x.row(token)[channel],
            };
            let products = (0..taps).map(|tap| f64::from(weight.row(channel)[tap]) * f64::from(input(tap)));
            let sum = products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias.data[channel]));
            out.data[token * channels + channel] = sum as f32;
        }
        inputs.data.drain(..channels);
        inputs.data.extend_from_slice(x.row(token));
    }
    vec![out, inputs]
}
