//! The next token from a row of logits, as the device samples it: sums are of integers, so that no order of them can change a draw.

use anyhow::{Result, bail, ensure};

use crate::grammar::Grammar;

/// Biases at most.
pub const MOST_BIASES: usize = 1024;

/// How the next token is chosen. What changes logits applies in the order of the fields, then come the filters; what ties with the last one kept is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParameters {
    /// Tokens that are never chosen. Those beyond the vocabulary have no effect.
    pub suppress: Vec<u32>,
    /// Added to the logits of these tokens, -100 to 100. Those beyond the vocabulary have no effect.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides the positive logits of tokens that the prompt or the text has, and multiplies the others of them. 1: off.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token once for each time that the text after the prompt has it, -2 to 2. 0: off.
    pub frequency_penalty: f32,
    /// Taken from the logits of tokens that the text after the prompt has, -2 to 2. 0: off.
    pub presence_penalty: f32,
    /// Divides the logits. 0: greedy, the first largest.
    pub temperature: f32,
    /// Keeps the `top_k` largest. 0: off.
    pub top_k: usize,
    /// Keeps the fewest largest of those that hold this share of their probability. 1: off.
    pub top_p: f32,
    /// Keeps what is at least this share of the largest probability. 0: off.
    pub min_p: f32,
    /// With the position and the sequence it fixes each draw.
    pub seed: u64,
    /// What the text is held to: tokens that it does not allow are not chosen, whatever the other fields are.
    pub grammar: Option<Grammar>,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        SamplingParameters {
            suppress: Vec::new(),
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            grammar: None,
        }
    }
}

impl SamplingParameters {
    /// Refuses what has no meaning.
    ///
    /// # Errors
    /// A parameter outside its range: the message names it, its value and the range.
    pub fn validate(&self) -> Result<()> {
        let SamplingParameters { repetition_penalty, temperature, top_p, min_p, .. } = self;
        let biases = self.logit_bias.len();
        ensure!(biases <= MOST_BIASES, "{biases} tokens have a bias; give {MOST_BIASES} at most");
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            bail!("the bias of token {token} is {bias}; give -100 to 100, 0 changes nothing");
        }
        ensure!(
            (1e-9..=1e9).contains(repetition_penalty),
            "the repetition penalty is {repetition_penalty}; give 1e-9 to 1e9, 1 is off"
        );
        for (name, penalty) in [("frequency", self.frequency_penalty), ("presence", self.presence_penalty)] {
            ensure!((-2.0..=2.0).contains(&penalty), "the {name} penalty is {penalty}; give -2 to 2, 0 is off");
        }
        ensure!(
            temperature.is_finite() && *temperature >= 0.0,
            "the temperature is {temperature}; give 0 for greedy, or more"
        );
        ensure!(*top_p > 0.0 && *top_p <= 1.0, "top-p is {top_p}; give more than 0, at most 1 (off)");
        ensure!((0.0..=1.0).contains(min_p), "min-p is {min_p}; give 0 (off) to 1");
        Ok(())
    }

    /// Whether logits are changed before a token is chosen, which needs [`Marks`](super::Marks).
    pub fn changes_logits(&self) -> bool {
        let counts = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        self.repetition_penalty != 1.0 || !self.suppress.is_empty() || counts || !self.logit_bias.is_empty()
    }
}

/// The token for the place after `position` of `sequence`. `logits` is one row, not empty; the same arguments give the same token.
///
/// With a temperature the draw is `u = philox(seed, position, sequence)` in [0, 1), and the token is the first whose weight, added to those
/// before it that are kept, is beyond `u` of all that is kept.
pub fn sample(logits: &[f32], parameters: &SamplingParameters, position: u32, sequence: u32) -> u32 {
    let SamplingParameters { temperature, top_k, top_p, min_p, seed, .. } = *parameters;
    let best = first_largest(logits);
    // Written so that NaN is greedy too.
    let drawn = temperature > 0.0;
    if !drawn || !logits[best].is_finite() {
        return best as u32;
    }
    let largest = logits[best];
    // exp((logit - largest) / temperature) in units of 2^-31.
    let weight = |logit: f32| (((logit - largest) / temperature).exp() * UNIT) as u64;
    let mut floor = 0;
    if top_k > 0 && top_k < logits.len() {
        floor = threshold(logits, floor, top_k as u64, |_| 1);
    }
    if top_p < 1.0 {
        let total: u64 = kept(logits, floor).map(|(_, logit)| weight(logit)).sum();
        let wanted = ((f64::from(top_p) * total as f64) as u64).max(1);
        floor = threshold(logits, floor, wanted, weight);
    }
    if min_p > 0.0 {
        floor = floor.max(ordered_bits(largest + temperature * min_p.ln()));
    }
    let total: u64 = kept(logits, floor).map(|(_, logit)| weight(logit)).sum();
    let draw = philox([position, sequence, 0, 0], [seed as u32, (seed >> 32) as u32])[0] >> 8;
    let target = (f64::from(draw) / 16_777_216.0 * total as f64) as u64;
    let mut sum = 0;
    for (token, logit) in kept(logits, floor) {
        sum += weight(logit);
        if sum > target {
            return token as u32;
        }
    }
    best as u32
}

const UNIT: f32 = 2_147_483_648.0;

/// The index of the first of the largest; NaN is never the largest.
fn first_largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] || (logits[best].is_nan() && !logit.is_nan()) {
            best = i;
        }
    }
    best
}

/// The logits at or above a threshold, with their tokens.
fn kept(logits: &[f32], floor: u32) -> impl Iterator<Item = (usize, f32)> + '_ {
    logits.iter().copied().enumerate().filter(move |&(_, logit)| ordered_bits(logit) >= floor && !logit.is_nan())
}

/// The bits of a float in an order that compares as unsigned.
fn ordered_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The largest bits `t`, at least `floor`, such that the logits at or above `t` measure `wanted` together: digit by digit, from the highest.
fn threshold(logits: &[f32], floor: u32, wanted: u64, measure: impl Fn(f32) -> u64) -> u32 {
    let mut prefix = 0u32;
    let mut above = 0;
    for shift in [24, 16, 8, 0] {
        let mut bins = [0u64; 256];
        for (_, logit) in kept(logits, floor) {
            let bits = ordered_bits(logit);
            if shift == 24 || bits >> (shift + 8) == prefix >> (shift + 8) {
                bins[(bits >> shift & 255) as usize] += measure(logit);
            }
        }
        let mut digit = 255;
        while digit > 0 && above + bins[digit] < wanted {
            above += bins[digit];
            digit -= 1;
        }
        prefix |= (digit as u32) << shift;
    }
    prefix.max(floor)
}

/// Philox4x32-10 (Salmon et al., 2011): four random words of a counter and a key.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let (high0, low0) = product(0xD251_1F53, c0);
        let (high1, low1) = product(0xCD9E_8D57, c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm() -> SamplingParameters {
        SamplingParameters { temperature: 1.0, seed: 7, ..SamplingParameters::default() }
    }

    /// How often each token is drawn over many positions.
    fn counts(logits: &[f32], parameters: &SamplingParameters, draws: u32) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[sample(logits, parameters, position, 3) as usize] += 1.0 / f64::from(draws);
        }
        counts
    }

    /// The tokens that are drawn at all.
    fn support(logits: &[f32], parameters: &SamplingParameters) -> Vec<usize> {
        let counts = counts(logits, parameters, 4000);
        (0..logits.len()).filter(|&token| counts[token] > 0.0).collect()
    }

    #[test]
    fn philox_gives_the_published_words() {
        // From Random123's kat_vectors.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        let greedy = SamplingParameters::default();
        assert_eq!(sample(&[1.0, 3.0, 3.0, -2.0], &greedy, 5, 0), 1);
        assert_eq!(sample(&[f32::NEG_INFINITY, f32::NEG_INFINITY], &greedy, 5, 0), 0);
        assert_eq!(sample(&[f32::NAN, -1.0, -0.5], &greedy, 5, 0), 2);
        assert_eq!(sample(&[f32::NAN, f32::NAN], &warm(), 5, 0), 0);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0f32, 0.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5];
        for temperature in [0.5f32, 1.0, 2.0] {
            let found = counts(&logits, &SamplingParameters { temperature, ..warm() }, 40_000);
            let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (found, weight) in found.iter().zip(&weights) {
                // Four standard deviations of a share over 40 000 draws are at most 0.01.
                assert!((found - weight / total).abs() < 0.01, "{found} is not {}", weight / total);
            }
        }
    }

    #[test]
    fn top_k_keeps_the_largest_and_what_ties() {
        let logits = [0.0, 3.0, 1.0, 2.0, 1.0];
        let top = |top_k| SamplingParameters { top_k, ..warm() };
        assert_eq!(support(&logits, &top(1)), [1]);
        assert_eq!(support(&logits, &top(2)), [1, 3]);
        assert_eq!(support(&logits, &top(3)), [1, 2, 3, 4]);
        assert_eq!(support(&logits, &top(5)), [0, 1, 2, 3, 4]);
        assert_eq!(support(&logits, &top(99)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_hold_the_share() {
        // Probabilities 0.1, 0.4, 0.2, 0.3.
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let top = |top_p| SamplingParameters { top_p, ..warm() };
        assert_eq!(support(&logits, &top(0.39)), [1]);
        assert_eq!(support(&logits, &top(0.5)), [1, 3]);
        assert_eq!(support(&logits, &top(0.71)), [1, 2, 3]);
        assert_eq!(support(&logits, &top(0.95)), [0, 1, 2, 3]);
        // The share is of what top-k left: 4/7 for the first.
        assert_eq!(support(&logits, &SamplingParameters { top_k: 2, ..top(0.5) }), [1]);
        assert_eq!(support(&[-1.0, 2.0, 2.0], &top(0.1)), [1, 2]);
    }

    #[test]
    fn min_p_keeps_what_is_near_the_largest() {
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let min = |min_p| SamplingParameters { min_p, ..warm() };
        assert_eq!(support(&logits, &min(0.8)), [1]);
        assert_eq!(support(&logits, &min(0.7)), [1, 3]);
        assert_eq!(support(&logits, &min(0.45)), [1, 2, 3]);
        // At temperature 2 the ratios are square roots: 0.5 for the smallest.
        assert_eq!(support(&logits, &SamplingParameters { temperature: 2.0, ..min(0.49) }), [0, 1, 2, 3]);
    }

    #[test]
    fn a_draw_depends_on_seed_position_and_sequence_alone() {
        let logits: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 * 0.01).collect();
        let draws = |seed, sequence| -> Vec<u32> {
            let parameters = SamplingParameters { seed, ..warm() };
            (0..20).map(|position| sample(&logits, &parameters, position, sequence)).collect()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1 << 32 | 1, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }

    #[test]
    fn parameters_without_meaning_are_refused() {
        assert!(warm().validate().is_ok() && SamplingParameters::default().validate().is_ok());
        let refused = |parameters: SamplingParameters| parameters.validate().expect_err("out of range").to_string();
        assert_eq!(
            refused(SamplingParameters { temperature: -1.0, ..warm() }),
            "the temperature is -1; give 0 for greedy, or more"
        );
        assert!(refused(SamplingParameters { temperature: f32::NAN, ..warm() }).contains("NaN"));
        assert_eq!(
            refused(SamplingParameters { top_p: 0.0, ..warm() }),
            "top-p is 0; give more than 0, at most 1 (off)"
        );
        assert_eq!(refused(SamplingParameters { min_p: 1.5, ..warm() }), "min-p is 1.5; give 0 (off) to 1");
        assert_eq!(
            refused(SamplingParameters { presence_penalty: 2.5, ..warm() }),
            "the presence penalty is 2.5; give -2 to 2, 0 is off"
        );
        assert!(
            refused(SamplingParameters { frequency_penalty: f32::NAN, ..warm() }).contains("frequency penalty is NaN")
        );
        assert_eq!(
            refused(SamplingParameters { logit_bias: vec![(3, 1.0), (7, -101.0)], ..warm() }),
            "the bias of token 7 is -101; give -100 to 100, 0 changes nothing"
        );
        assert_eq!(
            refused(SamplingParameters { logit_bias: vec![(3, 1.0); 1025], ..warm() }),
            "1025 tokens have a bias; give 1024 at most"
        );
    }
}
