//! What a sequence's tokens change about its next logits: one mark per token of the vocabulary, as the device keeps them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::SamplingParameters;
use crate::grammar::Allowed;

/// How often the text has each token, whether the prompt has it, and whether it is never chosen; and the biases of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Marks {
    words: Vec<u16>,
    /// Of different tokens of the vocabulary.
    biases: Vec<(u32, f32)>,
}

/// The token is never chosen.
const SUPPRESSED: u16 = 1 << 15;
/// The prompt has the token.
const PROMPT: u16 = 1 << 14;
/// How often the text after the prompt has it, at most as often as fits.
const COUNT: u16 = PROMPT - 1;

impl Marks {
    /// The marks of a sequence that begins with `prompt`; `None` where the parameters need none.
    ///
    /// # Errors
    /// Parameters that suppress the whole vocabulary.
    pub fn new(parameters: &SamplingParameters, prompt: &[u32], vocabulary: usize) -> Result<Option<Marks>> {
        parameters.changes_logits().then(|| Marks::of(parameters, prompt, vocabulary)).transpose()
    }

    /// The same also where the parameters need none.
    ///
    /// # Errors
    /// As of [`Marks::new`].
    pub fn of(parameters: &SamplingParameters, prompt: &[u32], vocabulary: usize) -> Result<Marks> {
        let mut marks = vec![0; vocabulary];
        for (tokens, mark) in [(prompt, PROMPT), (&parameters.suppress, SUPPRESSED)] {
            for &token in tokens {
                if let Some(marked) = marks.get_mut(token as usize) {
                    *marked |= mark;
                }
            }
        }
        ensure!(
            marks.iter().any(|mark| mark & SUPPRESSED == 0),
            "suppress_tokens has all {vocabulary} tokens of the vocabulary: nothing is left to choose"
        );
        // Several for one token are one.
        let mut biases: BTreeMap<u32, f32> = BTreeMap::new();
        for &(token, bias) in parameters.logit_bias.iter().filter(|(token, _)| (*token as usize) < vocabulary) {
            *biases.entry(token).or_default() += bias;
        }
        Ok(Marks { words: marks, biases: biases.into_iter().collect() })
    }

    /// These marks where a grammar suppresses all but some tokens. None may be left.
    pub fn allowing(&self, allowed: &Allowed) -> Marks {
        let mut marks = self.clone();
        allowed.each_other(self.words.len(), |token| marks.words[token] |= SUPPRESSED);
        marks
    }

    /// Notes a token that was chosen.
    pub fn note(&mut self, token: u32) {
        if let Some(mark) = self.words.get_mut(token as usize).filter(|mark| **mark & COUNT < COUNT) {
            *mark += 1;
        }
    }

    /// Changes a row of logits.
    pub fn apply(&self, parameters: &SamplingParameters, logits: &mut [f32]) {
        for &(token, bias) in &self.biases {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for (logit, &mark) in logits.iter_mut().zip(&self.words) {
            if mark & SUPPRESSED != 0 {
                *logit = f32::NEG_INFINITY;
            } else if mark != 0 {
                let penalty = parameters.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                let count = mark & COUNT;
                if count > 0 {
                    *logit -= parameters.frequency_penalty * f32::from(count);
                    *logit -= parameters.presence_penalty;
                }
            }
        }
    }

    /// One per token, as the device reads them.
    pub fn words(&self) -> &[u16] {
        &self.words
    }

    /// What is added to the logits of tokens, each token once.
    pub fn biases(&self) -> &[(u32, f32)] {
        &self.biases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(parameters: &SamplingParameters, prompt: &[u32]) -> Marks {
        Marks::new(parameters, prompt, 6).unwrap().expect("logits are changed")
    }

    /// As transformers' RepetitionPenaltyLogitsProcessor and SuppressTokensLogitsProcessor.
    #[test]
    fn tokens_of_the_prompt_and_of_the_text_are_penalised_once() {
        let parameters =
            SamplingParameters { repetition_penalty: 2.0, suppress: vec![4, 99], ..SamplingParameters::default() };
        let mut marks = marks(&parameters, &[1, 1, 2]);
        let apply = |marks: &Marks| {
            let mut logits = [1.0, 1.0, -1.0, 3.0, 9.0, 0.0];
            marks.apply(&parameters, &mut logits);
            logits
        };
        assert_eq!(apply(&marks), [1.0, 0.5, -2.0, 3.0, f32::NEG_INFINITY, 0.0]);
        (0..3).for_each(|_| marks.note(3));
        assert_eq!(apply(&marks), [1.0, 0.5, -2.0, 1.5, f32::NEG_INFINITY, 0.0]);
        marks.note(17);
        assert_eq!(marks.words(), [0, PROMPT, PROMPT, 3, SUPPRESSED, 0], "a token beyond the vocabulary is none");
    }

    /// As in OpenAI's description of the parameters: only what was generated counts.
    #[test]
    fn frequency_and_presence_count_the_text_after_the_prompt() {
        let parameters = SamplingParameters {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            logit_bias: vec![(0, 10.0), (5, -100.0), (77, 1.0)],
            ..SamplingParameters::default()
        };
        let apply = |parameters: &SamplingParameters| {
            let (mut marks, mut logits) = (marks(parameters, &[1, 2]), [1.0; 6]);
            [2, 3, 3, 3].into_iter().for_each(|token| marks.note(token));
            marks.apply(parameters, &mut logits);
            logits
        };
        let logits = apply(&parameters);
        assert_eq!(logits, [11.0, 1.0, 0.25, -0.75, 1.0, -99.0]);
        // A bias comes before the penalty of repetition, which comes before the others.
        let parameters =
            SamplingParameters { repetition_penalty: 2.0, logit_bias: vec![(2, 3.0), (2, 2.0)], ..parameters.clone() };
        assert_eq!(apply(&parameters)[2], (1.0 + 5.0) / 2.0 - 0.5 - 0.25);
    }

    #[test]
    fn a_count_does_not_run_into_the_other_marks() {
        let mut marks = marks(&SamplingParameters { suppress: vec![0], ..SamplingParameters::default() }, &[]);
        (0..40_000).for_each(|_| marks.note(5));
        assert_eq!(marks.words()[5], COUNT);
    }

    #[test]
    fn nothing_to_change_needs_no_marks_and_nothing_to_choose_is_refused() {
        assert_eq!(Marks::new(&SamplingParameters::default(), &[1], 6).unwrap(), None);
        let all = SamplingParameters { suppress: (0..6).collect(), ..SamplingParameters::default() };
        let message = Marks::new(&all, &[], 6).unwrap_err().to_string();
        assert_eq!(message, "suppress_tokens has all 6 tokens of the vocabulary: nothing is left to choose");
    }
}
