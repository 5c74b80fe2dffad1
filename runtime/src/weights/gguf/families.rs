//! What transformers calls things: config.json and tensor names of each GGUF architecture.

use super::super::Tensor;
use super::{Contents, Dtype, Metadata, Opened};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// One GGUF architecture. Another family is one more row of [`FAMILIES`].
struct Family {
    /// `general.architecture`, also the prefix of its metadata keys.
    architecture: &'static str,
    /// config.json's `architectures`.
    class: &'static str,
    /// config.json's `model_type`.
    model_type: &'static str,
    /// config.json's `hidden_act`.
    activation: &'static str,
    /// (GGUF, transformers) stems of the names outside the layers; `.weight` or `.bias` follows.
    outside: &'static [(&'static str, &'static str)],
    /// The same inside a layer: `blk.N.` becomes `model.layers.N.`.
    inside: &'static [(&'static str, &'static str)],
    /// GGUF stems inside a layer whose rows are stored in rotation pairs, with what their heads are counted by.
    paired_rows: &'static [(&'static str, Heads)],
}

#[derive(Clone, Copy, PartialEq)]
enum Heads {
    Query,
    KeyValue,
}

const FAMILIES: &[Family] = &[
    Family {
        architecture: "llama",
        class: "LlamaForCausalLM",
        model_type: "llama",
        activation: "silu",
        outside: OUTSIDE,
        inside: INSIDE,
        paired_rows: &[("attn_q", Heads::Query), ("attn_k", Heads::KeyValue)],
    },
    Family {
        architecture: "qwen2",
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        activation: "silu",
        outside: OUTSIDE,
        inside: INSIDE,
        paired_rows: &[],
    },
    Family {
        architecture: "qwen3",
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        activation: "silu",
        outside: OUTSIDE,
        inside: INSIDE,
        paired_rows: &[],
    },
    Family {
        architecture: "olmo2",
        class: "Olmo2ForCausalLM",
        model_type: "olmo2",
        activation: "silu",
        outside: OUTSIDE,
        inside: INSIDE_POST_NORM,
        paired_rows: &[],
    },
    Family {
        architecture: "smollm3",
        class: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        activation: "silu",
        outside: OUTSIDE,
        inside: INSIDE,
        paired_rows: &[("attn_q", Heads::Query), ("attn_k", Heads::KeyValue)],
    },
];

/// SmolLM3 turns q and k in three layers of four; a GGUF file does not say so.
const TURNED_LAYERS: u64 = 4;

const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const INSIDE: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Norms behind the blocks and none before them.
const INSIDE_POST_NORM: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The tensor that carries llama 3's scaled rotation frequencies as divisors, one a pair; it becomes config.json's `rope_scaling`.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Renames the tensors and writes the config.json of the file's family; `files` hold the bytes that the tensors point into.
pub(super) fn adapt(contents: Contents, files: &[&[u8]]) -> Result<Opened> {
    let architecture =
        contents.metadata.text("general.architecture").context("the metadata key general.architecture is missing")?;
    let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        bail!(
            "GGUF files of architecture '{architecture}' are not read (known: {}); use the model's Hugging Face directory instead",
            known.join(", ")
        );
    };
    let config = family.config(&contents, files)?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in contents.tensors {
        if name == ROPE_DIVISORS {
            continue;
        }
        let (renamed, paired) = family.rename(&name);
        let paired_heads = match paired {
            None => None,
            Some(heads) => {
                let heads = usize_of(
                    &config,
                    if heads == Heads::Query { "num_attention_heads" } else { "num_key_value_heads" },
                );
                let rows = entry.shape[0];
                ensure!(
                    heads > 0 && rows.is_multiple_of(2 * heads),
                    "tensor {name} has {rows} rows, which are not {heads} heads of an even size"
                );
                Some(heads)
            }
        };
        let clash = tensors.insert(
            renamed.clone(),
            Tensor { shape: entry.shape, dtype: entry.dtype, file: entry.file, bytes: entry.bytes, paired_heads },
        );
        ensure!(clash.is_none(), "two tensors are called {renamed}");
    }
    Ok(Opened { config, metadata: contents.metadata, tensors })
}

impl Family {
    /// The transformers name of a tensor (its own where the family does not know it), and its heads where its rows are in pairs.
    fn rename(&self, name: &str) -> (String, Option<Heads>) {
        let renamed = || {
            let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
            if let Some((_, outside)) = self.outside.iter().find(|(gguf, _)| *gguf == stem) {
                return Some((format!("{outside}.{kind}"), None));
            }
            let (layer, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
            layer.parse::<u32>().ok()?;
            let (_, inside) = self.inside.iter().find(|(gguf, _)| *gguf == stem)?;
            let paired = self.paired_rows.iter().find(|(gguf, _)| *gguf == stem).map(|(_, heads)| *heads);
            Some((format!("model.layers.{layer}.{inside}.{kind}"), paired))
        };
        renamed().unwrap_or_else(|| (name.to_owned(), None))
    }

    /// config.json as transformers would have written it.
    fn config(&self, contents: &Contents, files: &[&[u8]]) -> Result<Json> {
        let keys = Keys { architecture: self.architecture, metadata: &contents.metadata };
        let has = |name: &str| contents.tensors.contains_key(name);
        let embedding = contents.tensors.get("token_embd.weight").context("the tensor token_embd.weight is missing")?;
        let hidden_size = keys.unsigned("embedding_length")?;
        let heads = keys.unsigned("attention.head_count")?;
        let kv_heads = keys.optional("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match keys.optional("attention.key_length")? {
            Some(length) => length,
            None => hidden_size
                .checked_div(heads)
                .with_context(|| format!("{}.attention.head_count is 0", self.architecture))?,
        };

        let mut config = Map::new();
        let mut put = |key: &str, value: Json| config.insert(key.to_owned(), value);
        put("architectures", json!([self.class]));
        put("model_type", json!(self.model_type));
        put("vocab_size", json!(embedding.shape[0]));
        put("hidden_size", json!(hidden_size));
        put("intermediate_size", json!(keys.unsigned("feed_forward_length")?));
        put("num_hidden_layers", json!(keys.unsigned("block_count")?));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(kv_heads));
        put("head_dim", json!(head_dim));
        put("hidden_act", json!(self.activation));
        put("max_position_embeddings", json!(keys.unsigned("context_length")?));
        put(
            "rms_norm_eps",
            json!(
                keys.float("attention.layer_norm_rms_epsilon")
                    .context("no attention.layer_norm_rms_epsilon in the metadata")?
            ),
        );
        put("rope_theta", json!(keys.float("rope.freq_base").unwrap_or(10000.0)));
        put("rope_scaling", rope_scaling(&keys, contents, files, head_dim)?);
        if let Some(rotated) =
            keys.optional("rope.dimension_count")?.filter(|&rotated| rotated != head_dim && head_dim > 0)
        {
            put("partial_rotary_factor", json!(rotated as f64 / head_dim as f64));
        }
        if let Some(window) = keys.optional("attention.sliding_window")? {
            put("sliding_window", json!(window));
        }
        if self.architecture == "smollm3" {
            let layers = keys.unsigned("block_count")?;
            let turned: Vec<u8> = (1..=layers).map(|layer| u8::from(!layer.is_multiple_of(TURNED_LAYERS))).collect();
            put("no_rope_layers", json!(turned));
        }
        // Qwen 2 has biases of q, k and v in every checkpoint, and no key for them.
        if self.architecture != "qwen2" {
            put("attention_bias", json!(has("blk.0.attn_q.bias")));
        }
        put("mlp_bias", json!(has("blk.0.ffn_up.bias")));
        put("tie_word_embeddings", json!(!has("output.weight")));
        for (key, gguf) in
            [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")]
        {
            put(key, contents.metadata.unsigned(gguf).map_or(Json::Null, |id| json!(id)));
        }
        put("torch_dtype", json!(working_dtype(contents)));
        Ok(Json::Object(config))
    }
}

/// The dtype that config.json names: that of the matrices where they are plain, else bfloat16, to which quantised ones widen.
fn working_dtype(contents: &Contents) -> &'static str {
    let mut matrices =
        contents.tensors.values().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.dtype).peekable();
    let first = matrices.peek().copied();
    match first.filter(|&first| matrices.all(|dtype| dtype == first)) {
        Some(Dtype::F32) => "float32",
        Some(Dtype::F16) => "float16",
        _ => "bfloat16",
    }
}

/// `rope_scaling` from the metadata or the divisor tensor; null where the rotation is plain.
fn rope_scaling(keys: &Keys<'_>, contents: &Contents, files: &[&[u8]], head_dim: u64) -> Result<Json> {
    if let Some(entry) = contents.tensors.get(ROPE_DIVISORS) {
        ensure!(entry.dtype == Dtype::F32, "{ROPE_DIVISORS} is {}, not F32", entry.dtype);
        let mut divisors = Vec::new();
        entry.dtype.widen(&files[entry.file][entry.bytes.clone()], &mut divisors);
        return llama3_scaling(&divisors, keys.float("rope.freq_base").unwrap_or(10000.0), head_dim);
    }
    let factor = || {
        keys.float("rope.scaling.factor")
            .with_context(|| format!("{}.rope.scaling.factor is missing", keys.architecture))
    };
    match keys.metadata.text(&keys.full("rope.scaling.type")) {
        None if keys.float("rope.scale_linear").is_some_and(|factor| factor != 1.0) => {
            Ok(json!({ "rope_type": "linear", "factor": keys.float("rope.scale_linear") }))
        }
        None | Some("none") => Ok(Json::Null),
        Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor()? })),
        Some("yarn") => Ok(json!({
            "rope_type": "yarn",
            "factor": factor()?,
            "original_max_position_embeddings": keys.unsigned("rope.scaling.original_context_length")?,
        })),
        Some(other) => bail!(
            "rope scaling of type '{other}' is not read from GGUF; use the model's Hugging Face directory instead"
        ),
    }
}

/// Llama 3's `rope_scaling` behind a tensor of divisors, one for each of the head_dim / 2 frequencies.
///
/// The file keeps only the result, so the published constants (1, 4 and 8192) are tried with the largest divisor as the factor; divisors that they do not
/// reproduce are refused rather than rounded.
fn llama3_scaling(divisors: &[f32], theta: f64, head_dim: u64) -> Result<Json> {
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let expected = |pair: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let reproduced = divisors.len() as u64 == head_dim / 2
        && divisors
            .iter()
            .enumerate()
            .all(|(pair, &divisor)| (f64::from(divisor) - expected(pair)).abs() <= 1e-4 * expected(pair));
    ensure!(reproduced, "{ROPE_DIVISORS} is not llama 3's scaling; use the model's Hugging Face directory instead");
    if factor == 1.0 {
        return Ok(Json::Null);
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}

/// Metadata keys under the architecture's prefix.
struct Keys<'a> {
    architecture: &'static str,
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn unsigned(&self, key: &str) -> Result<u64> {
        self.optional(key)?.with_context(|| format!("the metadata key {} is missing", self.full(key)))
    }

    fn optional(&self, key: &str) -> Result<Option<u64>> {
        let full = self.full(key);
        if self.metadata.get(&full).is_none() {
            return Ok(None);
        }
        self.metadata
            .unsigned(&full)
            .map(Some)
            .with_context(|| format!("the metadata key {full} is not one whole number"))
    }

    /// A number rounded to the f32 that the file stores, as the shortest decimal of it: 1e-5, not 9.99999974e-6.
    fn float(&self, key: &str) -> Option<f64> {
        let value = self.metadata.float(&self.full(key))?;
        (value as f32).to_string().parse().ok()
    }
}

fn usize_of(config: &Json, key: &str) -> usize {
    config[key].as_u64().and_then(|value| usize::try_from(value).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
