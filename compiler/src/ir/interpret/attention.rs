//! Causal attention over a cache.

use anyhow::{Result, ensure};

use super::Tensor;
use super::matmul::dot;
use crate::ir::Attention;

/// `softmax(scale · q kᵀ) v`, one token and head after the other. `q` is `[tokens, heads, head_dim]`, the caches are
/// `[context, kv_heads, head_dim]` and hold this step's keys and values already. Only the plain part of `attention`
/// counts here: scale, window, softcap and sinks.
pub(super) fn attention(
    attention: &Attention,
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    positions: &Tensor,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let [context, kv_heads, head_dim] = keys.shape[..] else {
        unreachable!("the verifier lets a cache have three axes")
    };
    let heads = q.shape[1];
    let value_dim = attention.latent.unwrap_or(head_dim);
    let mut out = Tensor::zeros(vec![q.shape[0], heads, value_dim]);
    for (token, &position) in positions.data.iter().enumerate() {
        ensure!(
            position >= 0.0 && (position as usize) < context,
            "the position {position} is outside the cache of {context}"
        );
        let last = position as usize;
        let first = attention.window.map_or(0, |window| (last + 1).saturating_sub(window));
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let query = &q.row(token)[head * head_dim..][..head_dim];
            let of_head = |cache: &Tensor, position: usize| {
                let start = (position * kv_heads + kv_head) * head_dim;
                start..start + cache.shape[2]
            };
            let mut scores: Vec<f32> = (first..=last)
                .map(|position| {
                    let score = attention.scale * dot(query, &keys.data[of_head(keys, position)]);
                    attention.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                })
                .collect();
            scores.extend(sinks.map(|sinks| sinks.data[head]));
            let weights = softmax(&scores);
            // The sink's weight, where there is one, is last and has no value.
            let mut sum = vec![0.0f64; value_dim];
            for (position, weight) in (first..=last).zip(weights) {
                for (sum, &value) in sum.iter_mut().zip(&values.data[of_head(values, position)]) {
                    *sum += weight * f64::from(value);
                }
            }
            let start = (token * heads + head) * value_dim;
            for (out, sum) in out.data[start..].iter_mut().zip(sum) {
                *out = sum as f32;
            }
        }
    }
    Ok(out)
}

fn softmax(scores: &[f32]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = scores.iter().map(|&score| f64::from(score - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
