//! How likely the model held a token, and which it held likelier.

/// Other tokens that are told beside the chosen one, at most.
pub const MOST_SCORES: usize = 20;

/// The log probabilities after one place, of the logits as the model gave them: no temperature, penalty, bias or filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// That of the token that was chosen.
    pub chosen: f32,
    /// The most likely tokens with theirs, the likeliest first; of equal ones the smaller token.
    pub top: Vec<(u32, f32)>,
}

impl Scores {
    /// Of a row of logits that a token can be chosen from ([`check_logits`](super::check_logits)). `top`: how many, at most [`MOST_SCORES`].
    pub fn new(logits: &[f32], token: u32, top: usize) -> Scores {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // One order of the sum, so that the same logits give the same bits.
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (token, &logit) in (0..).zip(logits) {
            if best.len() < top || best.last().is_some_and(|&(_, least)| logit > least) {
                let at = best.partition_point(|&(_, other)| other >= logit);
                best.insert(at, (token, logit));
                best.truncate(top);
            }
        }
        let chosen = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Scores::of_logits(largest, sum, chosen, best.into_iter())
    }

    /// Of the largest logit, the sum of exp(logit - largest) over all tokens, the chosen token's logit, and the most likely tokens with theirs.
    pub fn of_logits(largest: f32, sum: f64, chosen: f32, top: impl Iterator<Item = (u32, f32)>) -> Scores {
        let score = |logit: f32| (f64::from(logit - largest) - sum.ln()) as f32;
        Scores { chosen: score(chosen), top: top.map(|(token, logit)| (token, score(logit))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_the_logarithm_of_the_softmax() {
        let probabilities = [0.1f32, 0.4, 0.2, 0.3];
        let scores = Scores::new(&probabilities.map(|p| p.ln() + 7.0), 2, 3);
        let near = |score: f32, p: f32| assert!((score.exp() - p).abs() < 1e-6, "{score} is not ln {p}");
        near(scores.chosen, 0.2);
        assert_eq!(scores.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 2]);
        scores.top.iter().for_each(|&(token, score)| near(score, probabilities[token as usize]));
    }

    #[test]
    fn of_equal_ones_the_smaller_token_comes_first() {
        let top = |logits: &[f32], top| -> Vec<u32> {
            Scores::new(logits, 0, top).top.into_iter().map(|(token, _)| token).collect()
        };
        assert_eq!(top(&[1.0, 2.0, 2.0, 1.0, 2.0], 4), [1, 2, 4, 0]);
        assert_eq!(top(&[1.0, 2.0], MOST_SCORES), [1, 0], "no more than there are");
        assert_eq!(top(&[1.0, 2.0], 0), [] as [u32; 0]);
        let scores = Scores::new(&[f32::NEG_INFINITY, 0.0], 0, 2);
        assert_eq!((scores.chosen, scores.top[0]), (f32::NEG_INFINITY, (1, 0.0)));
    }
}
