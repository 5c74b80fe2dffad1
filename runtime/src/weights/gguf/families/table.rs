//! One row for each GGUF architecture that has a description.

use super::family::{Epsilon, Family, Heads, How, Names, Rotation};

/// Every architecture but the routed form of `llama`, which is [`MIXTRAL`].
pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    QWEN2,
    Family {
        architecture: "qwen2moe",
        class: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        biases: &[("qkv_bias", "blk.0.attn_q.bias")],
        inside: &[PRE_NORMS, ATTENTION, GATED_MLP, QWEN_EXPERTS, SHARED_EXPERT],
        ..QWEN2
    },
    QWEN3,
    Family {
        architecture: "qwen3moe",
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        inside: &[PRE_NORMS, ATTENTION, QK_NORMS, GATED_MLP, QWEN_EXPERTS],
        ..QWEN3
    },
    GEMMA,
    Family {
        architecture: "gemma2",
        class: "Gemma2ForCausalLM",
        model_type: "gemma2",
        windows: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        inside: &[SANDWICH_NORMS, ATTENTION, GATED_MLP],
        ..GEMMA
    },
    Family {
        architecture: "gemma3",
        class: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        windows: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        inside: &[SANDWICH_NORMS, ATTENTION, QK_NORMS, GATED_MLP],
        ..GEMMA
    },
    Family {
        architecture: "phi3",
        class: "Phi3ForCausalLM",
        model_type: "phi3",
        windows: true,
        rotation: Rotation::Part,
        biases: &[("attention_bias", "blk.0.attn_qkv.bias")],
        inside: &[
            PRE_NORMS,
            &[
                ("attn_qkv", "self_attn.qkv_proj"),
                ("attn_output", "self_attn.o_proj"),
                ("ffn_up", "mlp.gate_up_proj"),
                ("ffn_down", "mlp.down_proj"),
            ],
        ],
        stored: &[],
        ..LLAMA
    },
    Family {
        architecture: "olmo",
        class: "OlmoForCausalLM",
        model_type: "olmo",
        epsilon: Epsilon::Fixed("attention.layer_norm_epsilon", 1e-5),
        // The converter puts its q and k into pairs, and leaves biases as they are: with biases it is refused.
        biases: &[],
        inside: &[ATTENTION, GATED_MLP],
        ..LLAMA
    },
    Family {
        architecture: "olmo2",
        class: "Olmo2ForCausalLM",
        model_type: "olmo2",
        biases: &[("attention_bias", "blk.0.attn_q.bias")],
        inside: &[POST_NORMS, ATTENTION, QK_NORMS, GATED_MLP],
        stored: &[],
        ..LLAMA
    },
    Family { architecture: "smollm3", class: "SmolLM3ForCausalLM", model_type: "smollm3", ..LLAMA },
    Family { architecture: "granite", class: "GraniteForCausalLM", model_type: "granite", ..LLAMA },
    Family {
        architecture: "gpt2",
        class: "GPT2LMHeadModel",
        model_type: "gpt2",
        activation: ("activation_function", "gelu_new"),
        epsilon: Epsilon::Layer("layer_norm_epsilon"),
        rotation: Rotation::None,
        keys: &[
            ("hidden_size", "n_embd"),
            ("intermediate_size", "n_inner"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("max_position_embeddings", "n_positions"),
        ],
        biases: &[],
        layers: "transformer.h.",
        outside: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        inside: &[&[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ]],
        stored: &[
            ("attn_qkv", How::Turned),
            ("attn_output", How::Turned),
            ("ffn_up", How::Turned),
            ("ffn_down", How::Turned),
        ],
        windows: false,
        norms_plus_one: false,
    },
    Family {
        architecture: "gptneox",
        class: "GPTNeoXForCausalLM",
        model_type: "gpt_neox",
        activation: ("hidden_act", "gelu"),
        epsilon: Epsilon::Layer("layer_norm_eps"),
        rotation: Rotation::Part,
        biases: &[("attention_bias", "blk.0.attn_qkv.bias")],
        layers: "gpt_neox.layers.",
        outside: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        inside: &[
            PRE_NORMS,
            &[
                ("attn_qkv", "attention.query_key_value"),
                ("attn_output", "attention.dense"),
                ("ffn_up", "mlp.dense_h_to_4h"),
                ("ffn_down", "mlp.dense_4h_to_h"),
            ],
        ],
        stored: &[("attn_qkv", How::ByProjection)],
        ..LLAMA
    },
    Family {
        architecture: "stablelm",
        class: "StableLmForCausalLM",
        model_type: "stablelm",
        epsilon: Epsilon::Layer("layer_norm_eps"),
        rotation: Rotation::Part,
        biases: &[("use_qkv_bias", "blk.0.attn_q.bias")],
        stored: &[],
        ..LLAMA
    },
    Family {
        architecture: "starcoder2",
        class: "Starcoder2ForCausalLM",
        model_type: "starcoder2",
        windows: true,
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        epsilon: Epsilon::Layer("norm_epsilon"),
        biases: &[("use_bias", "blk.0.attn_q.bias")],
        inside: &[PRE_NORMS, ATTENTION, &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")]],
        stored: &[],
        ..LLAMA
    },
];

const LLAMA: Family = Family {
    architecture: "llama",
    class: "LlamaForCausalLM",
    model_type: "llama",
    activation: ("hidden_act", "silu"),
    epsilon: Epsilon::Rms,
    rotation: Rotation::Whole,
    keys: &[],
    biases: &[("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")],
    layers: "model.layers.",
    outside: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")],
    inside: &[PRE_NORMS, ATTENTION, GATED_MLP],
    stored: &[("attn_q", How::Pairs(Heads::Query)), ("attn_k", How::Pairs(Heads::KeyValue))],
    windows: false,
    norms_plus_one: false,
};

/// Mistral is a `llama` with a window.
pub(super) const MISTRAL: Family =
    Family { class: "MistralForCausalLM", model_type: "mistral", windows: true, ..LLAMA };

/// Mixtral is a `llama` with experts.
pub(super) const MIXTRAL: Family = Family {
    class: "MixtralForCausalLM",
    model_type: "mixtral",
    windows: true,
    biases: &[],
    inside: &[
        PRE_NORMS,
        ATTENTION,
        &[
            ("ffn_gate_inp", "block_sparse_moe.gate"),
            ("ffn_gate_exps", "block_sparse_moe.experts.{expert}.w1"),
            ("ffn_up_exps", "block_sparse_moe.experts.{expert}.w3"),
            ("ffn_down_exps", "block_sparse_moe.experts.{expert}.w2"),
        ],
    ],
    ..LLAMA
};

/// Its biases of q, k and v are in every checkpoint, and config.json has no key for them.
const QWEN2: Family =
    Family { architecture: "qwen2", class: "Qwen2ForCausalLM", model_type: "qwen2", biases: &[], stored: &[], ..LLAMA };

const QWEN3: Family = Family {
    architecture: "qwen3",
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    biases: &[("attention_bias", "blk.0.attn_q.bias")],
    inside: &[PRE_NORMS, ATTENTION, QK_NORMS, GATED_MLP],
    stored: &[],
    ..LLAMA
};

const GEMMA: Family = Family {
    architecture: "gemma",
    class: "GemmaForCausalLM",
    model_type: "gemma",
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    biases: &[("attention_bias", "blk.0.attn_q.bias")],
    stored: &[],
    norms_plus_one: true,
    ..LLAMA
};

const ATTENTION: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];

const QK_NORMS: Names = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

const GATED_MLP: Names = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

/// A norm before each block.
const PRE_NORMS: Names = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];

/// A norm after each block.
const POST_NORMS: Names =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

/// A norm before and after each block.
const SANDWICH_NORMS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const QWEN_EXPERTS: Names = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{expert}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{expert}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{expert}.down_proj"),
];

const SHARED_EXPERT: Names = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];
