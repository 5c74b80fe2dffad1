//! What the converter calls tensors: llama.cpp's tensor_mapping.py, as far as the goldens need it.

use fuserun::weights::Checkpoint;

const OUTSIDE: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("transformer.wte", "token_embd"),
    ("gpt_neox.embed_in", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("model.norm", "output_norm"),
    ("transformer.ln_f", "output_norm"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("lm_head", "output"),
    ("embed_out", "output"),
];

const INSIDE: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("ln_1", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("attn.c_attn", "attn_qkv"),
    ("attention.query_key_value", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("attn.c_proj", "attn_output"),
    ("attention.dense", "attn_output"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("ln_2", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// The GGUF name of a tensor; experts' matrices share that of their stack.
pub(super) fn rename(model: &str, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((_, outside)) = OUTSIDE.iter().find(|(own, _)| *own == stem) {
        return Some(format!("{outside}.{kind}"));
    }
    let within =
        ["model.layers.", "transformer.h.", "gpt_neox.layers."].iter().find_map(|layers| stem.strip_prefix(layers));
    let (layer, stem) = within?.split_once('.')?;
    let inside = match stem.split_once(".experts.") {
        Some((_, expert)) => expert.split_once('.')?.1,
        None => stem,
    };
    if inside == "post_attention_layernorm" {
        let after = matches!(model, "gemma2" | "gemma3_text" | "olmo2");
        return Some(format!("blk.{layer}.{}.{kind}", if after { "post_attention_norm" } else { "ffn_norm" }));
    }
    let (_, inside) = INSIDE.iter().find(|(own, _)| *own == inside)?;
    Some(format!("blk.{layer}.{inside}.{kind}"))
}

/// All names, experts by number rather than by spelling.
pub(super) fn in_order(checkpoint: &Checkpoint) -> Vec<String> {
    let expert = |name: &str| {
        name.split_once(".experts.")
            .and_then(|(_, rest)| rest.split_once('.'))
            .and_then(|(at, _)| at.parse::<usize>().ok())
    };
    let mut names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    names.sort_by_key(|name| expert(name));
    names
}
