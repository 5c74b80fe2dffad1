//! A configuration's keys, whatever a family calls them.

use std::collections::BTreeMap;

use crate::description::Value;

/// The name that the language and most families use, and what others call it.
const ALIASES: &[(&str, &[&str])] = &[
    ("vocab_size", &["padded_vocab_size", "n_vocab"]),
    ("hidden_size", &["n_embd", "d_model", "dim", "model_dim", "hidden_dim", "n_embed"]),
    ("num_hidden_layers", &["n_layer", "n_layers", "num_layers"]),
    ("num_attention_heads", &["n_head", "n_heads", "num_heads", "attention_heads"]),
    ("num_key_value_heads", &["num_kv_heads", "n_kv_heads", "n_head_kv", "num_query_groups", "multi_query_group_num"]),
    ("head_dim", &["kv_channels", "d_kv", "head_size", "attention_head_dim", "d_head"]),
    ("intermediate_size", &["n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "inner_dim", "ffn_hidden_dim", "d_inner"]),
    ("max_position_embeddings", &["n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length"]),
    ("rope_theta", &["rotary_emb_base", "rope_base", "rotary_base"]),
    ("partial_rotary_factor", &["rotary_pct", "rotary_percentage", "rope_pct", "rotary_percent", "rope_percent"]),
    ("num_experts", &["num_local_experts", "n_routed_experts", "moe_num_experts"]),
    (
        "num_experts_per_tok",
        &["num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k", "num_selected_experts"],
    ),
    ("norm_topk_prob", &["route_norm"]),
    ("scoring_func", &["score_func"]),
    ("routed_scaling_factor", &["route_scale"]),
    ("n_shared_experts", &["moe_num_shared_experts", "num_shared_experts"]),
    ("moe_intermediate_size", &["expert_intermediate_size", "moe_ffn_hidden_size", "ffn_hidden_size_per_expert"]),
];

/// Where the epsilon of norms may stand; the first are for RMSNorm only.
const EPSILONS: &[&str] = &[
    "rms_norm_eps",
    "rms_norm_epsilon",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "layernorm_eps",
    "norm_eps",
    "norm_epsilon",
    "rms_eps",
    "epsilon",
];

/// Where the activation may stand; where a configuration has two, transformers takes the first.
const ACTIVATIONS: &[&str] =
    &["hidden_activation", "hidden_act", "activation_function", "activation", "ffn_activation", "ffn_act", "act_fn"];

/// A configuration, and the derived keys that a draft needs to read it.
#[derive(Debug)]
pub(super) struct Keys {
    values: BTreeMap<String, Value>,
    /// Key and expression, as TOML writes it, in the order of need.
    derive: Vec<(String, String)>,
}

impl Keys {
    pub fn new(values: BTreeMap<String, Value>) -> Keys {
        Keys { values, derive: Vec::new() }
    }

    /// A key's value where it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| **value != Value::Null)
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// The whole number under the common name of a key or one of its aliases; an alias becomes a derived key.
    pub fn count(&mut self, key: &str) -> Option<usize> {
        self.find(key).and_then(|value| match value {
            Value::Int(count) => usize::try_from(count).ok(),
            _ => None,
        })
    }

    /// The value under the common name of a key or one of its aliases; an alias becomes a derived key.
    pub fn find(&mut self, key: &str) -> Option<Value> {
        let (name, value) = self.peek(key)?;
        let (name, value) = (name.to_owned(), value.clone());
        if name != key {
            self.derive(key, &format!("\"{name}\""));
        }
        Some(value)
    }

    /// As [`Keys::find`], with the name that the configuration has, and nothing derived.
    pub fn peek<'a>(&'a self, key: &'a str) -> Option<(&'a str, &'a Value)> {
        if let Some(value) = self.get(key) {
            return Some((key, value));
        }
        let (_, aliases) = ALIASES.iter().find(|(name, _)| *name == key)?;
        let alias = aliases.iter().find(|alias| self.get(alias).is_some())?;
        self.get(alias).map(|value| (*alias, value))
    }

    /// Adds a derived key, once. `expression` is TOML: a quoted expression, a number or a flag.
    pub fn derive(&mut self, key: &str, expression: &str) {
        if !self.derive.iter().any(|(known, _)| known == key) {
            self.derive.push((key.to_owned(), expression.to_owned()));
        }
    }

    /// The expression that a key is derived by.
    pub fn derived(&self) -> &[(String, String)] {
        &self.derive
    }

    /// The key that holds the epsilon of norms, of a `layer_norm` rather its own.
    pub fn epsilon(&self, layer_norm: bool) -> Option<&'static str> {
        let mut there =
            EPSILONS.iter().copied().filter(|key| self.get(key).is_some_and(|value| value.number().is_some()));
        let first = there.clone().next();
        if layer_norm { there.find(|key| !key.contains("rms")).or(first) } else { first }
    }

    /// The key that names the activation.
    pub fn activation(&self) -> Option<&'static str> {
        ACTIVATIONS.iter().copied().find(|key| self.text(key).is_some())
    }
}

/// Whether a factor is there and not 1.
pub(super) fn changes(factor: Option<&Value>) -> bool {
    factor.and_then(Value::number).is_some_and(|factor| factor != 1.0)
}
