//! What a request asks of the model: its prompt, how tokens are chosen, and where it ends. The names of fields are those that OpenAI's and
//! llama.cpp's servers share.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::fields::Fields;
use super::problem::Problem;
use super::served::Served;
use crate::sampling::{MOST_BIASES, MOST_SCORES, SamplingParameters};
use crate::slots::Request;

/// Choices of one request at most.
const MOST_CHOICES: i64 = 8;
/// Stop texts, and stop tokens, of one request at most.
const MOST_STOPS: usize = 16;

/// A prompt and what is to follow it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub settings: Settings,
}

/// How a text goes on and where it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub sampling: SamplingParameters,
    pub choices: usize,
    /// Tokens at most; none: what the context has left.
    pub limit: Option<usize>,
    pub stop_texts: Vec<String>,
    pub stops: Vec<u32>,
    /// How many of the likeliest tokens to tell beside each.
    pub scores: Option<usize>,
}

impl Settings {
    /// Takes the fields that all APIs share. What is absent is as the model says, else as OpenAI's API has it: temperature 1, no filter.
    pub fn take(fields: &mut Fields, served: &Served) -> Result<Settings, Problem> {
        let (model, off) = (&served.defaults, SamplingParameters::default());
        let penalty = match fields.number("repetition_penalty", 1e-9..=1e9)? {
            Some(penalty) => {
                fields.ignore(&["repeat_penalty"]);
                Some(penalty)
            }
            None => fields.number("repeat_penalty", 1e-9..=1e9)?,
        };
        let sampling = SamplingParameters {
            suppress: model.suppress_tokens.clone(),
            logit_bias: biases(fields, served)?,
            repetition_penalty: penalty.or(model.repetition_penalty).unwrap_or(off.repetition_penalty),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(off.frequency_penalty),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(off.presence_penalty),
            temperature: fields.number("temperature", 0.0..=100.0)?.or(model.temperature).unwrap_or(1.0),
            // -1 and 0: all.
            top_k: fields.whole("top_k", -1..=i64::from(u32::MAX))?.map_or(model.top_k.unwrap_or(off.top_k), whole),
            // 0: the likeliest only.
            top_p: fields.number("top_p", 0.0..=1.0)?.or(model.top_p).unwrap_or(off.top_p).max(f32::MIN_POSITIVE),
            min_p: fields.number("min_p", 0.0..=1.0)?.or(model.min_p).unwrap_or(off.min_p),
            seed: match fields.whole("seed", i64::MIN..=i64::MAX)? {
                None | Some(-1) => random() >> 32,
                Some(seed) => seed as u64,
            },
            grammar: None,
        };
        let end: Vec<u32> = served.tokenizer.eos().collect();
        let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
        let mut stops = if ignore_eos { Vec::new() } else { end };
        stops.extend(stop_tokens(fields)?);
        Ok(Settings {
            sampling,
            choices: fields.whole("n", 1..=MOST_CHOICES)?.map_or(1, whole),
            limit: None,
            stop_texts: [stop_texts(fields, "stop")?, model.stop_strings.clone()].concat(),
            stops,
            scores: None,
        })
    }
}

impl Ask {
    /// The request for each choice.
    ///
    /// # Errors
    /// A prompt that is empty, or that the context does not hold.
    pub fn requests(&self, context: usize) -> Result<Vec<Request>, Problem> {
        let Ask { prompt, settings } = self;
        if prompt.is_empty() {
            return Err(Problem::invalid("the prompt has no tokens: give some text"));
        }
        if prompt.len() > context {
            let message = format!(
                "the prompt has {} tokens and the context holds {context}: shorten it, or start the server with a larger --max-context",
                prompt.len()
            );
            return Err(Problem::invalid(message).with_code("context_length_exceeded"));
        }
        let left = context + 1 - prompt.len();
        let request = |choice: usize| Request {
            prompt: prompt.clone(),
            sampling: settings.sampling.clone(),
            choice: choice as u32,
            limit: settings.limit.map_or(left, |limit| limit.min(left)),
            stops: settings.stops.clone(),
            scores: settings.scores,
        };
        Ok((0..settings.choices).map(request).collect())
    }
}

/// Takes the first of several names of a limit of tokens; -1 is none.
pub fn limit(fields: &mut Fields, names: &[&str]) -> Result<Option<usize>, Problem> {
    let mut limit = None;
    for name in names {
        let given = fields.whole(name, -1..=i64::MAX)?;
        if given == Some(0) {
            let name = fields.name(name);
            return Err(Problem::field(&name, format!("`{name}` is 0: nothing to generate; give 1 or more")));
        }
        limit = limit.or(given.filter(|given| *given > 0).map(whole));
    }
    Ok(limit)
}

/// A number of scores, `logprobs` of a completion or `top_logprobs` of a chat.
pub fn scores(fields: &mut Fields, name: &str) -> Result<Option<usize>, Problem> {
    Ok(fields.whole(name, 0..=MOST_SCORES as i64)?.map(whole))
}

/// Texts that end an answer: one or a list.
pub fn stop_texts(fields: &mut Fields, name: &str) -> Result<Vec<String>, Problem> {
    let texts = match fields.take(name) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(());
            list.iter().map(text).collect::<Result<_, _>>().map_err(|()| {
                let name = fields.name(name);
                Problem::field(&name, format!("`{name}` has a value that is no string; give a list of strings"))
            })?
        }
        Some(other) => return Err(fields.mistyped(name, &other, "a string or a list of strings")),
    };
    if texts.len() > MOST_STOPS {
        let name = fields.name(name);
        return Err(Problem::field(&name, format!("`{name}` has {} texts; give {MOST_STOPS} at most", texts.len())));
    }
    Ok(texts)
}

fn stop_tokens(fields: &mut Fields) -> Result<Vec<u32>, Problem> {
    let list = fields.list("stop_token_ids")?.unwrap_or_default();
    let tokens: Option<Vec<u32>> = list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
    let name = fields.name("stop_token_ids");
    match tokens {
        Some(tokens) if tokens.len() <= MOST_STOPS => Ok(tokens),
        Some(tokens) => {
            Err(Problem::field(&name, format!("`{name}` has {} tokens; give {MOST_STOPS} at most", tokens.len())))
        }
        None => Err(Problem::field(&name, format!("`{name}` has a value that is no token; give a list of ids"))),
    }
}

/// `logit_bias`: an object of ids and biases, as OpenAI has it, or a list of pairs, as llama.cpp has it.
fn biases(fields: &mut Fields, served: &Served) -> Result<Vec<(u32, f32)>, Problem> {
    let name = fields.name("logit_bias");
    let pairs: Vec<(String, Value)> = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map.into_iter().collect(),
        Some(Value::Array(list)) => {
            list.into_iter().filter_map(|pair| Some((pair.get(0)?.to_string(), pair.get(1)?.clone()))).collect()
        }
        Some(other) => return Err(fields.mistyped("logit_bias", &other, "an object of token ids and biases")),
    };
    if pairs.len() > MOST_BIASES {
        return Err(Problem::field(&name, format!("`{name}` has {} tokens; give {MOST_BIASES} at most", pairs.len())));
    }
    let vocabulary = served.tokenizer.vocabulary_size();
    let pair = |(token, bias): &(String, Value)| {
        let id = token.parse().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
            Problem::field(&name, format!("`{name}` has {token}, which is no token; give ids below {vocabulary}"))
        })?;
        // llama.cpp's way to forbid a token.
        let bias = if *bias == Value::Bool(false) { Some(-100.0) } else { bias.as_f64() };
        match bias.filter(|bias| (-100.0..=100.0).contains(bias)) {
            Some(bias) => Ok((id, bias as f32)),
            None => Err(Problem::field(&name, format!("`{name}` of token {token} is no number from -100 to 100"))),
        }
    };
    pairs.iter().map(pair).collect()
}

/// A number whose range was checked.
fn whole(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Bits that nobody knows beforehand.
pub fn random() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}
