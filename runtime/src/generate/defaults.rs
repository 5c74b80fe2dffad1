//! What a model says of how its texts are made: generation_config.json, or the metadata of a GGUF file.

use anyhow::{Context, Result, bail, ensure};
use fusec::json;
use serde_json::Value;

use crate::weights::gguf::{self, Metadata};

/// The values that a model asks for; what it leaves out is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether tokens are drawn. Where not, temperature and filters are none.
    pub samples: bool,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keeps the K most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the most likely tokens that have this probability together.
    pub top_p: Option<f32>,
    /// Keeps tokens of at least this share of the most likely one's probability.
    pub min_p: Option<f32>,
    /// Penalty of tokens that the prompt or the text has.
    pub repetition_penalty: Option<f32>,
    /// Tokens that are never chosen.
    pub suppress_tokens: Vec<u32>,
    /// Texts that end a generation.
    pub stop_strings: Vec<String>,
    /// Tokens after the prompt at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens at most, those of the prompt among them.
    pub max_length: Option<usize>,
    /// Keys that change tokens and that nothing honours, with their values.
    pub unhonoured: Vec<String>,
    /// Where it was read.
    pub source: String,
}

const FILE: &str = "generation_config.json";

/// Keys of transformers' GenerationConfig that nothing honours, with the value that has no effect; null has none either.
const UNHONOURED: &[(&str, Off)] = &[
    ("min_length", Off::Zero),
    ("min_new_tokens", Off::Zero),
    ("max_time", Off::Null),
    ("num_beams", Off::One),
    ("num_return_sequences", Off::One),
    ("penalty_alpha", Off::Zero),
    ("dola_layers", Off::Null),
    ("encoder_repetition_penalty", Off::One),
    ("no_repeat_ngram_size", Off::Zero),
    ("encoder_no_repeat_ngram_size", Off::Zero),
    ("bad_words_ids", Off::Empty),
    ("force_words_ids", Off::Empty),
    ("constraints", Off::Empty),
    ("forced_bos_token_id", Off::Null),
    ("forced_eos_token_id", Off::Null),
    ("forced_decoder_ids", Off::Empty),
    ("exponential_decay_length_penalty", Off::Null),
    ("begin_suppress_tokens", Off::Empty),
    ("sequence_bias", Off::Empty),
    ("token_healing", Off::False),
    ("guidance_scale", Off::One),
    ("watermarking_config", Off::Null),
    ("generation_kwargs", Off::Empty),
];

/// Those that have an effect only where tokens are drawn.
const UNHONOURED_DRAWS: &[(&str, Off)] =
    &[("typical_p", Off::One), ("epsilon_cutoff", Off::Zero), ("eta_cutoff", Off::Zero), ("top_h", Off::Null)];

/// Keys that change no token here: they are honoured, say how a program runs, or have an effect with keys that are named above only.
const HARMLESS: &[&str] = &[
    // Honoured.
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "suppress_tokens",
    "stop_strings",
    "max_new_tokens",
    "max_length",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    // With beams, groups of beams or an encoder only.
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "low_memory",
    "decoder_start_token_id",
    // Drafts of tokens, which are checked.
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    // What is kept and given back, and how it is computed.
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "prefill_chunk_size",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    // The order of tokens stays.
    "renormalize_logits",
    "remove_invalid_values",
    // About the file.
    "_from_model_config",
    "_name_or_path",
    "transformers_version",
    "transformers.js_config",
    "trust_remote_code",
    "use_model_defaults",
    // Of programs around a model: its chat format, roles and speech.
    "chat_format",
    "max_window_size",
    "user_token_id",
    "assistant_token_id",
    "attn_implementation",
    "torch_dtype",
    "dtype",
];

/// A value without effect.
#[derive(Clone, Copy)]
enum Off {
    Null,
    False,
    Zero,
    One,
    Empty,
}

impl Off {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Off::False, Value::Bool(truth)) => !truth,
            (Off::Zero, value) => value.as_f64() == Some(0.0),
            (Off::One, value) => value.as_f64() == Some(1.0),
            (Off::Empty, Value::Array(list)) => list.is_empty(),
            (Off::Empty, Value::Object(map)) => map.is_empty(),
            _ => false,
        }
    }
}

impl GenerationDefaults {
    /// What a generation_config.json says; null where there is none.
    ///
    /// # Errors
    /// A value of another type than its key has, by name.
    pub fn from_json(config: &Value) -> Result<GenerationDefaults> {
        let empty = serde_json::Map::new();
        let map = match config {
            Value::Null => &empty,
            Value::Object(map) => map,
            _ => bail!("{FILE} is not a JSON object"),
        };
        let samples = match map.get("do_sample") {
            None | Some(Value::Null) => false,
            Some(value) => value
                .as_bool()
                .with_context(|| format!("{FILE}: do_sample is {}, not true or false", json::shown(value)))?,
        };
        let drawn = if samples { map } else { &empty };
        let off = |(key, off): &&(&str, Off)| map.get(*key).is_some_and(|value| !off.is(value));
        let unhonoured = UNHONOURED.iter().chain(if samples { UNHONOURED_DRAWS } else { &[] }).filter(off);
        let mut unhonoured: Vec<String> = unhonoured.map(|(key, _)| format!("{key} {}", shown(&map[*key]))).collect();
        let known = |key: &str| {
            let listed = UNHONOURED.iter().chain(UNHONOURED_DRAWS).any(|(name, _)| *name == key);
            listed || HARMLESS.contains(&key)
        };
        let unknown = map.iter().filter(|(key, value)| !known(key) && !value.is_null());
        unhonoured.extend(unknown.map(|(key, value)| format!("{key} {}", shown(value))));
        Ok(GenerationDefaults {
            samples,
            temperature: number(drawn.get("temperature"), "temperature")?,
            // Less than nothing keeps all, as other programs have it.
            top_k: match drawn.get("top_k").and_then(Value::as_i64) {
                Some(..0) => Some(0),
                _ => count(drawn.get("top_k"), "top_k")?,
            },
            top_p: number(drawn.get("top_p"), "top_p")?,
            min_p: number(drawn.get("min_p"), "min_p")?,
            repetition_penalty: number(map.get("repetition_penalty"), "repetition_penalty")?,
            suppress_tokens: tokens(map.get("suppress_tokens"))?,
            stop_strings: texts(map.get("stop_strings"))?,
            max_new_tokens: count(map.get("max_new_tokens"), "max_new_tokens")?,
            max_length: count(map.get("max_length"), "max_length")?,
            unhonoured,
            source: FILE.to_owned(),
        })
    }

    /// What a GGUF file's `general.sampling` keys say. A model with any of those that draw samples.
    ///
    /// # Errors
    /// A value of another type than its key has, by name.
    pub fn from_gguf(metadata: &Metadata) -> Result<GenerationDefaults> {
        let float = |key: &str| match metadata.get(&full(key)) {
            None => Ok(None),
            Some(_) => metadata.float(&full(key)).map(Some).with_context(|| format!("{} is not a number", full(key))),
        };
        let narrow = |key: &str| float(key).map(|value| value.map(|value| value as f32));
        let mut unhonoured = Vec::new();
        for (key, off) in [("mirostat", 0.0), ("xtc_probability", 0.0), ("typ_p", 1.0)] {
            if let Some(value) = float(key)?.filter(|value| *value != off) {
                unhonoured.push(format!("{} {value}", full(key)));
            }
        }
        // It says in which order filters apply, and leaves out those that it does not name.
        if let Some(gguf::Value::Text(order)) = metadata.get(&full("sequence")) {
            unhonoured.push(format!("{} {order:?}", full("sequence")));
        }
        let mut repetition_penalty = narrow("penalty_repeat")?;
        match float("penalty_last_n")? {
            Some(0.0) => repetition_penalty = None,
            // Here the penalty is over the whole text.
            Some(window) if window > 0.0 && repetition_penalty.is_some_and(|penalty| penalty != 1.0) => {
                unhonoured.push(format!("{} {window}", full("penalty_last_n")));
            }
            _ => {}
        }
        let known = [
            "temp",
            "top_k",
            "top_p",
            "min_p",
            "penalty_repeat",
            "penalty_last_n",
            "mirostat",
            "mirostat_tau",
            "mirostat_eta",
            "xtc_probability",
            "xtc_threshold",
            "typ_p",
            "sequence",
        ];
        let others = metadata.keys().filter(|key| key.strip_prefix(PREFIX).is_some_and(|key| !known.contains(&key)));
        unhonoured.extend(others.map(str::to_owned));
        // As in llama.cpp, less than nothing is greedy, and no count of tokens is off.
        let temperature = narrow("temp")?.map(|temperature| temperature.max(0.0));
        let top_k = float("top_k")?.map(|top_k| top_k.max(0.0) as usize);
        let top_p = narrow("top_p")?.map(|top_p| top_p.min(1.0));
        let min_p = narrow("min_p")?.map(|min_p| min_p.max(0.0));
        let samples = temperature.is_some() || top_k.is_some() || top_p.is_some() || min_p.is_some();
        let source = "the GGUF file's metadata".to_owned();
        Ok(GenerationDefaults {
            samples,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            unhonoured,
            source,
            ..GenerationDefaults::default()
        })
    }

    /// One line that names what nothing honours, if there is any.
    pub fn note(&self) -> Option<String> {
        (!self.unhonoured.is_empty()).then(|| {
            format!(
                "{} asks for {}: not honoured, other programs may write another text",
                self.source,
                self.unhonoured.join(", ")
            )
        })
    }

    /// How many tokens may follow a prompt of that many, where the model says.
    ///
    /// # Errors
    /// A prompt that leaves no room in the model's `max_length`.
    pub fn limit(&self, prompt: usize) -> Result<Option<usize>> {
        if let Some(limit) = self.max_new_tokens {
            ensure!(limit > 0, "{}: max_new_tokens is 0; give --max-tokens", self.source);
            return Ok(Some(limit));
        }
        let Some(length) = self.max_length else { return Ok(None) };
        ensure!(
            prompt < length,
            "the prompt has {prompt} tokens, and max_length of {} is {length} with the prompt; give --max-tokens",
            self.source
        );
        Ok(Some(length - prompt))
    }
}

const PREFIX: &str = "general.sampling.";

fn full(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// A value, or the beginning of a long one.
fn shown(value: &Value) -> String {
    let text = json::shown(value);
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn number(value: Option<&Value>, key: &str) -> Result<Option<f32>> {
    let read = |value: &Value| {
        value.as_f64().with_context(|| format!("{FILE}: {key} is {}, not a number", json::shown(value)))
    };
    Ok(value.filter(|value| !value.is_null()).map(read).transpose()?.map(|value| value as f32))
}

fn count(value: Option<&Value>, key: &str) -> Result<Option<usize>> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let count = value.as_f64().with_context(|| format!("{FILE}: {key} is {}, not a number", json::shown(value)))?;
    ensure!(count >= 0.0 && count.fract() == 0.0, "{FILE}: {key} is {value}, not a count of tokens");
    Ok(Some(count as usize))
}

fn tokens(value: Option<&Value>) -> Result<Vec<u32>> {
    let key = "suppress_tokens";
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list = value.as_array().with_context(|| format!("{FILE}: {key} is {}, not a list of tokens", shown(value)))?;
    let mut tokens = Vec::new();
    for token in list {
        let id = token.as_i64().with_context(|| format!("{FILE}: {key} has {}, which is no token", shown(token)))?;
        // Numbers that no token has suppress nothing.
        tokens.extend(u32::try_from(id));
    }
    Ok(tokens)
}

fn texts(value: Option<&Value>) -> Result<Vec<String>> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list = match value {
        Value::Array(list) => &list[..],
        one => std::slice::from_ref(one),
    };
    let text = |text: &Value| {
        text.as_str().map(str::to_owned).with_context(|| format!("{FILE}: stop_strings has {}, not text", shown(text)))
    };
    list.iter().map(text).collect()
}

#[cfg(test)]
mod tests;
