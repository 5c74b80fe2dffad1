//! Routed experts: which, and what they compute.

use anyhow::{Result, ensure};

use super::matmul::dot;
use super::operands::Operands;
use super::{Tensor, maths};
use crate::ir::{Experts, Gating, Role, Route, Scoring};

/// The chosen experts of each row of logits, best first, and their shares.
pub(super) fn route(route: &Route, logits: &Tensor, bias: Option<&Tensor>, scales: Option<&Tensor>) -> Vec<Tensor> {
    let (mut chosen, mut shares) = (Vec::new(), Vec::new());
    for token in 0..logits.shape[0] {
        let row = logits.row(token);
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let power = |logit: f32| f64::from(logit - largest).exp();
        let sum: f64 = row.iter().map(|&logit| power(logit)).sum();
        let share = |&expert: &usize| match route.scoring {
            Scoring::Softmax => power(row[expert]) / sum,
            Scoring::Sigmoid => sigmoid(row[expert]),
        };
        let rank = |expert: usize| match bias {
            Some(bias) => share(&expert) + f64::from(bias.data[expert]),
            None => f64::from(row[expert]),
        };
        let mut order: Vec<usize> = match route.groups {
            Some([count, kept]) => best_groups(row.len(), count, kept, if route.bias { 2 } else { 1 }, &rank),
            None => (0..row.len()).collect(),
        };
        order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
        order.truncate(route.top_k);
        let own: Vec<f64> = order.iter().map(share).collect();
        let whole = if route.normalise { own.iter().sum() } else { 1.0 };
        let scale =
            |expert: usize| f64::from(route.scale) * scales.map_or(1.0, |scales| f64::from(scales.data[expert]));
        shares.extend(own.iter().zip(&order).map(|(share, &expert)| (share / whole * scale(expert)) as f32));
        chosen.extend(order.iter().map(|&expert| expert as f32));
    }
    let shape = [logits.shape[0], route.top_k];
    vec![Tensor::new(shape, chosen), Tensor::new(shape, shares)]
}

/// The experts of the best `kept` of `count` consecutive groups: by the sum of the `best` largest ranks of each.
fn best_groups(experts: usize, count: usize, kept: usize, best: usize, rank: &impl Fn(usize) -> f64) -> Vec<usize> {
    let size = experts / count;
    let score = |group: usize| {
        let mut ranks: Vec<f64> = (group * size..(group + 1) * size).map(rank).collect();
        ranks.sort_by(|a, b| b.total_cmp(a));
        ranks.iter().take(best).sum::<f64>()
    };
    let mut groups: Vec<usize> = (0..count).collect();
    groups.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    groups.truncate(kept);
    groups.sort_unstable();
    groups.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

/// One token and expert after the other.
pub(super) fn experts(fused: &Experts, operands: &Operands<'_>) -> Result<Tensor> {
    let (x, chosen, shares) = (operands.get(Role::X), operands.get(Role::Chosen), operands.get(Role::Shares));
    let (up, down) = (operands.get(Role::Up), operands.get(Role::Down));
    let outputs = down.shape[1];
    let mut out = Vec::with_capacity(x.shape[0] * outputs);
    for token in 0..x.shape[0] {
        let mut sum = vec![0.0f64; outputs];
        for (&expert, &share) in chosen.row(token).iter().zip(shares.row(token)) {
            ensure!((expert as usize) < up.shape[0], "expert {expert} is chosen, and there are {}", up.shape[0]);
            let expert = expert as usize;
            let biased = |stack: &Tensor, x: &[f32], role: Role| -> Vec<f32> {
                let mut result = product(stack, expert, x);
                if let Some(bias) = operands.find(role) {
                    result.iter_mut().zip(bias.row(expert)).for_each(|(value, bias)| *value += bias);
                }
                result
            };
            let up = biased(up, x.row(token), Role::UpBias);
            let hidden: Vec<f32> = match fused.gated {
                true => {
                    let gate = biased(operands.get(Role::Gate), x.row(token), Role::GateBias);
                    gate.iter().zip(&up).map(|(&gate, &up)| gated(fused, gate, up)).collect()
                }
                false => up.iter().map(|&up| maths::activate(fused.activation, up)).collect(),
            };
            let result = biased(down, &hidden, Role::DownBias);
            sum.iter_mut().zip(result).for_each(|(sum, value)| *sum += f64::from(share) * f64::from(value));
        }
        out.extend(sum.into_iter().map(|value| value as f32));
    }
    Ok(Tensor::new([x.shape[0], outputs], out))
}

/// What is made of a gate and the other product.
fn gated(fused: &Experts, gate: f32, up: f32) -> f32 {
    let Gating { limit, slope, offset } = fused.gating;
    let limit = limit.unwrap_or(f32::INFINITY);
    maths::activate(fused.activation, slope * gate.clamp(f32::NEG_INFINITY, limit)) / slope
        * (up.clamp(-limit, limit) + offset)
}

/// `a · sigmoid(b)`.
pub(super) fn glu(a: &Tensor, b: &Tensor) -> Tensor {
    let repeat = a.data.len() / b.data.len().max(1);
    let data = a.data.iter().enumerate().map(|(i, &a)| (f64::from(a) * sigmoid(b.data[i / repeat])) as f32);
    Tensor::new(a.shape.clone(), data.collect::<Vec<_>>())
}

/// One expert's matrix times a vector.
fn product(stack: &Tensor, expert: usize, x: &[f32]) -> Vec<f32> {
    stack.row(expert).chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}
