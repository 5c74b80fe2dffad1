//! Hugging Face checkpoints as the GGUF files that llama.cpp's converter makes of them: its names, orders and metadata keys, in f32.

mod blocks;
mod file;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use fusec::ir::{Format, WeightRef};
use fuserun::weights::Checkpoint;
use serde_json::Value;

pub use blocks::random_blocks;
use file::File;
pub use file::Meta;

/// The GGUF file of a checkpoint: its bytes. `more` are metadata keys that are added, under the architecture's prefix.
///
/// Panics on a checkpoint of a family that it does not know.
pub fn gguf_of(folder: &Path, more: &[(&str, Meta)]) -> Vec<u8> {
    gguf_with(folder, more, &[])
}

/// As [`gguf_of`], with random blocks of the format that `pick` gives for a matrix by its name in the file, where its rows are whole blocks.
pub fn gguf_of_blocks(folder: &Path, pick: &dyn Fn(&str) -> Format) -> Vec<u8> {
    written(folder, &[], &[], pick)
}

/// As [`gguf_of`]; `whole` are metadata keys by their whole names.
pub fn gguf_with(folder: &Path, more: &[(&str, Meta)], whole: &[(&str, Meta)]) -> Vec<u8> {
    written(folder, more, whole, &|_| Format::F32)
}

fn written(folder: &Path, more: &[(&str, Meta)], whole: &[(&str, Meta)], pick: &dyn Fn(&str) -> Format) -> Vec<u8> {
    let mut seed = 0;
    let mut put = |file: &mut File, name: &str, shape: &[usize], values: &[f32]| {
        seed += 1;
        let format = pick(name);
        let in_blocks = shape.len() > 1 && format != Format::F32 && format.bytes(shape[shape.len() - 1]).is_some();
        match in_blocks {
            true => file.stored(name, shape, blocks::number(format), &random_blocks(format, values.len(), seed)),
            false => file.tensor(name, shape, values),
        }
    };
    let checkpoint = Checkpoint::open(folder).expect("a golden opens");
    let config = checkpoint.config().clone();
    let model = config["model_type"].as_str().expect("a model_type");
    let architecture = architecture(model);
    let mut file = File::default();
    file.meta("general.architecture", Meta::Text(architecture.to_owned()));
    whole.iter().cloned().for_each(|(key, value)| file.meta(key, value));
    let parameters = parameters(model, &config).into_iter().chain(more.iter().cloned());
    parameters.for_each(|(key, value)| file.meta(&format!("{architecture}.{key}"), value));
    factors(model, &config).into_iter().for_each(|(name, values)| file.tensor(name, &[values.len()], &values));

    let mut stacks: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for name in names::in_order(&checkpoint) {
        let weight = WeightRef::whole(&name);
        let tensor = Tensor {
            shape: checkpoint.shape(&weight).expect("a tensor has a shape"),
            values: checkpoint.read_f32(&weight).expect("a tensor is read"),
        };
        let Tensor { shape, values } = tensor.modified(model, &name, &config);
        let renamed = names::rename(model, &name).unwrap_or_else(|| panic!("{model} has no name for {name}"));
        if !name.contains(".experts.") {
            put(&mut file, &renamed, &shape, &values);
            continue;
        }
        match stacks.iter_mut().find(|(stack, ..)| *stack == renamed) {
            Some((_, stack_shape, stacked)) => {
                stack_shape[0] += 1;
                stacked.extend(values);
            }
            None => stacks.push((renamed, [&[1], &shape[..]].concat(), values)),
        }
    }
    stacks.iter().for_each(|(name, shape, values)| put(&mut file, name, shape, values));
    file.bytes()
}

/// The metadata of a folder's tokenizer.json, a byte-level BPE that cuts text as GPT-2 does.
pub fn tokenizer_meta(folder: &Path) -> Vec<(&'static str, Meta)> {
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).expect("it has a tokenizer.json");
    let model = serde_json::from_str::<Value>(&text).expect("it is JSON")["model"].take();
    let id = |(token, id): (&String, &Value)| (id.as_u64().expect("an id"), token.clone());
    let tokens: BTreeMap<u64, String> = model["vocab"].as_object().expect("a vocabulary").iter().map(id).collect();
    let part = |pair: &Value, at: usize| pair[at].as_str().expect("a part").to_owned();
    let merges = model["merges"].as_array().expect("merges").iter().map(|pair| part(pair, 0) + " " + &part(pair, 1));
    vec![
        ("tokenizer.ggml.model", Meta::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Meta::Text("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens.into_values().collect())),
        ("tokenizer.ggml.merges", Meta::Texts(merges.collect())),
        ("tokenizer.ggml.eos_token_id", Meta::U32(0)),
    ]
}

/// A file with an architecture and nothing else.
pub fn empty_gguf(architecture: &str) -> Vec<u8> {
    let mut file = File::default();
    file.meta("general.architecture", Meta::Text(architecture.to_owned()));
    file.bytes()
}

fn architecture(model: &str) -> &str {
    match model {
        "mistral" | "mixtral" => "llama",
        "qwen2_moe" => "qwen2moe",
        "qwen3_moe" => "qwen3moe",
        "gemma3_text" => "gemma3",
        "gpt_neox" => "gptneox",
        same => same,
    }
}

/// The metadata that the converter writes for a family.
fn parameters(model: &str, config: &Value) -> Vec<(&'static str, Meta)> {
    let integer =
        |keys: &[&str]| keys.iter().find_map(|key| config[*key].as_u64()).map(|value| Meta::U32(value as u32));
    let float = |value: &Value| value.as_f64().map(|value| Meta::F32(value as f32));
    let rope = rope_parameters(config);
    let mut all: Vec<(&'static str, Option<Meta>)> = vec![
        ("context_length", integer(&["max_position_embeddings", "n_positions"])),
        ("embedding_length", integer(&["hidden_size", "n_embd"])),
        ("block_count", integer(&["num_hidden_layers", "n_layer"])),
        ("attention.head_count", integer(&["num_attention_heads", "n_head"])),
        ("attention.layer_norm_rms_epsilon", float(&config["rms_norm_eps"])),
        ("attention.layer_norm_epsilon", norm_epsilon(config).and_then(float)),
    ];
    let hidden = config["hidden_size"].as_u64().or(config["n_embd"].as_u64()).expect("a hidden size");
    let heads = config["num_attention_heads"].as_u64().or(config["n_head"].as_u64()).expect("heads");
    let rotated = |factor: &Value| Some(Meta::U32((factor.as_f64().unwrap_or(1.0) * (hidden / heads) as f64) as u32));
    all.push(match model {
        "gpt2" => ("feed_forward_length", Some(Meta::U32(4 * hidden as u32))),
        _ => ("feed_forward_length", integer(&["intermediate_size"])),
    });
    if !matches!(model, "gpt2" | "gpt_neox") {
        all.push(("attention.head_count_kv", integer(&["num_key_value_heads"])));
    }
    if !matches!(model, "gpt2" | "gpt_neox" | "granite" | "stablelm" | "phi3") {
        all.push(("attention.key_length", integer(&["head_dim"])));
        all.push(("attention.value_length", integer(&["head_dim"])));
    }
    if !matches!(model, "gpt2" | "gpt_neox" | "stablelm" | "gemma" | "gemma2") {
        all.push(("rope.freq_base", float(&rope["rope_theta"])));
    }
    match model {
        "llama" | "mistral" | "mixtral" | "granite" | "smollm3" => {
            all.push(("vocab_size", integer(&["vocab_size"])));
            all.push(("rope.dimension_count", integer(&["head_dim"]).or(rotated(&Value::Null))));
        }
        "gpt_neox" | "stablelm" => {
            all.push(("rope.dimension_count", rotated(&rope["partial_rotary_factor"])));
            all.push(("use_parallel_residual", config["use_parallel_residual"].as_bool().map(Meta::Bool)));
        }
        "phi3" => {
            let share = rope["partial_rotary_factor"].as_f64().unwrap_or(1.0);
            let dimensions = (share * hidden as f64) as u64 / heads;
            all.push(("rope.dimension_count", Some(Meta::U32(dimensions as u32))));
            all.push(("attention.sliding_window", integer(&["sliding_window"]).or(Some(Meta::U32(0)))));
            let original = rope["original_max_position_embeddings"].as_u64().expect("an original context");
            all.push(("rope.scaling.original_context_length", Some(Meta::U32(original as u32))));
            let scale = config["max_position_embeddings"].as_u64().expect("a context") as f64 / original as f64;
            let factor = (1.0 + scale.ln() / (original as f64).ln()).sqrt();
            all.push(("rope.scaling.attn_factor", Some(Meta::F32(factor as f32))));
        }
        "gemma2" | "gemma3_text" => {
            all.push(("attention.sliding_window", integer(&["sliding_window"])));
            all.push(("attn_logit_softcapping", float(&config["attn_logit_softcapping"])));
            all.push(("final_logit_softcapping", float(&config["final_logit_softcapping"])));
            all.push(("rope.freq_base_swa", float(&config["rope_parameters"]["sliding_attention"]["rope_theta"])));
        }
        "olmo" => all.push(("attention.clamp_kqv", float(&config["clip_qkv"]))),
        _ => {}
    }
    if model == "granite" {
        all.extend([
            ("attention.scale", float(&config["attention_multiplier"])),
            ("embedding_scale", float(&config["embedding_multiplier"])),
            ("residual_scale", float(&config["residual_multiplier"])),
            ("logit_scale", float(&config["logits_scaling"])),
        ]);
    }
    all.extend([
        ("expert_count", integer(&["num_local_experts", "num_experts"])),
        ("expert_used_count", integer(&["num_experts_per_tok"])),
        ("expert_feed_forward_length", integer(&["moe_intermediate_size"])),
        ("expert_shared_feed_forward_length", integer(&["shared_expert_intermediate_size"])),
    ]);
    if rope["rope_type"] == "linear" {
        all.push(("rope.scaling.type", Some(Meta::Text("linear".to_owned()))));
        all.push(("rope.scaling.factor", float(&rope["factor"])));
    }
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// A family without a key for it has OLMo's.
fn norm_epsilon(config: &Value) -> Option<&Value> {
    static OLMO: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| Value::from(1e-5));
    let given = ["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"].into_iter().find_map(|key| config.get(key));
    given.or((config["model_type"] == "olmo").then(|| &*OLMO))
}

fn rope_parameters(config: &Value) -> &Value {
    let all = &config["rope_parameters"];
    all.get("full_attention").unwrap_or(all)
}

/// Tensors that a configuration becomes.
fn factors(model: &str, config: &Value) -> Vec<(&'static str, Vec<f32>)> {
    let rope = rope_parameters(config);
    let list = |key: &str| -> Vec<f32> {
        rope[key].as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number") as f32).collect()
    };
    if model == "phi3" {
        return vec![
            ("rope_factors_long.weight", list("long_factor")),
            ("rope_factors_short.weight", list("short_factor")),
        ];
    }
    if rope["rope_type"] != "llama3" {
        return Vec::new();
    }
    let number = |key: &str| rope[key].as_f64().expect("a number");
    let (low, high, factor) = (number("low_freq_factor"), number("high_freq_factor"), number("factor"));
    // The converter looks for it outside the scaling, and takes 8192 for every model that there is.
    let original = number("original_max_position_embeddings");
    let dimensions = config["head_dim"].as_u64().expect("a head size");
    let divisor = |at: u64| {
        let wavelength = 2.0 * std::f64::consts::PI * number("rope_theta").powf((2 * at) as f64 / dimensions as f64);
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    vec![("rope_freqs.weight", (0..dimensions / 2).map(divisor).collect())]
}

/// Values in row-major order.
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Tensor {
    /// What the converter does to a tensor of a family.
    fn modified(self, model: &str, name: &str, config: &Value) -> Tensor {
        let count = |key: &str| config[key].as_u64().map(|value| value as usize);
        let is = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        match model {
            // Of OLMo it turns only the weights.
            "llama" | "mistral" | "mixtral" | "granite" | "smollm3" | "olmo" if model != "olmo" || is(&["weight"]) => {
                let heads = count("num_attention_heads").expect("heads");
                if is(&["q_proj.weight", "q_proj.bias"]) {
                    return self.pairs(heads);
                }
                if is(&["k_proj.weight", "k_proj.bias"]) {
                    return self.pairs(count("num_key_value_heads").unwrap_or(heads));
                }
                self
            }
            "gemma" | "gemma2" | "gemma3_text" => {
                let mut tensor = self;
                if is(&["norm.weight"]) {
                    tensor.values.iter_mut().for_each(|value| *value += 1.0);
                }
                // The format has no key for the scale of scores, which llama.cpp takes from the head size: the rest goes into the queries.
                if is(&[if model == "gemma2" { "q_proj.weight" } else { "q_norm.weight" }]) && model != "gemma" {
                    let number = |key: &str| config[key].as_f64().expect("a number");
                    let rest = (number("head_dim") / number("query_pre_attn_scalar")).sqrt() as f32;
                    tensor.values.iter_mut().for_each(|value| *value *= rest);
                }
                tensor
            }
            "gpt2" if is(&["c_attn.weight", "c_proj.weight", "c_fc.weight"]) => self.turned(),
            "gpt_neox" if name.contains("query_key_value") => {
                self.by_projection(count("num_attention_heads").expect("heads"))
            }
            _ => self,
        }
    }

    /// reshape(heads, 2, half, ..).swapaxes(1, 2)
    fn pairs(self, heads: usize) -> Tensor {
        let half = self.shape[0] / heads / 2;
        let order = (0..heads)
            .flat_map(|head| (0..half).flat_map(move |at| (0..2).map(move |which| (head * 2 + which) * half + at)));
        self.rows(order.collect())
    }

    /// reshape(heads, 3, size, ..), then its q, its k and its v one after the other.
    fn by_projection(self, heads: usize) -> Tensor {
        let size = self.shape[0] / heads / 3;
        let order = (0..3)
            .flat_map(|which| (0..heads).flat_map(move |head| (0..size).map(move |at| (head * 3 + which) * size + at)));
        self.rows(order.collect())
    }

    /// The rows that `order` names.
    fn rows(self, order: Vec<usize>) -> Tensor {
        let columns = self.values.len() / self.shape[0];
        let row = |row: usize| self.values[row * columns..(row + 1) * columns].iter().copied();
        Tensor { values: order.into_iter().flat_map(row).collect(), shape: self.shape }
    }

    fn turned(self) -> Tensor {
        let (rows, columns) = (self.shape[0], self.shape[1]);
        let values = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
        Tensor { values: values.map(|at| self.values[at]).collect(), shape: vec![columns, rows] }
    }
}
