//! config.json from the metadata and the tensors.

use super::super::contents::{Contents, Value};
use super::family::{Epsilon, Family, INSTEAD, Rotation};
use super::keys::Keys;
use super::rope;
use crate::weights::dtype::Dtype;
use anyhow::{Context, Result, ensure};
use fusec::description::MAX_LAYERS;
use fusec::ir::Format;
use serde_json::{Map, Value as Json, json};

/// SmolLM3 turns q and k in three layers of four; a GGUF file does not say so.
const SMOLLM3_TURNED_OF: u64 = 4;

/// StarCoder 2's checkpoints, recognised by their layers, have a window that their files do not have.
const STARCODER2: ([u64; 3], u64) = ([30, 32, 40], 4096);

/// Gemma 2's window and soft caps, of scores and of logits, where a file does not say them.
const GEMMA2: (u64, f64, f64) = (4096, 50.0, 30.0);

/// config.json as transformers would have written it. Fails where the metadata has keys that nothing honours.
pub(super) fn config(family: &Family, contents: &Contents, files: &[&[u8]]) -> Result<Json> {
    let keys = Keys::new(family.architecture, &contents.metadata);
    let has = |name: &str| contents.tensors.contains_key(name);
    let embedding = contents.tensors.get("token_embd.weight").context("the tensor token_embd.weight is missing")?;
    let hidden_size = keys.unsigned("embedding_length")?;
    let heads = keys.unsigned("attention.head_count")?;
    let key_value_heads = keys.optional("attention.head_count_kv")?.unwrap_or(heads);
    let share =
        hidden_size.checked_div(heads).with_context(|| format!("{} is 0", keys.full("attention.head_count")))?;
    let head_dim = keys.optional("attention.key_length")?.unwrap_or(share);
    ensure!(head_dim > 0, "heads of {hidden_size} / {heads} values are empty");
    keys.expect("attention.value_length", head_dim as f64)?;
    ensure!(keys.boolean("attention.causal")? != Some(false), "{} is false; {INSTEAD}", keys.full("attention.causal"));
    let layers = keys.unsigned("block_count")?;
    ensure!(
        layers <= u64::from(MAX_LAYERS),
        "{} is {layers}, and no model has more than {MAX_LAYERS} layers: get the file again",
        keys.full("block_count")
    );

    let mut config = Config { family, values: Map::new() };
    config.put("architectures", json!([family.class]));
    config.put("model_type", json!(family.model_type));
    config.put("vocab_size", json!(embedding.shape[0]));
    config.put("hidden_size", json!(hidden_size));
    config.put("intermediate_size", json!(keys.unsigned("feed_forward_length")?));
    config.put("num_hidden_layers", json!(layers));
    config.put("num_attention_heads", json!(heads));
    config.put("max_position_embeddings", json!(keys.unsigned("context_length")?));
    config.put(family.activation.0, json!(family.activation.1));
    config.put_epsilon(&keys)?;
    if matches!(family.model_type, "gpt2" | "gpt_neox") {
        keys.expect("attention.head_count_kv", heads as f64)?;
        keys.expect("attention.key_length", share as f64)?;
    } else {
        config.put("num_key_value_heads", json!(key_value_heads));
        config.put("head_dim", json!(head_dim));
    }
    if family.rotation != Rotation::None {
        let theta = keys.float("rope.freq_base")?.unwrap_or(10000.0);
        let rotated = keys.optional("rope.dimension_count")?.unwrap_or(head_dim);
        config.put("rope_theta", json!(theta));
        config.put("rope_scaling", rope::scaling(&keys, contents, files, theta, rotated)?);
        if family.rotation == Rotation::Part || rotated != head_dim {
            config.put("partial_rotary_factor", json!(part_of(rotated, head_dim)));
        }
        if family.model_type != "gemma3_text" {
            keys.expect("rope.freq_base_swa", theta)?;
        }
    }
    if family.windows
        && let Some(window) = keys.optional("attention.sliding_window")?.filter(|&window| window > 0)
    {
        config.put("sliding_window", json!(window));
    }
    for (key, tensor) in family.biases {
        config.put(key, json!(has(tensor)));
    }
    config.put("tie_word_embeddings", json!(!has("output.weight")));
    for (key, gguf) in
        [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")]
    {
        config.put(key, contents.metadata.unsigned(gguf).map_or(Json::Null, |id| json!(id)));
    }
    config.put("torch_dtype", json!(working_dtype(contents)));
    match family.model_type {
        "gemma2" | "gemma3_text" => config.put_gemma(&keys, layers, share, head_dim)?,
        "granite" => {
            ensure!(
                keys.boolean("rope.scaling.finetuned")? != Some(false),
                "{} is false: its layers have no RoPE; {INSTEAD}",
                keys.full("rope.scaling.finetuned")
            );
            let scale = keys.float("attention.scale")?.unwrap_or((head_dim as f64).powf(-0.5));
            config.put("attention_multiplier", json!(scale));
            config.put("embedding_multiplier", json!(keys.float("embedding_scale")?.unwrap_or(1.0)));
            config.put("residual_multiplier", json!(keys.float("residual_scale")?.unwrap_or(1.0)));
            config.put("logits_scaling", json!(keys.required("logit_scale", keys.float("logit_scale")?)?));
        }
        "gpt_neox" => {
            config.put("use_parallel_residual", json!(keys.boolean("use_parallel_residual")?.unwrap_or(true)));
        }
        "stablelm" => {
            // The key is true in files of models whose config.json does not say: the second norm shows it.
            keys.boolean("use_parallel_residual")?;
            config.put("use_parallel_residual", json!(!has("blk.0.ffn_norm.weight")));
            config.put("qk_layernorm", json!(has("blk.0.attn_q_norm.weight")));
        }
        "olmo" => config.put_float("clip_qkv", &keys, "attention.clamp_kqv")?,
        "smollm3" => {
            let turned: Vec<u8> =
                (1..=layers).map(|layer| u8::from(!layer.is_multiple_of(SMOLLM3_TURNED_OF))).collect();
            config.put("no_rope_layers", json!(turned));
        }
        "starcoder2" if !config.values.contains_key("sliding_window") && STARCODER2.0.contains(&layers) => {
            config.put("sliding_window", json!(STARCODER2.1));
        }
        "mixtral" | "qwen2_moe" | "qwen3_moe" => config.put_experts(&keys, contents, layers)?,
        _ => {}
    }
    keys.all_read()?;
    Ok(Json::Object(config.values))
}

/// config.json as it grows.
struct Config<'a> {
    family: &'a Family,
    values: Map<String, Json>,
}

impl Config<'_> {
    /// Sets a key, under the family's own name of it.
    fn put(&mut self, key: &str, value: Json) {
        let own = self.family.keys.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own);
        self.values.insert(own.to_owned(), value);
    }

    /// Sets a key to a number of the metadata, where that is there.
    fn put_float(&mut self, key: &str, keys: &Keys<'_>, gguf: &str) -> Result<()> {
        if let Some(value) = keys.float(gguf)? {
            self.put(key, json!(value));
        }
        Ok(())
    }

    fn put_epsilon(&mut self, keys: &Keys<'_>) -> Result<()> {
        let read = |key: &str| keys.required(key, keys.float(key)?);
        match self.family.epsilon {
            Epsilon::Rms => self.put("rms_norm_eps", json!(read("attention.layer_norm_rms_epsilon")?)),
            Epsilon::Layer(own) => self.put(own, json!(read("attention.layer_norm_epsilon")?)),
            Epsilon::Fixed(key, expected) => keys.expect(key, expected)?,
        }
        Ok(())
    }

    /// What Gemma 2 and 3 have beyond Gemma: windows on some layers, a scale of scores, soft caps.
    fn put_gemma(&mut self, keys: &Keys<'_>, layers: u64, share: u64, head_dim: u64) -> Result<()> {
        let third = self.family.model_type == "gemma3_text";
        // The scale is the head size's but in the 27B models, which are recognised by their layers: a file does not say it.
        let largest = if third { 62 } else { 46 };
        self.put("query_pre_attn_scalar", json!(if layers == largest { share } else { head_dim }));
        let (window, scores, logits) = GEMMA2;
        if !third {
            self.put("attn_logit_softcapping", json!(scores));
            self.put("final_logit_softcapping", json!(logits));
        }
        self.put_float("attn_logit_softcapping", keys, "attn_logit_softcapping")?;
        self.put_float("final_logit_softcapping", keys, "final_logit_softcapping")?;
        if third {
            self.put("rope_local_base_freq", json!(keys.float("rope.freq_base_swa")?.unwrap_or(10000.0)));
        } else if keys.value("attention.sliding_window").is_none() {
            self.put("sliding_window", json!(window));
        }
        let window = self.values.contains_key("sliding_window");
        let sliding: Vec<bool> = match keys.value("attention.sliding_window_pattern") {
            _ if !window => (0..layers).map(|_| false).collect(),
            None => periodic(layers, if third { 6 } else { 2 }),
            Some(Value::List(flags)) => flags
                .iter()
                .map(|flag| match flag {
                    Value::Bool(sliding) => Some(*sliding),
                    Value::Unsigned(sliding) => Some(*sliding != 0),
                    Value::Signed(sliding) => Some(*sliding != 0),
                    _ => None,
                })
                .collect::<Option<Vec<bool>>>()
                .filter(|flags| flags.len() as u64 == layers)
                .with_context(|| format!("{} is no flag a layer", keys.full("attention.sliding_window_pattern")))?,
            Some(_) => periodic(layers, keys.unsigned("attention.sliding_window_pattern")?),
        };
        let kind = |sliding: &bool| if *sliding { "sliding_attention" } else { "full_attention" };
        self.put("layer_types", sliding.iter().map(kind).collect());
        Ok(())
    }

    /// Experts: how many, how large, which layers have them, and how their shares are made.
    fn put_experts(&mut self, keys: &Keys<'_>, contents: &Contents, layers: u64) -> Result<()> {
        const SOFTMAX: f64 = 1.0;
        keys.expect("expert_gating_func", SOFTMAX)?;
        keys.expect("expert_weights_scale", 1.0)?;
        self.put("num_experts_per_tok", json!(keys.unsigned("expert_used_count")?));
        let experts = json!(keys.unsigned("expert_count")?);
        let normalised = keys.boolean("expert_weights_norm")?;
        if self.family.model_type == "mixtral" {
            ensure!(
                normalised != Some(false),
                "{} is false, and a Mixtral's is true; {INSTEAD}",
                keys.full("expert_weights_norm")
            );
            self.put("num_local_experts", experts);
            return Ok(());
        }
        self.put("num_experts", experts);
        let third = self.family.model_type == "qwen3_moe";
        self.put("norm_topk_prob", json!(normalised.unwrap_or(third)));
        let dense = |layer: &u64| !contents.tensors.contains_key(&format!("blk.{layer}.ffn_gate_inp.weight"));
        self.put("mlp_only_layers", (0..layers).filter(dense).collect());
        self.put("decoder_sparse_step", json!(1));
        // The sizes are the tensors': early files have no key for them.
        for (key, stem, axis) in [
            ("moe_intermediate_size", "ffn_gate_exps.weight", 1),
            ("shared_expert_intermediate_size", "ffn_gate_shexp.weight", 0),
        ] {
            let mut stacks = (0..layers).filter_map(|layer| contents.tensors.get(&format!("blk.{layer}.{stem}")));
            if let Some(size) = stacks.next().and_then(|stack| stack.shape.get(axis)) {
                self.put(key, json!(size));
            }
        }
        Ok(())
    }
}

/// Layers in runs of `period`, of which the last of each has no window.
fn periodic(layers: u64, period: u64) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect()
}

/// `part / whole`, rounded so that `int(whole · share)` is `part` again.
fn part_of(part: u64, whole: u64) -> f64 {
    let share = part as f64 / whole as f64;
    if ((share * whole as f64) as u64) < part { share.next_up() } else { share }
}

/// The dtype that config.json names: that of the matrices where they are plain, else bfloat16, to which quantised ones widen.
fn working_dtype(contents: &Contents) -> &'static str {
    let mut matrices =
        contents.tensors.values().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.dtype).peekable();
    let first = matrices.peek().copied();
    match first.filter(|&first| matrices.all(|dtype| dtype == first)) {
        Some(Dtype::Of(Format::F32)) => "float32",
        Some(Dtype::Of(Format::F16)) => "float16",
        _ => "bfloat16",
    }
}
