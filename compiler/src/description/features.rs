//! Configuration keys that change what a model computes. One that is set and that the description does not read is refused by name: silent
//! nonsense is worse than an error.

use std::collections::BTreeMap;

use super::inert::INERT;
use super::quantised;
use super::value::Value;

/// Keys that every model's facts are read from, whether or not its description names them.
pub(super) const FACTS: &[&str] = &[
    "vocab_size",
    "max_position_embeddings",
    "context_limit",
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "model_type",
    "architectures",
    "num_nextn_predict_layers",
];

/// Keys whose values are lists, also where all elements are alike.
pub(super) const LISTS: &[&str] = &["architectures", "bos_token_id", "eos_token_id"];

/// A key that changes what a model computes.
struct Feature {
    key: &'static str,
    /// With one of these values it changes nothing; null never does.
    harmless: &'static [Harmless],
    what: &'static str,
}

enum Harmless {
    Bool(bool),
    Number(f64),
    Text(&'static str),
    /// A list of nothing else.
    All(&'static str),
    Ones,
    /// A table of nothing.
    Empty,
}

use Harmless::{All, Bool, Empty, Number, Ones, Text};

const FEATURES: &[Feature] = &[
    feature("activation_function", &[], "a choice of the activation"),
    feature("activation", &[], "a choice of the activation"),
    feature("hidden_act", &[], "a choice of the activation"),
    feature("hidden_activation", &[], "a choice of the activation"),
    feature("add_bias_linear", &[Bool(false)], "biases"),
    feature("add_qkv_bias", &[Bool(false)], "biases of q, k and v"),
    feature("attention_bias", &[Bool(false)], "biases of the attention's projections"),
    feature("bias", &[Bool(false)], "biases"),
    feature("lm_head_bias", &[Bool(false)], "a bias of the head"),
    feature("attention_out_bias", &[Bool(false)], "a bias of the attention's output"),
    feature("mlp_bias", &[Bool(false)], "biases of the MLP"),
    feature("qkv_bias", &[Bool(false)], "biases of q, k and v"),
    feature("use_bias", &[Bool(false)], "biases"),
    feature("use_qkv_bias", &[Bool(false)], "biases of q, k and v"),
    feature("tie_word_embeddings", &[], "a choice of the head's weight"),
    feature("attention_chunk_size", &[], "chunked attention"),
    feature("attention_layers", &[All("global")], "a kind of attention for each layer"),
    feature("attention_types", &[], "a kind of attention for each layer"),
    feature("attn_config", &[], "a choice of the attention"),
    feature("conv_L_cache", &[], "convolutions"),
    feature("layer_types", &[All("full_attention"), All("attention")], "a kind of attention for each layer"),
    feature("max_window_layers", &[], "layers with sliding windows"),
    feature("sliding_window", &[], "sliding-window attention"),
    feature("sliding_window_pattern", &[], "a sliding window on some layers"),
    feature("use_sliding_window", &[Bool(false)], "sliding-window attention"),
    feature("window_size", &[], "sliding-window attention"),
    feature("attn_logit_softcapping", &[], "a soft cap on attention scores"),
    feature("final_logit_softcapping", &[], "a soft cap on logits"),
    feature("attention_multiplier", &[], "the scale of attention scores"),
    feature("query_pre_attn_scalar", &[], "the scale of attention scores"),
    feature("scale_attn_by_inverse_layer_idx", &[Bool(false)], "the scale of attention scores"),
    feature("scale_attn_weights", &[Bool(true)], "the scale of attention scores"),
    feature("attn_temperature_tuning", &[Bool(false)], "the scale of attention scores"),
    feature("use_logn_attn", &[Bool(false)], "scores that grow with the sequence"),
    feature("attn_output_gate", &[Bool(false)], "a gate on the attention's output"),
    feature("clip_qkv", &[], "clipping of q, k and v"),
    feature("qk_layernorm", &[Bool(false)], "a norm on q and k"),
    feature("qk_layer_norms", &[Bool(false)], "a norm on q and k"),
    feature("use_qk_norm", &[Bool(false)], "a norm on q and k"),
    feature("embedding_multiplier", &[Number(1.0)], "a factor on embeddings"),
    feature("mup_enabled", &[Bool(false)], "a factor on embeddings"),
    feature("scale_embedding", &[Bool(false)], "a factor on embeddings"),
    feature("scale_emb", &[Number(1.0)], "a factor on embeddings"),
    feature("residual_multiplier", &[Number(1.0)], "a factor on residuals"),
    feature("scale_depth", &[], "a factor on residuals"),
    feature("dim_model_base", &[], "a factor on logits"),
    feature("logit_scale", &[Number(1.0)], "a factor on logits"),
    feature("logits_scaling", &[Number(1.0)], "a factor on logits"),
    feature("alibi", &[Bool(false)], "ALiBi"),
    feature("position_embedding_type", &[Text("rope"), Text("absolute")], "the kind of position embedding"),
    feature("no_rope_layers", &[Ones], "layers without RoPE"),
    feature("partial_rotary_factor", &[Number(1.0)], "partial RoPE"),
    feature("rotary_dim", &[], "partial RoPE"),
    feature("rotary_pct", &[Number(1.0)], "partial RoPE"),
    feature("rope_interleave", &[Bool(false)], "interleaved RoPE"),
    feature("rope_interleaved", &[Bool(false)], "interleaved RoPE"),
    feature("layer_rope_theta", &[], "a base of RoPE for each layer"),
    feature("rope_local_base_freq", &[], "a second base of RoPE"),
    feature("rope_scaling", &[], "scaled RoPE"),
    feature("rope_local_scaling", &[], "scaled RoPE of layers with a window"),
    feature("rope_theta", &[], "the base of RoPE"),
    feature("rope_ratio", &[Number(1.0)], "the base of RoPE"),
    feature("rotary_emb_base", &[], "the base of RoPE"),
    feature("use_mrope", &[Bool(false)], "multimodal RoPE"),
    feature("parallel_attn", &[Bool(false)], "parallel residuals"),
    feature("use_parallel_residual", &[Bool(false)], "parallel residuals"),
    feature("apply_residual_connection_post_layernorm", &[Bool(false)], "residuals taken after the norm"),
    feature("do_layer_norm_before", &[Bool(true)], "post-norm"),
    feature("_remove_final_layer_norm", &[Bool(false)], "a head without a norm"),
    feature("hidden_size_per_layer_input", &[Number(0.0)], "embeddings for each layer"),
    feature("n_routed_experts", &[Number(0.0)], "routed experts"),
    feature("num_experts", &[Number(0.0)], "routed experts"),
    feature("num_local_experts", &[Number(0.0)], "routed experts"),
    feature("moe_num_experts", &[Number(0.0)], "routed experts"),
    feature("multi_query", &[Bool(false)], "one key head for all queries"),
    feature("new_decoder_architecture", &[Bool(false)], "another order of q, k and v"),
    feature("norm_topk_prob", &[Bool(false)], "shares of experts that are normalised"),
    feature("routed_scaling_factor", &[Number(1.0)], "a factor on the shares of experts"),
    feature("route_scale", &[Number(1.0)], "a factor on the shares of experts"),
    feature("route_norm", &[Bool(false)], "shares of experts that are normalised"),
    feature("score_func", &[Text("softmax")], "how a router scores"),
    feature("scoring_func", &[Text("softmax")], "how a router scores"),
    feature("topk_method", &[Text("greedy")], "how experts are chosen"),
    feature("n_group", &[Number(1.0)], "experts in groups"),
    feature("first_k_dense_replace", &[Number(0.0)], "layers without experts"),
    feature("moe_layer_start_index", &[Number(0.0)], "layers without experts"),
    feature("moe_layer_freq", &[Number(1.0)], "layers without experts"),
    feature("moe_num_shared_experts", &[Number(0.0)], "shared experts"),
    feature("swiglu_limit", &[], "a bound inside the experts"),
    feature("num_ln_in_parallel_attn", &[], "norms of a parallel residual"),
    feature("n_shared_experts", &[Number(0.0)], "shared experts"),
    feature("num_kv_shared_layers", &[Number(0.0)], "layers that share a cache"),
    feature("kv_lora_rank", &[], "latent attention"),
    feature("mlp_only_layers", &[All("")], "layers without experts"),
    feature("decoder_sparse_step", &[Number(1.0)], "layers without experts"),
    feature("use_bidirectional_attention", &[Bool(false)], "attention that is not causal"),
    feature("is_encoder_decoder", &[Bool(false)], "an encoder"),
    feature("add_cross_attention", &[Bool(false)], "cross-attention"),
    feature("pruned_heads", &[Empty], "heads that are left out"),
    feature("use_resampler", &[Bool(false)], "a resampler"),
    feature("text_config", &[], "a model within a model"),
    feature("vision_config", &[], "a vision tower"),
];

const fn feature(key: &'static str, harmless: &'static [Harmless], what: &'static str) -> Feature {
    Feature { key, harmless, what }
}

/// What families do that no key of their configurations says and no operation computes, by `model_type`.
const UNTOLD: &[(&str, &str)] = &[
    ("bloom", "ALiBi: scores less the distance"),
    ("mpt", "ALiBi: scores less the distance"),
    ("nanochat", "RoPE that turns backwards"),
    ("phimoe", "shares by sparsemixer"),
    ("xglm", "positions by sines"),
];

/// What a family of this `model_type` does that no key says and no operation computes.
pub(super) fn untold(model_type: &str) -> Option<&'static str> {
    UNTOLD.iter().find(|(family, _)| *family == model_type).map(|(_, what)| *what)
}

/// What `key` stands for, where `value` asks for something that a description must honour.
pub(super) fn asked(key: &str, value: &Value) -> Option<&'static str> {
    let feature = FEATURES.iter().find(|feature| feature.key == key)?;
    let all = |item: &dyn Fn(&Value) -> bool| matches!(value, Value::List(items) if items.iter().all(item));
    let harmless = *value == Value::Null
        || feature.harmless.iter().any(|harmless| match harmless {
            Bool(expected) => *value == Value::Bool(*expected),
            Number(expected) => value.number() == Some(*expected),
            Text(expected) => value.text() == Some(expected),
            All(expected) => all(&|item| item.text() == Some(expected)),
            Ones => all(&|item| item.number() == Some(1.0)),
            Empty => value.table().is_some_and(BTreeMap::is_empty),
        });
    (!harmless).then_some(feature.what)
}

/// Whether the key is one that a configuration may have though no expression reads it.
pub(super) fn is_known(key: &str) -> bool {
    FACTS.contains(&key)
        || INERT.iter().any(|keys| keys.contains(&key))
        || key == "rope_parameters"
        || quantised::KEYS.contains(&key)
        || FEATURES.iter().any(|feature| feature.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_stands_once() {
        for (index, feature) in FEATURES.iter().enumerate() {
            assert_eq!(FEATURES.iter().position(|other| other.key == feature.key), Some(index), "{}", feature.key);
        }
    }

    #[test]
    fn defaults_are_harmless() {
        let layers = |kind: &str| Value::List([Value::from(kind), Value::from("full_attention")].into());
        assert_eq!(asked("layer_types", &layers("full_attention")), None);
        assert!(asked("layer_types", &layers("sliding_attention")).is_some());
        assert_eq!(asked("residual_multiplier", &Value::Int(1)), None);
        assert!(asked("residual_multiplier", &Value::Float(0.22)).is_some());
        assert_eq!(asked("attention_dropout", &Value::Float(0.5)), None);
    }
}
