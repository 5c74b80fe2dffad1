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

/// One token after the other, head after head. The second result is the memory after the last token.
pub(super) fn recall(operands: &Operands<'_>) -> Vec<Tensor> {
    let [q, k, v, decay] = [Role::Q, Role::K, Role::V, Role::Decay].map(|role| operands.get(role));
    let (beta, mut memory) = (operands.find(Role::Beta), operands.get(Role::Memory).clone());
    let (heads, key, value) = (memory.shape[0], memory.shape[1], memory.shape[2]);
    let share = heads / k.shape[1];
    let mut out = v.clone();
    for (token, &position) in operands.get(Role::Positions).data.iter().enumerate() {
        if position == 0.0 {
            memory.data.fill(0.0);
        }
        for head in 0..heads {
            let [q, k] = [q, k].map(|tensor| &tensor.row(token)[head / share * key..][..key]);
            let values = &v.row(token)[head * value..][..value];
            let own = &mut memory.data[head * key * value..][..key * value];
            // One for the head, or one for each place of a key.
            let decays = &decay.row(token)[head * decay.row_size() / heads..][..decay.row_size() / heads];
            for (row, kept) in own.chunks_mut(value).enumerate() {
                let factor = f64::from(decays[row % decays.len()]).exp();
                kept.iter_mut().for_each(|kept| *kept = (f64::from(*kept) * factor) as f32);
            }
            for column in 0..value {
                let of = |factors: &[f32], own: &[f32]| -> f64 {
                    factors
                        .iter()
                        .enumerate()
                        .map(|(row, &f)| f64::from(f) * f64::from(own[row * value + column]))
                        .sum()
                };
                let new = match beta {
                    Some(beta) => f64::from(beta.row(token)[head]) * (f64::from(values[column]) - of(k, own)),
                    None => values[column].into(),
                };
                for (row, &k) in k.iter().enumerate() {
                    own[row * value + column] = (f64::from(own[row * value + column]) + f64::from(k) * new) as f32;
                }
                out.data[(token * heads + head) * value + column] = of(q, own) as f32;
            }
        }
    }
    vec![out, memory]
}
