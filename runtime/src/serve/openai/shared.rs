//! What chat completions and completions share.

use serde_json::{Value, json};

use crate::serve::answer::{Finish, Summary, TokenScores};
use crate::serve::ask::Settings;
use crate::serve::fields::Fields;
use crate::serve::forms::Form;
use crate::serve::problem::Problem;
use crate::serve::served::Served;
use crate::serve::warnings::{model_warning, unknown};

/// Fields that are accepted and change nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
    "modalities",
    "cache_prompt",
    "timings_per_token",
];

/// What both APIs ask for beside the prompt.
pub struct Common {
    pub settings: Settings,
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// What the answer is to be held to, by fields that OpenAI's API does not have.
    pub form: Option<Form>,
    pub warnings: Vec<String>,
}

impl Common {
    /// Takes the fields of both; those that are left are warned of.
    pub fn take(fields: &mut Fields, served: &Served, limit: Option<usize>) -> Result<Common, Problem> {
        let settings = Settings { limit, ..Settings::take(fields, served)? };
        let mut warnings: Vec<String> = model_warning(fields, served)?.into_iter().collect();
        let stream = fields.flag("stream")?.unwrap_or(false);
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(Problem::field(
                    "stream_options",
                    "`stream_options` is given without `stream`: set `stream` to true",
                ));
            }
            include_usage = options.flag("include_usage")?.unwrap_or(false);
            options.ignore(&["include_obfuscation", "continuous_usage_stats"]);
            warnings.extend(unknown(&options));
        }
        let form = Form::of_extras(fields)?;
        fields.ignore(WITHOUT_EFFECT);
        warnings.extend(unknown(fields));
        Ok(Common { settings, stream, include_usage, form, warnings })
    }
}

/// The word for an end.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopText(_) => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
    }
}

pub fn usage(summary: &Summary) -> Value {
    json!({
        "prompt_tokens": summary.prompt,
        "completion_tokens": summary.completion,
        "total_tokens": summary.prompt + summary.completion,
        "prompt_tokens_details": {"cached_tokens": summary.cached},
        "completion_tokens_details": {"reasoning_tokens": summary.reasoning},
    })
}

/// Times by llama.cpp's names. That of the prompt begins with the request.
pub fn timings(summary: &Summary) -> Value {
    let (prompt_ms, predicted_ms) = summary.milliseconds();
    let read = summary.prompt - summary.cached;
    let rate = |tokens: usize, ms: f64| if ms > 0.0 { tokens as f64 * 1000.0 / ms } else { 0.0 };
    let each = |tokens: usize, ms: f64| if tokens > 0 { ms / tokens as f64 } else { 0.0 };
    json!({
        "cache_n": summary.cached,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": each(read, prompt_ms),
        "prompt_per_second": rate(read, prompt_ms),
        "predicted_n": summary.completion,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": each(summary.completion, predicted_ms),
        "predicted_per_second": rate(summary.completion, predicted_ms),
    })
}

/// A log probability as JSON has numbers: none is -inf.
pub fn score(score: f32) -> Value {
    json!(f64::from(score).max(-9999.0))
}

/// The scores of tokens, as chat completions have them. A token that is a part of a character only has no bytes.
pub fn chat_scores(scores: &[TokenScores], served: &Served) -> Value {
    let entry = |token: u32, value: f32| {
        let text = served.token_text(token);
        let bytes = served.is_whole(token).then(|| text.as_bytes().to_vec());
        json!({"token": text, "logprob": score(value), "bytes": bytes})
    };
    let content = scores.iter().map(|TokenScores { token, scores }| {
        let mut one = entry(*token, scores.chosen);
        one["top_logprobs"] = scores.top.iter().map(|&(token, value)| entry(token, value)).collect();
        one
    });
    json!({"content": content.collect::<Vec<Value>>(), "refusal": null})
}

/// The scores of tokens, as completions have them. `offset`: letters before them.
pub fn completion_scores(scores: &[TokenScores], served: &Served, mut offset: usize) -> Value {
    let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for TokenScores { token, scores } in scores {
        let text = served.token_text(*token);
        offsets.push(offset);
        offset += text.chars().count();
        tokens.push(text);
        values.push(score(scores.chosen));
        let top = scores.top.iter().map(|&(token, value)| (served.token_text(token), score(value)));
        tops.push(Value::Object(top.collect()));
    }
    json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}

/// What names the program that made an answer.
pub fn fingerprint() -> String {
    format!("fuserun-{}", env!("CARGO_PKG_VERSION"))
}
