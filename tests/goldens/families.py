"""The golden checkpoints of families other than Llama, Qwen2 and Qwen3: see make.py, which makes them."""

import transformers as hf

ROPE = dict(rope_type="default", rope_theta=10000.0)


def golden(family, options, *changes):
    """(classes, configuration, dtype stored, largest shard, changes of the configuration that must change the logits)"""
    classes = (getattr(hf, f"{family}Config"), getattr(hf, FAMILY_MODELS.get(family, f"{family}ForCausalLM")))
    common = dict(max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    return classes, common | options, "bfloat16", None, list(changes)


FAMILY_MODELS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM", "Gemma4Text": "Gemma4ForCausalLM", "Qwen3_5Text": "Qwen3_5ForCausalLM"} | {
    family: f"{family}ForConditionalGeneration" for family in ["Gemma3", "Gemma4", "Mistral3", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5", "Qwen3_5Moe", "SmolVLM"]
}


def with_vision(family, text, more, *changes):
    """A model that sees, whose language model has the options `text`, without a picture."""
    text = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0) | text
    vision = dict(hidden_size=16, intermediate_size=24)
    if family.startswith("Qwen"):
        vision |= dict(depth=1, num_heads=2, out_hidden_size=text["hidden_size"])
    else:
        vision |= dict(num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    if family == "Gemma4":
        vision |= dict(num_key_value_heads=2, head_dim=8, position_embedding_size=16)
        more = dict(audio_config=None) | more
    if family in ["Qwen3VL", "Qwen3_5", "Qwen3_5Moe"]:
        vision |= dict(deepstack_visual_indexes=[0])
    changes = [dict(text_config=text | change) for change in changes]
    return golden(family, dict(text_config=text, vision_config=vision) | more, *changes)


def sizes(hidden, heads, kv_heads, intermediate, vocab, layers=2, **more):
    return dict(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
        num_hidden_layers=layers,
        rope_parameters=ROPE,
    ) | more


def gemma(hidden, heads, kv_heads, head_dim, intermediate, vocab, **more):
    return sizes(hidden, heads, kv_heads, intermediate, vocab, head_dim=head_dim, **more)


LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    long_factor=[1.0, 1.5, 2.5, 4.0, 7.0, 9.0],
)
LATENT = dict(kv_lora_rank=28, qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=24)
GEMMA4_ROPE = dict(
    full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=100000.0),
    sliding_attention=dict(rope_type="default", rope_theta=5000.0),
)
NEOX = dict(hidden_size=72, num_attention_heads=3, intermediate_size=116, vocab_size=223, num_hidden_layers=2)
FALCON = dict(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=205, rope_parameters=ROPE)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=40)
DELTA_RULE = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=12, linear_value_head_dim=20, linear_conv_kernel_dim=4
)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=24, mamba_n_groups=2, mamba_d_state=12, mamba_d_conv=4, mamba_chunk_size=16)
# Bounds of the experts' products are far apart: weights are large enough to meet them.
GPT_OSS = dict(
    head_dim=24, num_local_experts=6, num_experts_per_tok=2, sliding_window=9,
    rope_parameters=dict(
        rope_type="yarn", rope_theta=20000.0, factor=8.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0, truncate=False
    ),
)
ROUTED = dict(n_routed_experts=7, n_shared_experts=2, num_experts_per_tok=2, moe_intermediate_size=40)

FAMILIES = {
    "gemma": golden("Gemma", gemma(56, 4, 1, 24, 116, 231), dict(hidden_act="relu")),
    "granite": golden(
        "Granite",
        sizes(
            72, 6, 2, 116, 227, tie_word_embeddings=True,
            attention_multiplier=0.2, embedding_multiplier=5.0, residual_multiplier=0.6, logits_scaling=0.5,
        ),
        dict(attention_multiplier=0.3),
        dict(embedding_multiplier=2.0),
        dict(residual_multiplier=1.0),
        dict(logits_scaling=1.0),
    ),
    "smollm3": golden(
        "SmolLM3",
        sizes(64, 4, 2, 116, 229, layers=4, rope_parameters=ROPE | dict(rope_theta=20000.0), tie_word_embeddings=True),
        dict(no_rope_layers=[1, 1, 1, 1]),
        dict(no_rope_layers=[0, 1, 1, 1]),
        dict(use_sliding_window=True, sliding_window=8, layer_types=None),
    ),
    "stablelm": golden(
        "StableLm",
        sizes(80, 5, 5, 116, 225, use_qkv_bias=True, rope_parameters=ROPE | dict(partial_rotary_factor=0.25)),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=1.0)),
    ),
    "stablelm-parallel": golden(
        "StableLm",
        sizes(64, 4, 2, 100, 225, use_parallel_residual=True, rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
    ),
    "starcoder2": golden(
        "Starcoder2",
        sizes(72, 6, 2, 116, 231, sliding_window=11),
        dict(sliding_window=None),
        dict(sliding_window=12),
        dict(hidden_act="relu"),
    ),
    "gpt2": golden(
        "GPT2",
        dict(n_embd=60, n_head=3, n_layer=2, n_positions=64, vocab_size=221),
        dict(activation_function="relu"),
        dict(scale_attn_weights=False),
    ),
    "olmo": golden("Olmo", sizes(72, 6, 3, 116, 229)),
    "olmo-clip": golden("Olmo", sizes(48, 4, 2, 76, 201, clip_qkv=0.9), dict(clip_qkv=None)),
    "gemma2": golden(
        "Gemma2",
        gemma(
            56, 4, 2, 24, 100, 231, layers=3, sliding_window=9, query_pre_attn_scalar=40,
            attn_logit_softcapping=2.0, final_logit_softcapping=8.0,
        ),
        dict(attn_logit_softcapping=None),
        dict(final_logit_softcapping=None),
        dict(query_pre_attn_scalar=24),
        dict(sliding_window=10),
        dict(layer_types=["sliding_attention"] * 3),
    ),
    "gemma3": golden(
        "Gemma3Text",
        gemma(
            48, 4, 1, 16, 92, 231, layers=7, sliding_window=9, query_pre_attn_scalar=10,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100000.0),
                sliding_attention=dict(rope_type="default", rope_theta=5000.0),
            ),
        ),
        dict(sliding_window=10),
        dict(layer_types=["sliding_attention"] * 7),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=100000.0),
                sliding_attention=dict(rope_type="default", rope_theta=5000.0),
            )
        ),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100000.0),
                sliding_attention=dict(rope_type="default", rope_theta=100000.0),
            )
        ),
    ),
    "gemma4": golden(
        "Gemma4Text",
        gemma(
            40, 2, 2, 24, 60, 231, layers=3, layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=9,
            global_head_dim=264, num_global_key_value_heads=1, attention_k_eq_v=True, final_logit_softcapping=6.0, rope_parameters=GEMMA4_ROPE,
            hidden_size_per_layer_input=0,
        ),
        dict(sliding_window=10),
        dict(final_logit_softcapping=None),
        dict(rope_parameters=GEMMA4_ROPE | dict(full_attention=dict(rope_type="proportional", partial_rotary_factor=0.5, rope_theta=100000.0))),
    ),
    "gemma4-moe": golden(
        "Gemma4Text",
        gemma(
            48, 4, 2, 24, 68, 229, layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=9, global_head_dim=40,
            rope_parameters=GEMMA4_ROPE, hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=6, top_k_experts=2,
            moe_intermediate_size=40,
        ),
        dict(top_k_experts=1),
    ),
    # 40 tokens are within the trained context of the first and beyond that of the second.
    "phi3": golden(
        "Phi3",
        sizes(
            72, 4, 2, 100, 227, sliding_window=13, original_max_position_embeddings=64,
            rope_parameters=LONGROPE | dict(partial_rotary_factor=0.7),
        ),
        dict(sliding_window=14),
        dict(original_max_position_embeddings=32),
    ),
    "phi3-long": golden(
        "Phi3",
        sizes(48, 4, 4, 92, 229, original_max_position_embeddings=32, rope_parameters=dict(LONGROPE)),
        dict(original_max_position_embeddings=64),
    ),
    "gpt_neox": golden(
        "GPTNeoX",
        NEOX | dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.25)),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
        dict(use_parallel_residual=False),
        dict(hidden_act="relu"),
    ),
    "gpt_neox-serial": golden(
        "GPTNeoX", NEOX | dict(rope_parameters=ROPE | dict(partial_rotary_factor=1.0), use_parallel_residual=False)
    ),
    "olmo2": golden("Olmo2", sizes(72, 6, 3, 116, 229, rope_parameters=ROPE | dict(rope_theta=500000.0))),
    "mixtral": golden(
        "Mixtral",
        sizes(56, 4, 2, 40, 227, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
        dict(num_experts_per_tok=1),
    ),
    "qwen2_moe": golden(
        "Qwen2Moe",
        sizes(
            56, 4, 2, 92, 227, layers=3, mlp_only_layers=[1], shared_expert_intermediate_size=68, **EXPERTS,
            norm_topk_prob=False,
        ),
        dict(norm_topk_prob=True),
        dict(num_experts_per_tok=3),
    ),
    "qwen3_moe": golden(
        "Qwen3Moe",
        sizes(56, 4, 2, 92, 227, head_dim=24, **EXPERTS, norm_topk_prob=True),
        dict(norm_topk_prob=False),
        dict(num_experts_per_tok=1),
    ),
    "arcee": golden("Arcee", sizes(56, 4, 2, 76, 203, attention_bias=True, mlp_bias=True), dict(hidden_act="relu")),
    "ernie4_5": golden("Ernie4_5", sizes(56, 4, 2, 76, 203, head_dim=24, use_bias=True, tie_word_embeddings=True)),
    "exaone4": golden(
        "Exaone4",
        sizes(56, 4, 2, 76, 205, layers=3, sliding_window=9, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        dict(sliding_window=10),
        dict(layer_types=["sliding_attention"] * 3),
        dict(layer_types=["full_attention"] * 3),
    ),
    # All layers have RoPE where none has a window.
    "exaone4-full": golden(
        "Exaone4", sizes(48, 4, 2, 60, 203, sliding_window=None, layer_types=["full_attention"] * 2), dict(sliding_window=9)
    ),
    "granitemoe": golden(
        "GraniteMoe",
        sizes(
            56, 4, 2, 40, 203, num_local_experts=6, num_experts_per_tok=2, tie_word_embeddings=True,
            attention_multiplier=0.2, embedding_multiplier=5.0, residual_multiplier=0.6, logits_scaling=0.5,
        ),
        dict(attention_multiplier=0.3),
        dict(embedding_multiplier=2.0),
        dict(residual_multiplier=1.0),
        dict(logits_scaling=1.0),
        dict(num_experts_per_tok=1),
    ),
    "hunyuan": golden(
        "HunYuanDenseV1",
        sizes(
            56, 4, 2, 76, 203, head_dim=24,
            rope_parameters=ROPE | dict(rope_type="dynamic", factor=1.0, alpha=50.0),
        ),
        dict(rope_parameters=ROPE),
    ),
    "olmoe": golden(
        "Olmoe",
        sizes(56, 4, 2, 40, 203, num_experts=6, num_experts_per_tok=2, clip_qkv=1.5),
        dict(norm_topk_prob=True),
        dict(num_experts_per_tok=1),
        dict(clip_qkv=None),
    ),
    "seed_oss": golden("SeedOss", sizes(56, 4, 2, 76, 203, head_dim=24, attention_out_bias=True, mlp_bias=True)),
    "dots1": golden(
        "Dots1",
        sizes(
            56, 4, 2, 92, 203, head_dim=24, first_k_dense_replace=1, max_window_layers=1, sliding_window=9,
            norm_topk_prob=True, routed_scaling_factor=2.5, **ROUTED,
        ),
        dict(norm_topk_prob=False),
        dict(num_experts_per_tok=1),
        dict(routed_scaling_factor=1.0),
        dict(layer_types=["full_attention"] * 2),
    ),
    "deepseek_v2": golden(
        "DeepseekV2",
        sizes(
            56, 4, 4, 92, 203, q_lora_rank=None, first_k_dense_replace=1, topk_method="greedy", n_group=1, topk_group=1, **LATENT, **ROUTED,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0,
                mscale=0.707, mscale_all_dim=0.9,
            ),
        ),
        dict(num_experts_per_tok=1),
        dict(rope_parameters=ROPE),
    ),
    "deepseek_v3": golden(
        "DeepseekV3",
        sizes(
            48, 3, 3, 68, 207, q_lora_rank=20, first_k_dense_replace=1, n_group=4, topk_group=2, routed_scaling_factor=1.5, attention_bias=True,
            **LATENT, **(ROUTED | dict(n_shared_experts=1, n_routed_experts=8)),
        ),
        dict(norm_topk_prob=False),
        dict(rope_interleave=False),
    ),
    "glm4_moe_lite": golden(
        "Glm4MoeLite",
        sizes(
            56, 4, 4, 92, 203, q_lora_rank=24, mlp_layer_types=["dense", "sparse"], routed_scaling_factor=1.8,
            **(LATENT | dict(kv_lora_rank=264, v_head_dim=16)), **(ROUTED | dict(n_shared_experts=1)),
        ),
        dict(num_experts_per_tok=1),
    ),
    "glm4_moe": golden(
        "Glm4Moe",
        sizes(
            56, 4, 2, 92, 203, head_dim=24, attention_bias=True, use_qk_norm=True, first_k_dense_replace=1,
            routed_scaling_factor=1.5, rope_parameters=ROPE | dict(partial_rotary_factor=0.5), **ROUTED,
        ),
        dict(norm_topk_prob=False),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=1.0)),
    ),
    "nemotron": golden(
        "Nemotron",
        sizes(
            48, 4, 2, 100, 205, head_dim=16, attention_bias=True, mlp_bias=True,
            rope_parameters=ROPE | dict(partial_rotary_factor=0.5),
        ),
        dict(hidden_act="relu"),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=1.0)),
    ),
    "cohere": golden(
        "Cohere", sizes(56, 4, 2, 92, 201, logit_scale=0.25), dict(logit_scale=0.5), dict(hidden_act="relu")
    ),
    "cohere-windows": golden(
        "Cohere2",
        sizes(56, 4, 2, 76, 201, layers=4, logit_scale=0.25, sliding_window=9),
        dict(sliding_window=10),
        dict(layer_types=["sliding_attention"] * 4),
        dict(layer_types=["full_attention"] * 4),
    ),
    "glm4": golden(
        "Glm4",
        sizes(64, 4, 2, 92, 201, head_dim=24, attention_bias=True, rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=1.0)),
    ),
    "glm4-plain": golden(
        "Glm", sizes(48, 4, 1, 76, 201, head_dim=16, rope_parameters=ROPE | dict(partial_rotary_factor=0.5))
    ),
    "phi": golden(
        "Phi",
        sizes(64, 4, 4, 100, 205, rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.25)),
        dict(hidden_act="relu"),
    ),
    "falcon": golden("Falcon", FALCON, dict(activation="relu")),
    "falcon-new": golden(
        "Falcon", FALCON | dict(num_kv_heads=2, new_decoder_architecture=True, tie_word_embeddings=False, bias=True)
    ),
    "opt": golden(
        "OPT",
        dict(
            hidden_size=48, num_attention_heads=2, ffn_dim=76, num_hidden_layers=2, vocab_size=207,
            max_position_embeddings=62, word_embed_proj_dim=48,
        ),
        dict(activation_function="gelu"),
    ),
    "olmo3": golden(
        "Olmo3",
        sizes(
            56, 4, 2, 76, 201, layers=4, sliding_window=9,
            rope_parameters=dict(
                full_attention=dict(
                    rope_type="yarn", rope_theta=500000.0, factor=4.0, original_max_position_embeddings=32,
                    beta_fast=32.0, beta_slow=1.0, attention_factor=1.1,
                ),
                sliding_attention=dict(rope_type="default", rope_theta=500000.0),
            ),
        ),
        dict(sliding_window=10),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=500000.0),
                sliding_attention=dict(rope_type="default", rope_theta=500000.0),
            )
        ),
    ),
    "lfm2": golden(
        "Lfm2",
        sizes(
            56, 4, 2, 84, 207, layers=4, layer_types=["conv", "conv", "full_attention", "conv"], conv_L_cache=3, block_multiple_of=12,
            block_ffn_dim_multiplier=1.2, rope_parameters=ROPE | dict(rope_theta=20000.0), tie_word_embeddings=False,
        ),
        dict(rope_parameters=ROPE),
    ),
    "lfm2-bias": golden(
        "Lfm2",
        sizes(
            64, 2, 1, 76, 193, layers=3, layer_types=["full_attention", "conv", "conv"], conv_L_cache=4, conv_bias=True,
            block_auto_adjust_ff_dim=False, tie_word_embeddings=True,
        ),
    ),
    "qwen3_next": golden(
        "Qwen3Next",
        sizes(
            48, 3, 1, 60, 209, layers=4, head_dim=24, layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            rope_parameters=ROPE | dict(partial_rotary_factor=0.5, rope_theta=20000.0), decoder_sparse_step=2,
            shared_expert_intermediate_size=36, **DELTA_RULE, **(EXPERTS | dict(num_experts=5)),
        ),
        dict(norm_topk_prob=False),
        dict(mlp_only_layers=[1]),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
    ),
    "qwen3_5": with_vision(
        "Qwen3_5",
        sizes(48, 3, 1, 60, 211, layers=3, head_dim=24, max_position_embeddings=256, layer_types=["linear_attention", "full_attention", "linear_attention"])
        | dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.5, rope_theta=500000.0, mrope_section=[2, 2, 2])) | DELTA_RULE,
        dict(tie_word_embeddings=True),
        dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.75, mrope_section=[3, 3, 3])),
    ),
    "qwen3_5-text": golden(
        "Qwen3_5Text",
        sizes(40, 2, 1, 52, 189, layers=2, head_dim=24, layer_types=["linear_attention", "full_attention"], tie_word_embeddings=True)
        | dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.5)) | DELTA_RULE,
    ),
    "qwen3_5_moe": with_vision(
        "Qwen3_5Moe",
        sizes(48, 3, 1, None, 203, layers=2, head_dim=24, max_position_embeddings=256, layer_types=["linear_attention", "full_attention"])
        | dict(rope_parameters=ROPE | dict(partial_rotary_factor=0.5, mrope_section=[2, 2, 2]), shared_expert_intermediate_size=36)
        | DELTA_RULE | EXPERTS | dict(num_experts=5),
        dict(tie_word_embeddings=False),
    ),
    "bamba": golden(
        "Bamba", sizes(48, 2, 1, 76, 197, layers=3, attn_layer_indices=[1], rope_parameters=ROPE | dict(partial_rotary_factor=0.5)) | MAMBA
    ),
    "granitemoehybrid": golden(
        "GraniteMoeHybrid",
        sizes(
            48, 4, 2, 40, 193, layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], shared_intermediate_size=36,
            num_local_experts=5, num_experts_per_tok=2, attention_multiplier=0.2, embedding_multiplier=5.0, residual_multiplier=0.6,
            logits_scaling=0.5, tie_word_embeddings=True,
        ) | MAMBA,
        dict(attention_multiplier=0.5),
        dict(embedding_multiplier=2.0),
        dict(residual_multiplier=1.0),
        dict(logits_scaling=1.0),
        dict(position_embedding_type="rope"),
    ),
    "granitemoehybrid-dense": golden(
        "GraniteMoeHybrid",
        sizes(
            48, 4, 2, 40, 191, layers=2, layer_types=["full_attention", "linear_attention"], shared_intermediate_size=68, num_local_experts=0,
            num_experts_per_tok=0, attention_multiplier=0.3, position_embedding_type="rope", mamba_conv_bias=False, mamba_proj_bias=True,
        ) | MAMBA,
        dict(position_embedding_type=None),
    ),
    "gpt_oss": golden(
        "GptOss",
        sizes(56, 4, 2, 40, 203) | GPT_OSS,
        dict(num_experts_per_tok=1),
        dict(sliding_window=10),
        dict(layer_types=["sliding_attention"] * 2),
        dict(rope_parameters=ROPE | dict(rope_theta=20000.0)),
    ),
    # Experts of blocks, as they are published.
    "gpt_oss-mxfp4": golden("GptOss", sizes(64, 4, 1, 32, 203, layers=2) | GPT_OSS),
    "nemotron_h": golden(
        "NemotronH",
        dict(
            hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=20, intermediate_size=68, vocab_size=199,
            layers_block_type=["linear_attention", "mlp", "full_attention", "moe"], mamba_num_heads=4, mamba_head_dim=20, n_groups=2,
            ssm_state_size=12, chunk_size=16, time_step_min=1e-9, n_routed_experts=5, moe_intermediate_size=40, num_experts_per_tok=2,
            moe_shared_expert_intermediate_size=36, routed_scaling_factor=1.6,
        ),
        dict(norm_topk_prob=False),
        dict(routed_scaling_factor=1.0),
    ),
    "falcon_h1": golden(
        "FalconH1",
        sizes(
            48, 4, 2, 76, 195, layers=2, head_dim=20, mamba_d_ssm=72, lm_head_multiplier=1.5, embedding_multiplier=2.0, mlp_multipliers=[1.3, 0.7],
            key_multiplier=0.8, attention_out_multiplier=1.2, attention_in_multiplier=0.9, ssm_multipliers=[1.1, 0.9, 1.4, 0.8, 1.2],
            ssm_in_multiplier=1.3, ssm_out_multiplier=0.8, mamba_rms_norm=True, mamba_norm_before_gate=False,
        ) | MAMBA | dict(mamba_d_head=18),
        dict(mamba_norm_before_gate=True),
        dict(mlp_multipliers=[1.0, 1.0]),
        dict(ssm_multipliers=[1.0, 1.0, 1.0, 1.0, 1.0]),
        dict(attention_out_multiplier=1.0),
        dict(ssm_out_multiplier=1.0),
        dict(embedding_multiplier=1.0),
    ),
    "gemma3-vision": with_vision(
        "Gemma3",
        gemma(
            40, 2, 1, 24, 68, 211, layers=7, sliding_window=9, query_pre_attn_scalar=10, max_position_embeddings=256,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100000.0),
                sliding_attention=dict(rope_type="default", rope_theta=5000.0),
            ),
        ),
        dict(mm_tokens_per_image=4),
        dict(sliding_window=10),
    ),
    "gemma4-vision": with_vision(
        "Gemma4",
        gemma(
            40, 2, 1, 24, 68, 211, layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=9, global_head_dim=32,
            rope_parameters=GEMMA4_ROPE, hidden_size_per_layer_input=0, max_position_embeddings=256,
        ),
        dict(image_token_id=5),
        dict(sliding_window=10),
    ),
    "mistral3": with_vision(
        "Mistral3",
        sizes(48, 4, 2, 84, 207, head_dim=20, max_position_embeddings=256, model_type="mistral", sliding_window=None, tie_word_embeddings=False)
        | dict(rope_parameters=dict(rope_type="default", rope_theta=50000.0)),
        dict(tie_word_embeddings=False),
        dict(rope_parameters=ROPE),
    ),
    "qwen2_5_vl": with_vision(
        "Qwen2_5_VL",
        sizes(48, 3, 1, 76, 213, max_position_embeddings=256)
        | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3])),
        dict(tie_word_embeddings=True),
        dict(rope_parameters=ROPE | dict(mrope_section=[2, 3, 3])),
    ),
    "qwen3_vl": with_vision(
        "Qwen3VL",
        sizes(56, 4, 2, 84, 219, head_dim=24, max_position_embeddings=256)
        | dict(rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[4, 4, 4], mrope_interleaved=True)),
        dict(tie_word_embeddings=True),
        dict(rope_parameters=ROPE | dict(mrope_section=[4, 4, 4], mrope_interleaved=True)),
    ),
    "smolvlm": with_vision(
        "SmolVLM",
        sizes(60, 5, 1, 92, 227, head_dim=12, max_position_embeddings=256, model_type="llama")
        | dict(rope_parameters=dict(rope_type="default", rope_theta=100000.0)),
        dict(tie_word_embeddings=False),
        dict(rope_parameters=ROPE),
    ),
}
