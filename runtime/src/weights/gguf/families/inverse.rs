//! What a GGUF file calls things: metadata and tensors of a model in transformers' form.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;

use super::super::contents::Value;
use super::family::{Counts, Epsilon, Family, Rotation};
use super::rope::DIVISORS;
use super::table::{FAMILIES, MISTRAL, MIXTRAL};
use crate::weights::stored::Stored;

/// The families that are written, by their `model_type`.
const WRITTEN: [&str; 10] =
    ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "olmo2", "smollm3", "granite"];

/// What to do about a model that is not written.
const INSTEAD: &str = "name a folder to write in the place of a .gguf file";

/// A model as a GGUF file has it.
pub struct Described {
    /// What it says of the model, in the order in which it is written.
    pub metadata: Vec<(String, Value)>,
    /// Its tensors, in that order.
    pub tensors: Vec<Target>,
}

/// A tensor of the file.
pub struct Target {
    /// Its name there.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The tensors that it is made of, one after the other: of a stack of experts one of each.
    pub sources: Vec<String>,
    /// Its values, where no tensor has them.
    pub values: Vec<f32>,
    stored: Stored,
}

impl Target {
    /// Where row `row` of a source of so many rows stands.
    pub fn place(&self, row: usize, count: usize) -> usize {
        self.stored.place(row, count)
    }
}

/// Describes the model of a config.json and tensors of these shapes.
///
/// # Errors
/// A family that is not written, a configuration that lacks a key or says what a file cannot, a tensor that has no name there.
pub fn describe(config: &Json, tensors: &BTreeMap<&str, &[usize]>) -> Result<Described> {
    let family = family_of(config)?;
    let model = Model { family, config };
    let heads = model.count("num_attention_heads")?;
    let key_value = model.optional("num_key_value_heads")?.unwrap_or(heads);
    let counts = Counts { query: heads as usize, key_value: key_value as usize };
    let mut metadata = model.metadata(heads, key_value)?;
    let layers = model.count("num_hidden_layers")?;
    let mut targets: BTreeMap<(usize, String), Target> = BTreeMap::new();
    let tied = config.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false);
    for (&name, &shape) in tensors {
        if (tied && name == "lm_head.weight") || name.ends_with("inv_freq") {
            continue;
        }
        let Some((gguf, layer, expert)) = family.name_of(name) else {
            bail!("tensor {name} has no name in a GGUF file of architecture '{}': {INSTEAD}", family.architecture);
        };
        let stem = gguf.rsplit_once('.').map_or("", |(stem, _)| stem);
        let how = family.stored.iter().find(|(known, _)| stem.strip_prefix(&format!("blk.{layer}.")) == Some(known));
        let stored = how.map_or(Ok(Stored::Plain), |(_, how)| how.of(name, shape, &counts))?;
        let target = targets.entry((place_of(&gguf, layer), gguf.clone())).or_insert_with(|| {
            let squeezed = gguf.ends_with("ffn_gate_inp_shexp.weight") && shape.len() == 2;
            let shape = if squeezed { shape[1..].to_vec() } else { shape.to_vec() };
            Target { name: gguf, shape, sources: Vec::new(), values: Vec::new(), stored }
        });
        match expert {
            Some(expert) => {
                target.sources.resize(target.sources.len().max(expert + 1), String::new());
                target.sources[expert] = name.to_owned();
            }
            None => target.sources.push(name.to_owned()),
        }
    }
    for target in targets.values_mut() {
        ensure!(target.sources.iter().all(|name| !name.is_empty()), "{} lacks an expert", target.name);
        if target.name.contains("_exps.") {
            target.shape.insert(0, target.sources.len());
        }
    }
    metadata.push((format!("{}.block_count", family.architecture), Value::Unsigned(layers)));
    let mut tensors: Vec<Target> = model.divisors()?.into_iter().collect();
    tensors.extend(targets.into_values());
    Ok(Described { metadata, tensors })
}

/// The embedding first, then layer by layer, then what is after them.
fn place_of(name: &str, layer: usize) -> usize {
    match name {
        _ if name.starts_with("blk.") => layer + 1,
        _ if name.starts_with("token_embd") => 0,
        _ => usize::MAX,
    }
}

fn family_of(config: &Json) -> Result<&'static Family> {
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Json::as_str).unwrap_or("");
    let known = FAMILIES.iter().chain([&MISTRAL, &MIXTRAL]);
    let family = known.into_iter().find(|family| family.class == class && WRITTEN.contains(&family.model_type));
    family
        .with_context(|| format!("GGUF files of {class} are not written (written: {}): {INSTEAD}", WRITTEN.join(", ")))
}

impl Family {
    /// The name of a tensor in the file, its layer, and of which expert it is.
    fn name_of(&self, name: &str) -> Option<(String, usize, Option<usize>)> {
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        if let Some((gguf, _)) = self.outside.iter().find(|(_, outside)| *outside == stem) {
            return Some((format!("{gguf}.{kind}"), 0, None));
        }
        let (layer, stem) = stem.strip_prefix(self.layers)?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        for (gguf, inside) in self.inside.iter().copied().flatten() {
            let expert = match inside.split_once("{expert}") {
                None if *inside == stem => None,
                None => continue,
                Some((before, after)) => {
                    let number = stem.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                    let Some(number) = number.and_then(|number| number.parse().ok()) else { continue };
                    Some(number)
                }
            };
            return Some((format!("blk.{layer}.{gguf}.{kind}"), layer, expert));
        }
        None
    }
}

/// A configuration, read for a family.
struct Model<'a> {
    family: &'static Family,
    config: &'a Json,
}

impl Model<'_> {
    /// A key, under the family's own name of it; none where it is null.
    fn get(&self, key: &str) -> Option<&Json> {
        let own = self.family.keys.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own);
        self.config.get(own).filter(|value| !value.is_null())
    }

    fn optional(&self, key: &str) -> Result<Option<u64>> {
        let whole = |value: &Json| value.as_u64().with_context(|| format!("{key} of config.json is {value}, no size"));
        self.get(key).map(whole).transpose()
    }

    fn count(&self, key: &str) -> Result<u64> {
        self.optional(key)?.filter(|count| *count > 0).with_context(|| format!("config.json lacks {key}"))
    }

    fn float(&self, key: &str) -> Result<f64> {
        self.get(key).and_then(Json::as_f64).with_context(|| format!("config.json lacks {key}"))
    }

    fn head_dim(&self) -> Result<u64> {
        let heads = self.count("num_attention_heads")?;
        Ok(self.optional("head_dim")?.unwrap_or(self.count("hidden_size")? / heads))
    }

    /// A key of the rotation, which stands in `rope_parameters`, in `rope_scaling` or by itself.
    fn rotation(&self, key: &str) -> Option<&Json> {
        let inside = |table: &str| self.get(table).and_then(|table| table.get(key));
        inside("rope_parameters").or_else(|| inside("rope_scaling")).or_else(|| self.get(key))
    }

    fn theta(&self) -> f64 {
        self.rotation("rope_theta").and_then(Json::as_f64).unwrap_or(10000.0)
    }

    /// The kind of its scaling of RoPE; none where it has none.
    fn scaling(&self) -> Option<&str> {
        let kind = self.rotation("rope_type").or_else(|| self.rotation("type")).and_then(Json::as_str);
        kind.filter(|kind| *kind != "default")
    }

    fn scaling_number(&self, key: &str) -> Result<f64> {
        self.rotation(key)
            .and_then(Json::as_f64)
            .with_context(|| format!("the scaling of RoPE in config.json lacks {key}"))
    }

    /// The metadata but for the number of layers.
    fn metadata(&self, heads: u64, key_value: u64) -> Result<Vec<(String, Value)>> {
        let architecture = self.family.architecture;
        let mut list: Vec<(String, Value)> =
            vec![("general.architecture".to_owned(), Value::Text(architecture.to_owned()))];
        let mut put = |key: &str, value: Value| list.push((format!("{architecture}.{key}"), value));
        put("vocab_size", Value::Unsigned(self.count("vocab_size")?));
        put("context_length", Value::Unsigned(self.count("max_position_embeddings")?));
        put("embedding_length", Value::Unsigned(self.count("hidden_size")?));
        put("feed_forward_length", Value::Unsigned(self.count("intermediate_size")?));
        put("attention.head_count", Value::Unsigned(heads));
        put("attention.head_count_kv", Value::Unsigned(key_value));
        let head_dim = self.head_dim()?;
        put("attention.key_length", Value::Unsigned(head_dim));
        put("attention.value_length", Value::Unsigned(head_dim));
        match self.family.epsilon {
            Epsilon::Rms => put("attention.layer_norm_rms_epsilon", Value::Float(self.float("rms_norm_eps")?)),
            Epsilon::Layer(own) => put("attention.layer_norm_epsilon", Value::Float(self.float(own)?)),
            Epsilon::Fixed(key, value) => put(key, Value::Float(value)),
        }
        if self.family.rotation != Rotation::None {
            put("rope.freq_base", Value::Float(self.theta()));
            let share = self.rotation("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(1.0);
            put("rope.dimension_count", Value::Unsigned((head_dim as f64 * share) as u64));
            match self.scaling() {
                None | Some("llama3") => {}
                Some(kind @ ("linear" | "yarn")) => {
                    put("rope.scaling.type", Value::Text(kind.to_owned()));
                    put("rope.scaling.factor", Value::Float(self.scaling_number("factor")?));
                    if kind == "yarn" {
                        let original = self.scaling_number("original_max_position_embeddings")?;
                        put("rope.scaling.original_context_length", Value::Unsigned(original as u64));
                    }
                }
                Some(other) => bail!("a GGUF file cannot say the scaling of RoPE '{other}': {INSTEAD}"),
            }
        }
        if self.family.windows
            && let Some(window) = self.optional("sliding_window")?
        {
            put("attention.sliding_window", Value::Unsigned(window));
        }
        match self.family.model_type {
            "mixtral" | "qwen2_moe" | "qwen3_moe" => {
                let experts = self.optional("num_local_experts")?.or(self.optional("num_experts")?);
                put("expert_count", Value::Unsigned(experts.context("config.json lacks num_experts")?));
                put("expert_used_count", Value::Unsigned(self.count("num_experts_per_tok")?));
                for (key, own) in [
                    ("expert_feed_forward_length", "moe_intermediate_size"),
                    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
                ] {
                    if let Some(size) = self.optional(own)? {
                        put(key, Value::Unsigned(size));
                    }
                }
                if let Some(normalised) = self.get("norm_topk_prob").and_then(Json::as_bool) {
                    put("expert_weights_norm", Value::Bool(normalised));
                }
            }
            "granite" => {
                for (key, own) in [
                    ("attention.scale", "attention_multiplier"),
                    ("embedding_scale", "embedding_multiplier"),
                    ("residual_scale", "residual_multiplier"),
                    ("logit_scale", "logits_scaling"),
                ] {
                    put(key, Value::Float(self.float(own)?));
                }
            }
            _ => {}
        }
        Ok(list)
    }

    /// Llama 3's scaling, which a file has as divisors of the frequencies.
    fn divisors(&self) -> Result<Option<Target>> {
        if self.scaling() != Some("llama3") {
            return Ok(None);
        }
        let number = |key: &str| self.scaling_number(key);
        let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
        let (original, theta, rotated) =
            (number("original_max_position_embeddings")?, self.theta(), self.head_dim()? as usize);
        let divisor = |pair: usize| {
            let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / rotated as f64);
            let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        Ok(Some(Target {
            name: DIVISORS.to_owned(),
            shape: vec![rotated / 2],
            sources: Vec::new(),
            values: (0..rotated / 2).map(divisor).collect(),
            stored: Stored::Plain,
        }))
    }
}
