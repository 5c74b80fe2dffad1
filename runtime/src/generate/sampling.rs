//! Sampling parameters.

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParameters {
    /// 0: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: usize,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// Seed.
    pub seed: u64,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        SamplingParameters { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParameters {
    /// x
    pub fn validate(&self) -> anyhow::Result<()> {
        Ok(())
    }
}
/// x
pub fn sample(_l: &[f32], _p: &SamplingParameters, _a: u32, _b: u32) -> u32 {
    0
}
