//! How the next token is chosen: what the user says, then what the model says, then greedy.

use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::generate::defaults::GenerationDefaults;
use crate::sampling::SamplingParameters;

/// Each flag replaces one value of the model's.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy. The default is what the model says (generation_config.json, general.sampling of a GGUF file), else 0, or 1 where a filter below is given.
    #[arg(long, env = "FUSE_TEMPERATURE", allow_negative_numbers = true, value_parser = temperature)]
    temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all.
    #[arg(long, env = "FUSE_TOP_K")]
    top_k: Option<usize>,
    /// Keep the most likely tokens that have this probability together; 1 keeps all.
    #[arg(long, env = "FUSE_TOP_P", allow_negative_numbers = true, value_parser = top_p)]
    top_p: Option<f32>,
    /// Keep tokens of at least this share of the most likely one's probability; 0 keeps all.
    #[arg(long, env = "FUSE_MIN_P", allow_negative_numbers = true, value_parser = min_p)]
    min_p: Option<f32>,
    /// Divide the positive logits of tokens that the prompt or the text has by this, and multiply the others; 1 changes nothing.
    #[arg(long, alias = "repeat-penalty", env = "FUSE_REPETITION_PENALTY", allow_negative_numbers = true, value_parser = repetition_penalty)]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same text; -1 draws one and says which.
    #[arg(long, env = "FUSE_SEED", allow_negative_numbers = true, default_value = "0")]
    seed: Seed,
}

/// What fixes the draws.
#[derive(Clone, Copy, Debug, Default)]
struct Seed {
    value: u64,
    /// Whether it was drawn, not given.
    drawn: bool,
}

impl FromStr for Seed {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Seed> {
        match text {
            // Short enough to be typed.
            "-1" => Ok(Seed { value: RandomState::new().hash_one(text) >> 32, drawn: true }),
            _ => {
                let value =
                    text.parse().with_context(|| format!("a seed is a number from 0 to {}, or -1", u64::MAX))?;
                Ok(Seed { value, drawn: false })
            }
        }
    }
}

impl SamplingArgs {
    /// What to tell of a seed that was drawn.
    pub fn drawn_seed(&self) -> Option<String> {
        let Seed { value, drawn } = self.seed;
        drawn.then(|| format!("seed {value} was drawn: --seed {value} gives the same text again"))
    }

    /// Those that were given, by the names of the HTTP API's fields, and the seed.
    pub fn fields(&self) -> Map<String, Value> {
        let number = |value: f32| json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)));
        let given = [
            ("temperature", self.temperature.map(number)),
            ("top_k", self.top_k.map(|top_k| json!(top_k))),
            ("top_p", self.top_p.map(number)),
            ("min_p", self.min_p.map(number)),
            ("repetition_penalty", self.repetition_penalty.map(number)),
            ("seed", Some(json!(self.seed.value))),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The parameters to sample with.
    ///
    /// What a model that samples leaves out is off (temperature 1, no filter).
    ///
    /// # Errors
    /// A value of the model's that is outside its range; the user's were judged where they were read.
    pub fn parameters(&self, model: &GenerationDefaults) -> Result<SamplingParameters> {
        let off = SamplingParameters::default();
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let sampled = if model.samples || filters { 1.0 } else { 0.0 };
        let parameters = SamplingParameters {
            suppress: model.suppress_tokens.clone(),
            repetition_penalty: self.repetition_penalty.or(model.repetition_penalty).unwrap_or(off.repetition_penalty),
            temperature: self.temperature.or(model.temperature).unwrap_or(sampled),
            top_k: self.top_k.or(model.top_k).unwrap_or(off.top_k),
            top_p: self.top_p.or(model.top_p).unwrap_or(off.top_p),
            min_p: self.min_p.or(model.min_p).unwrap_or(off.min_p),
            seed: self.seed.value,
            ..off
        };
        parameters.validate().with_context(|| model.source.clone())?;
        Ok(parameters)
    }
}

fn temperature(text: &str) -> Result<f32> {
    checked(text, |temperature| SamplingParameters { temperature, ..SamplingParameters::default() })
}

fn top_p(text: &str) -> Result<f32> {
    checked(text, |top_p| SamplingParameters { top_p, ..SamplingParameters::default() })
}

fn min_p(text: &str) -> Result<f32> {
    checked(text, |min_p| SamplingParameters { min_p, ..SamplingParameters::default() })
}

fn repetition_penalty(text: &str) -> Result<f32> {
    checked(text, |repetition_penalty| SamplingParameters { repetition_penalty, ..SamplingParameters::default() })
}

fn checked(text: &str, parameters: impl Fn(f32) -> SamplingParameters) -> Result<f32> {
    let value = text.parse()?;
    parameters(value).validate()?;
    Ok(value)
}

/// In a few words, for the line that says what was run.
pub fn describe(parameters: &SamplingParameters) -> String {
    let SamplingParameters { suppress, repetition_penalty, temperature, top_k, top_p, min_p, seed, .. } = parameters;
    let mut changes = String::new();
    for (name, penalty) in [("frequency", parameters.frequency_penalty), ("presence", parameters.presence_penalty)] {
        if penalty != 0.0 {
            changes += &format!(", {name} penalty {penalty}");
        }
    }
    if !parameters.logit_bias.is_empty() {
        changes += &format!(", {} biases", parameters.logit_bias.len());
    }
    if *repetition_penalty != 1.0 {
        changes += &format!(", repetition penalty {repetition_penalty}");
    }
    if !suppress.is_empty() {
        changes += &format!(", {} tokens suppressed", suppress.len());
    }
    if *temperature == 0.0 {
        return format!("greedy{changes}");
    }
    let mut text = format!("temperature {temperature}{changes}");
    if *top_k > 0 {
        text += &format!(", top-k {top_k}");
    }
    if *top_p < 1.0 {
        text += &format!(", top-p {top_p}");
    }
    if *min_p > 0.0 {
        text += &format!(", min-p {min_p}");
    }
    text + &format!(", seed {seed}")
}

/// As one object, each number as the user writes it; what changes logits where it is on.
pub fn to_json(parameters: &SamplingParameters) -> Value {
    let SamplingParameters { suppress, repetition_penalty, temperature, top_k, top_p, min_p, seed, .. } = parameters;
    let decimal = |value: &f32| value.to_string().parse::<f64>().unwrap_or(f64::from(*value));
    let mut object = json!({
        "temperature": decimal(temperature), "top_k": top_k, "top_p": decimal(top_p), "min_p": decimal(min_p), "seed": seed,
    });
    if *repetition_penalty != 1.0 {
        object["repetition_penalty"] = json!(decimal(repetition_penalty));
    }
    for (name, penalty) in
        [("frequency_penalty", parameters.frequency_penalty), ("presence_penalty", parameters.presence_penalty)]
    {
        if penalty != 0.0 {
            object[name] = json!(decimal(&penalty));
        }
    }
    if !parameters.logit_bias.is_empty() {
        let bias = |(token, bias): &(u32, f32)| (token.to_string(), json!(decimal(bias)));
        object["logit_bias"] = Value::Object(parameters.logit_bias.iter().map(bias).collect());
    }
    if !suppress.is_empty() {
        object["suppress_tokens"] = json!(suppress);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(arguments: &SamplingArgs, model: Value) -> String {
        let parameters = GenerationDefaults::from_json(&model).and_then(|model| arguments.parameters(&model));
        parameters.map_or_else(|error| format!("{error:#}"), |parameters| describe(&parameters))
    }

    #[test]
    fn greedy_when_neither_says() {
        let none = SamplingArgs::default();
        assert_eq!(described(&none, Value::Null), "greedy");
        assert_eq!(described(&none, json!({"do_sample": false, "temperature": 0.7, "top_k": 5})), "greedy");
        assert_eq!(described(&none, json!({"temperature": 0.7})), "greedy");
    }

    #[test]
    fn the_model_says_and_the_user_says_more() {
        let model = json!({"do_sample": true, "temperature": 0.5, "top_k": 50, "top_p": 0.5, "min_p": null});
        let none = SamplingArgs::default();
        assert_eq!(described(&none, model.clone()), "temperature 0.5, top-k 50, top-p 0.5, seed 0");
        assert_eq!(described(&none, json!({"do_sample": true})), "temperature 1, seed 0");
        let some = SamplingArgs {
            temperature: Some(2.0),
            top_k: Some(0),
            seed: Seed { value: 3, drawn: false },
            ..none.clone()
        };
        assert_eq!(described(&some, model.clone()), "temperature 2, top-p 0.5, seed 3");
        assert_eq!(described(&SamplingArgs { temperature: Some(0.0), ..none }, model), "greedy");
    }

    #[test]
    fn a_filter_alone_samples() {
        let filter = SamplingArgs { min_p: Some(0.5), ..SamplingArgs::default() };
        assert_eq!(described(&filter, Value::Null), "temperature 1, min-p 0.5, seed 0");
    }

    #[test]
    fn what_changes_logits_is_said_with_greedy_too() {
        let none = SamplingArgs::default();
        let model = json!({"repetition_penalty": 1.5, "suppress_tokens": [1, 2]});
        assert_eq!(described(&none, model.clone()), "greedy, repetition penalty 1.5, 2 tokens suppressed");
        let off = SamplingArgs { repetition_penalty: Some(1.0), ..none.clone() };
        assert_eq!(described(&off, model), "greedy, 2 tokens suppressed");
        let some = SamplingArgs { repetition_penalty: Some(1.25), temperature: Some(0.5), ..none };
        assert_eq!(described(&some, Value::Null), "temperature 0.5, repetition penalty 1.25, seed 0");
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        let none = SamplingArgs::default();
        let said = described(&none, json!({"do_sample": true, "top_p": 1.5}));
        assert_eq!(said, "generation_config.json: top-p is 1.5; give more than 0, at most 1 (off)");
        let said = described(&none, json!({"repetition_penalty": 0}));
        assert_eq!(said, "generation_config.json: the repetition penalty is 0; give 1e-9 to 1e9, 1 is off");
    }
}
