//! How the next token is chosen: what the user says, then what the model's generation_config.json says, then greedy.

use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::generate::sampling::SamplingParameters;

/// Each flag replaces one value of the model's generation_config.json.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy. The default is what the model's generation_config.json says, else 0, or 1 where a filter below is given.
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

    /// The parameters to sample with; `model` is its generation_config.json, or null.
    ///
    /// A model samples by default where it says `do_sample`. What it leaves out is off (temperature 1, no filter).
    ///
    /// # Errors
    /// A value of the model's that is no number, or outside its range; the user's were judged where they were read.
    pub fn parameters(&self, model: &Value) -> Result<SamplingParameters> {
        let off = SamplingParameters::default();
        let samples = model.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
        let number = |key: &str| number(if samples { model } else { &Value::Null }, key);
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let sampled = if samples || filters { 1.0 } else { 0.0 };
        let top_k = match (self.top_k, number("top_k")?) {
            (Some(top_k), _) => top_k,
            (None, Some(top_k)) if top_k >= 0.0 && top_k.fract() == 0.0 => top_k as usize,
            (None, Some(top_k)) => bail!("generation_config.json: top_k is {top_k}, not a count of tokens"),
            (None, None) => off.top_k,
        };
        let parameters = SamplingParameters {
            temperature: self.temperature.or(number("temperature")?.map(|v| v as f32)).unwrap_or(sampled),
            top_k,
            top_p: self.top_p.or(number("top_p")?.map(|v| v as f32)).unwrap_or(off.top_p),
            min_p: self.min_p.or(number("min_p")?.map(|v| v as f32)).unwrap_or(off.min_p),
            seed: self.seed.value,
        };
        parameters.validate().context("generation_config.json")?;
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

fn checked(text: &str, parameters: impl Fn(f32) -> SamplingParameters) -> Result<f32> {
    let value = text.parse()?;
    parameters(value).validate()?;
    Ok(value)
}

/// In a few words, for the line that tells what was run.
pub fn describe(parameters: &SamplingParameters) -> String {
    let SamplingParameters { temperature, top_k, top_p, min_p, seed } = parameters;
    if *temperature == 0.0 {
        return "greedy".into();
    }
    let mut text = format!("temperature {temperature}");
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

/// As one object, each number as the user writes it.
pub fn to_json(parameters: &SamplingParameters) -> Value {
    let SamplingParameters { temperature, top_k, top_p, min_p, seed } = parameters;
    let decimal = |value: &f32| value.to_string().parse::<f64>().unwrap_or(f64::from(*value));
    json!({
        "temperature": decimal(temperature), "top_k": top_k, "top_p": decimal(top_p), "min_p": decimal(min_p), "seed": seed,
    })
}

fn number(config: &Value, key: &str) -> Result<Option<f64>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_f64().map(Some).with_context(|| format!("generation_config.json: {key} is {value}, not a number"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(arguments: &SamplingArgs, model: Value) -> String {
        arguments.parameters(&model).map_or_else(|error| format!("{error:#}"), |parameters| describe(&parameters))
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
    fn what_is_no_number_is_refused() {
        let none = SamplingArgs::default();
        let said = described(&none, json!({"do_sample": true, "top_p": "high"}));
        assert_eq!(said, "generation_config.json: top_p is \"high\", not a number");
        let said = described(&none, json!({"do_sample": true, "top_k": 1.5}));
        assert_eq!(said, "generation_config.json: top_k is 1.5, not a count of tokens");
    }
}
