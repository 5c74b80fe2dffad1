//! Drafts from only configurations and shapes: what each family's names tell, and what only its `model_type` does.

use std::collections::BTreeMap;

use fusec::draft::{Draft, draft};
use serde_json::{Value, json};

/// Sizes: 64 values, 4 heads of 16, 2 of them for k and v, 100 inside the feed-forward part, 2 layers, 203 tokens.
fn drafted(config: Value, outside: &[(&str, &[usize])], prefix: &str, inside: &[(&str, &[usize])]) -> Draft {
    let mut tensors: BTreeMap<String, Vec<usize>> =
        outside.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    for layer in 0..2 {
        tensors.extend(inside.iter().map(|(name, shape)| (format!("{prefix}{layer}.{name}"), shape.to_vec())));
    }
    let drafted = draft(&config, &tensors).expect("it is drafted");
    assert!(drafted.unmatched.is_empty(), "{:?}", drafted.unmatched);
    drafted
}

fn has(draft: &Draft, parts: &[&str]) {
    for part in parts {
        assert!(draft.text.contains(part), "no `{part}` in:\n{}", draft.text);
    }
}

#[test]
fn codegen_has_four_blocks_of_q_v_and_k() {
    let config = json!({"model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "n_embd": 64, "n_head": 4, "n_layer": 2,
        "rotary_dim": 8, "n_positions": 256, "vocab_size": 203, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": false});
    let draft = drafted(
        config,
        &[
            ("transformer.wte.weight", &[203, 64]),
            ("transformer.ln_f.weight", &[64]),
            ("transformer.ln_f.bias", &[64]),
            ("lm_head.weight", &[203, 64]),
            ("lm_head.bias", &[203]),
        ],
        "transformer.h.",
        &[
            ("ln_1.weight", &[64]),
            ("ln_1.bias", &[64]),
            ("attn.qkv_proj.weight", &[192, 64]),
            ("attn.out_proj.weight", &[64, 64]),
            ("mlp.fc_in.weight", &[256, 64]),
            ("mlp.fc_in.bias", &[256]),
            ("mlp.fc_out.weight", &[64, 256]),
            ("mlp.fc_out.bias", &[64]),
        ],
    );
    has(
        &draft,
        &[
            "part = \"[0 * (hidden_size / 4), hidden_size / 4, 3 * (hidden_size / 4)]\"",
            "{ out = \"k\", op = \"linear\", x = \"h\", weight = \"attn.qkv_proj.weight\", heads = \"num_key_value_heads\", part = \"[2 * ",
            "dim = \"rotary_dim\", interleaved = true",
            "max_position_embeddings = \"n_positions\"",
            "{ out = \"x\", op = \"add\", a = \"x\", b = \"o\" },\n  { out = \"x\", op = \"add\", a = \"x\", b = \"m\" },",
        ],
    );
}

const LLAMA: &[(&str, &[usize])] = &[
    ("input_layernorm.weight", &[64]),
    ("post_attention_layernorm.weight", &[64]),
    ("self_attn.q_proj.weight", &[64, 64]),
    ("self_attn.k_proj.weight", &[32, 64]),
    ("self_attn.v_proj.weight", &[32, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("mlp.gate_proj.weight", &[100, 64]),
    ("mlp.up_proj.weight", &[100, 64]),
    ("mlp.down_proj.weight", &[64, 100]),
];
const OUTSIDE: &[(&str, &[usize])] =
    &[("model.embed_tokens.weight", &[203, 64]), ("model.norm.weight", &[64]), ("lm_head.weight", &[203, 64])];

fn llama(model_type: &str, more: Value) -> Value {
    let mut config = json!({"model_type": model_type, "architectures": ["StrangeForCausalLM"], "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 100, "vocab_size": 203,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 256,
        "tie_word_embeddings": false});
    for (key, value) in more.as_object().expect("a table") {
        config[key] = value.clone();
    }
    config
}

#[test]
fn minicpm_scales_residuals_and_logits() {
    let config = llama("minicpm", json!({"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}));
    let draft = drafted(config, OUTSIDE, "model.layers.", LLAMA);
    assert_eq!(draft.todos, 0, "{}", draft.text);
    has(
        &draft,
        &[
            "op = \"scale\", x = \"x\", factor = \"scale_emb\"",
            "op = \"scale\", x = \"m\", factor = \"scale_depth / sqrt(num_hidden_layers)\"",
            "op = \"scale\", x = \"h\", factor = \"1.0 * dim_model_base / hidden_size\"",
        ],
    );
}

#[test]
fn norms_after_rope_and_layers_without_it_are_told_by_the_family() {
    let norms: &[(&str, &[usize])] =
        &[("self_attn.query_layernorm.weight", &[16]), ("self_attn.key_layernorm.weight", &[16])];
    let draft =
        drafted(llama("hunyuan_v1_dense", json!({"head_dim": 16})), OUTSIDE, "model.layers.", &[LLAMA, norms].concat());
    let at = |part: &str| draft.text.find(part).unwrap_or_else(|| panic!("no `{part}` in:\n{}", draft.text));
    assert!(at("{ out = \"k\", op = \"rope\"") < at("query_layernorm.weight"), "{}", draft.text);
    assert_eq!(draft.todos, 1, "{}", draft.text);

    let windows = json!({"head_dim": 16, "sliding_window": 7, "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention"]});
    let sinks: &[(&str, &[usize])] = &[("self_attn.sinks", &[4])];
    let draft = drafted(llama("exaone4", windows), OUTSIDE, "model.layers.", &[LLAMA, sinks].concat());
    has(
        &draft,
        &[
            "when = \"layer_type == 'sliding_attention'\"",
            "sliding_window_pattern = \"LG\"",
            "sinks = \"self_attn.sinks\"",
            "# TODO known only from `model_type`: layers without a window have no RoPE",
        ],
    );
}

#[test]
fn what_keys_may_lack_is_told_by_the_family() {
    let text = |family: &str, more: Value| drafted(llama(family, more), OUTSIDE, "model.layers.", LLAMA).text;
    for (family, more, parts) in [
        (
            "persimmon",
            json!({}),
            &["partial_rotary_factor = 0.5", "dim = \"int(head_dim * partial_rotary_factor)\""][..],
        ),
        (
            "gptj",
            json!({"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}),
            &["rotary_dim = 64", "dim = \"rotary_dim\""],
        ),
        ("cwm", json!({"sliding_window": 7}), &["'full_attention' if layer % 4 == 0 else 'sliding_attention'"]),
        ("hyperclovax", json!({"logits_scaling": 2.0}), &["factor = \"logits_scaling\""]),
        ("granite", json!({"logits_scaling": 2.0}), &["factor = \"1.0 / logits_scaling\""]),
    ] {
        let mut inside = LLAMA.to_vec();
        if family == "gptj" {
            inside.iter_mut().filter(|(_, shape)| shape == &[32, 64]).for_each(|entry| entry.1 = &[64, 64]);
        }
        let draft = drafted(llama(family, more), OUTSIDE, "model.layers.", &inside);
        has(&draft, parts);
        let told = draft.text.contains("known only from `model_type`");
        assert_eq!(told, family != "granite", "{}", draft.text);
    }
    // Where the key is there, it counts.
    assert!(!text("persimmon", json!({"partial_rotary_factor": 1.0})).contains("partial_rotary_factor = 0.5"));
}

#[test]
fn what_the_language_lacks_is_a_todo_and_derived_keys_are_read() {
    let draft = drafted(llama("phimoe", json!({"rotary_pct": 1.0, "num_heads": 4})), OUTSIDE, "model.layers.", LLAMA);
    has(&draft, &["# TODO `model_type` is \"phimoe\" in config.json: this file does not honour shares by sparsemixer"]);
    assert!(!draft.text.contains("partial_rotary_factor"), "{}", draft.text);
}

#[test]
fn experts_in_one_tensor_are_taken_apart() {
    let inside: Vec<(&str, &[usize])> = LLAMA
        .iter()
        .filter(|(name, _)| !name.starts_with("mlp"))
        .copied()
        .chain([
            ("block_sparse_moe.router.layer.weight", &[6, 64][..]),
            ("block_sparse_moe.input_linear.weight", &[6, 200, 64]),
            ("block_sparse_moe.output_linear.weight", &[6, 64, 100]),
        ])
        .collect();
    let config = llama("granitemoe", json!({"num_local_experts": 6, "num_experts_per_tok": 2}));
    let draft = drafted(config, OUTSIDE, "model.layers.", &inside);
    has(
        &draft,
        &[
            "gate = \"block_sparse_moe.input_linear.weight\", up = \"block_sparse_moe.input_linear.weight\"",
            "gate_part = \"[0, intermediate_size, 2 * intermediate_size]\", up_part = \"[intermediate_size, intermediate_size, 2 * intermediate_size]\"",
        ],
    );
}

#[test]
fn layers_with_experts_and_without_are_both_written() {
    let (dense, attention): (Vec<_>, Vec<_>) = LLAMA.iter().copied().partition(|(name, _)| name.starts_with("mlp"));
    let mut tensors: BTreeMap<String, Vec<usize>> =
        OUTSIDE.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    for layer in 0..3 {
        let mut put =
            |name: &str, shape: &[usize]| tensors.insert(format!("model.layers.{layer}.{name}"), shape.to_vec());
        for (name, shape) in attention.iter().chain(if layer == 0 { &dense[..] } else { &[] }) {
            put(name, shape);
        }
        for (part, shape) in [("gate_proj", [24, 64]), ("up_proj", [24, 64]), ("down_proj", [64, 24])] {
            for expert in (0..6).filter(|_| layer > 0) {
                put(&format!("mlp.experts.{expert}.{part}.weight"), &shape);
            }
            if layer > 0 {
                put(
                    &format!("mlp.shared_experts.{part}.weight"),
                    &shape.map(|size| if size == 24 { 48 } else { size }),
                );
            }
        }
        if layer > 0 {
            put("mlp.gate.weight", &[6, 64]);
            put("mlp.gate.e_score_correction_bias", &[6]);
        }
    }
    let config = llama(
        "deepseek",
        json!({"num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "n_shared_experts": 2, "norm_topk_prob": true, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5}),
    );
    let draft = draft(&config, &tensors).expect("it is drafted");
    assert_eq!((draft.unmatched.len(), draft.todos), (0, 0), "{}", draft.text);
    has(
        &draft,
        &[
            "features = \"intermediate_size\", when = \"layer < first_k_dense_replace\"",
            "choice_bias = \"mlp.gate.e_score_correction_bias\", sigmoid = true, scale = \"routed_scaling_factor\", when = \"not (layer < first_k_dense_replace)\"",
            "features = \"n_shared_experts * moe_intermediate_size\"",
        ],
    );
}
