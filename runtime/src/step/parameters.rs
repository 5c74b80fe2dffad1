//! The parameters of a sequence for the sampling kernel.

use super::addresses::PARAMETER_BYTES;
use crate::sampling::SamplingParameters;

/// Tokens that may end a sequence on the device; the host watches for any more.
pub const MAX_STOPS: usize = 8;

/// The record of `struct Parameters` in sample.cu: `limit` is the first position that takes no further step,
/// `marks` the address of the sequence's [`Marks`](crate::sampling::Marks) on the device, or 0 where its logits are taken as they are.
pub fn record(sampling: &SamplingParameters, limit: usize, stops: &[u32], marks: u64) -> [u8; PARAMETER_BYTES] {
    let stops = &stops[..stops.len().min(MAX_STOPS)];
    let mut words = [0u32; PARAMETER_BYTES / 4];
    words[0] = sampling.temperature.to_bits();
    words[1] = u32::try_from(sampling.top_k).unwrap_or(u32::MAX);
    words[2] = sampling.top_p.to_bits();
    words[3] = sampling.min_p.to_bits();
    words[4] = sampling.seed as u32;
    words[5] = (sampling.seed >> 32) as u32;
    words[6] = u32::try_from(limit).unwrap_or(u32::MAX);
    words[7] = stops.len() as u32;
    words[8..8 + stops.len()].copy_from_slice(stops);
    words[16] = marks as u32;
    words[17] = (marks >> 32) as u32;
    words[18] = sampling.repetition_penalty.to_bits();
    let mut bytes = [0; PARAMETER_BYTES];
    bytes.copy_from_slice(bytemuck::cast_slice(&words));
    bytes
}
