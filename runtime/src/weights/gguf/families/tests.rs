use super::super::read;
use super::super::test_file::{Builder, text};
use super::*;
use serde_json::{Value as Json, json};

/// A llama or qwen of one layer: hidden 8, 2 heads of 4, 1 key-value head.
fn tiny(architecture: &str) -> Builder {
    let zeros = |values: usize| vec![0; 4 * values];
    let mut file = Builder::new(3).metadata("general.architecture", 8, &text(architecture));
    for (key, value) in [
        ("embedding_length", 8u32),
        ("block_count", 1),
        ("feed_forward_length", 12),
        ("context_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        file = file.metadata(&format!("{architecture}.{key}"), 4, &value.to_le_bytes());
    }
    file.metadata(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes())
        .metadata(&format!("{architecture}.rope.freq_base"), 6, &500000f32.to_le_bytes())
        .metadata("tokenizer.ggml.eos_token_id", 4, &2u32.to_le_bytes())
        .tensor("token_embd.weight", &[8, 5], 0, &zeros(40))
        .tensor("blk.0.attn_q.weight", &[8, 8], 0, &zeros(64))
        .tensor("blk.0.attn_k.weight", &[8, 4], 0, &zeros(32))
        .tensor("blk.0.attn_q.bias", &[8], 0, &zeros(8))
}

fn opened(file: Builder) -> Result<Opened> {
    let file = file.build();
    adapt(read::read(&file)?, &[&file]).context("tiny.gguf")
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn a_list_of_one_value_for_each_layer_is_that_value() {
    let with = |items: &[u32]| {
        let list = [&4u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        let list = items.iter().fold(list, |list, item| [list, item.to_le_bytes().to_vec()].concat());
        let mut file = Builder::new(3).metadata("general.architecture", 8, &text("llama"));
        for key in ["embedding_length", "context_length"] {
            file = file.metadata(&format!("llama.{key}"), 4, &8u32.to_le_bytes());
        }
        file = file.metadata("llama.block_count", 4, &2u32.to_le_bytes());
        for key in ["attention.head_count", "attention.head_count_kv", "feed_forward_length"] {
            file = file.metadata(&format!("llama.{key}"), 9, &list);
        }
        file = file.metadata("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
        opened(file.tensor("token_embd.weight", &[8, 5], 0, &floats(&[0.0; 40]))).map_err(|error| format!("{error:#}"))
    };
    let config = with(&[2, 2]).unwrap_or_else(|said| panic!("{said}")).config;
    for key in ["num_attention_heads", "num_key_value_heads", "intermediate_size"] {
        assert_eq!(config[key], 2, "{key}");
    }
    for items in [&[2, 1][..], &[2], &[]] {
        let said = with(items).err().expect("not one value for each of two layers");
        assert!(said.contains("llama.attention.head_count is not one whole number"), "{said}");
    }
}

#[test]
fn config_reads_as_transformers_writes_it() {
    let opened = opened(tiny("llama")).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 5, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": null, "attention_bias": true, "mlp_bias": false,
        "tie_word_embeddings": true, "bos_token_id": null, "eos_token_id": 2, "torch_dtype": "float32",
    });
    assert_eq!(opened.config, expected);
}

#[test]
fn tensors_take_their_transformers_names_and_only_llama_is_in_pairs() {
    let llama = opened(tiny("llama").tensor("blk.0.odd.weight", &[2], 0, &[0; 8])).unwrap();
    let stored: Vec<_> = llama.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.stored)).collect();
    assert_eq!(
        stored,
        [
            ("blk.0.odd.weight", Stored::Plain),
            ("model.embed_tokens.weight", Stored::Plain),
            ("model.layers.0.self_attn.k_proj.weight", Stored::Pairs { heads: 1 }),
            ("model.layers.0.self_attn.q_proj.bias", Stored::Pairs { heads: 2 }),
            ("model.layers.0.self_attn.q_proj.weight", Stored::Pairs { heads: 2 }),
        ]
    );
    let qwen = opened(tiny("qwen2")).unwrap();
    assert!(qwen.tensors.values().all(|tensor| tensor.stored == Stored::Plain));
    assert_eq!(qwen.config["architectures"], json!(["Qwen2ForCausalLM"]));
}

#[test]
fn divisors_become_llama3_scaling_or_a_list_for_every_length() {
    let with = |divisors: &[f32]| {
        let dims = [divisors.len() as u64];
        opened(tiny("llama").tensor(rope::DIVISORS, &dims, 0, &floats(divisors)))
    };
    let plain = with(&[1.0, 1.0]).unwrap();
    assert_eq!((plain.config["rope_scaling"].clone(), plain.tensors.contains_key(rope::DIVISORS)), (Json::Null, false));
    let list = json!({
        "rope_type": "longrope", "short_factor": [1.0, 3.0], "long_factor": [1.0, 3.0], "attention_factor": 1.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(with(&[1.0, 3.0]).unwrap().config["rope_scaling"], list);
    for wrong in [&[1.0][..], &[1.0, 0.0], &[1.0, f32::NAN]] {
        assert_eq!(
            format!("{:#}", with(wrong).err().unwrap()),
            "tiny.gguf: rope_freqs.weight is no list of 2 positive numbers, one for each pair of rotated values"
        );
    }

    let wide: Vec<f32> = (0..32)
        .map(|pair| {
            let wavelength = 2.0 * std::f64::consts::PI * 500000f64.powf(pair as f64 / 32.0);
            match wavelength {
                w if w < 8192.0 / 4.0 => 1.0,
                w if w > 8192.0 => 32.0,
                w => {
                    let smooth = (8192.0 / w - 1.0) / (4.0 - 1.0);
                    (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
                }
            }
        })
        .collect();
    let expected = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    assert_eq!(rope::divided(&wide, 500000.0, 64), expected);
    let mut bent = wide.clone();
    bent[20] *= 1.01;
    assert_eq!(rope::divided(&bent, 500000.0, 64)["rope_type"], "longrope");
}

#[test]
fn missing_keys_and_other_families_are_named() {
    let message = |file: Builder| format!("{:#}", opened(file).err().unwrap());
    assert_eq!(
        message(Builder::new(3).metadata("general.architecture", 8, &text("cohere2"))),
        "tiny.gguf: GGUF files of architecture 'cohere2' are not read (known: llama, qwen2, qwen2moe, qwen3, qwen3moe, gemma, gemma2, gemma3, phi3, olmo, olmo2, smollm3, granite, gpt2, gptneox, stablelm, starcoder2); use the model's Hugging Face directory instead"
    );
    let of = |architecture: &str| message(Builder::new(3).metadata("general.architecture", 8, &text(architecture)));
    let said = "needs a selective state space (Mamba), which no operation computes: no file of it can be run";
    assert_eq!(of("mamba"), format!("tiny.gguf: mamba {said}"));
    assert_eq!(of("bert"), "tiny.gguf: bert is an encoder, which writes no text: no file of it can be run");
    let kind = |kind: &str| message(Builder::new(3).metadata("general.type", 8, &text(kind)));
    assert!(kind("adapter").starts_with("tiny.gguf: it is a LoRA adapter, a change of a model and no model: merge"));
    assert!(kind("mmproj").ends_with("(mmproj): name the file of its language model"));
    assert_eq!(message(Builder::new(3)), "tiny.gguf: the metadata key general.architecture is missing");
    let no_keys = Builder::new(3).metadata("general.architecture", 8, &text("llama")).tensor(
        "token_embd.weight",
        &[8, 5],
        0,
        &[0; 160],
    );
    assert_eq!(message(no_keys), "tiny.gguf: the metadata key llama.embedding_length is missing");
    let whole = tiny("llama").build();
    assert!(read::read(&whole[..100]).is_err());
}

#[test]
fn scaling_types_come_from_the_metadata() {
    let with = |kind: &str| {
        tiny("qwen3")
            .metadata("qwen3.rope.scaling.type", 8, &text(kind))
            .metadata("qwen3.rope.scaling.factor", 6, &4f32.to_le_bytes())
            .metadata("qwen3.rope.scaling.original_context_length", 4, &32768u32.to_le_bytes())
    };
    assert_eq!(opened(with("linear")).unwrap().config["rope_scaling"], json!({ "rope_type": "linear", "factor": 4.0 }));
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
    assert_eq!(opened(with("yarn")).unwrap().config["rope_scaling"], yarn);
    assert_eq!(opened(with("none")).unwrap().config["rope_scaling"], Json::Null);
    assert!(opened(with("longrope")).is_err());
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    let refused = |key: &str, kind: u32, value: &[u8]| {
        let architecture = key.split_once('.').unwrap().0.to_owned();
        format!("{:#}", opened(tiny(&architecture).metadata(key, kind, value)).err().expect(key))
    };
    assert_eq!(
        refused("qwen3.attention.temperature_scale", 6, &2f32.to_le_bytes()),
        "tiny.gguf: the metadata keys qwen3.attention.temperature_scale are not honoured; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("qwen2.attention.sliding_window", 4, &8u32.to_le_bytes()),
        "tiny.gguf: the metadata keys qwen2.attention.sliding_window are not honoured; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("llama.attention.value_length", 4, &8u32.to_le_bytes()),
        "tiny.gguf: the metadata key llama.attention.value_length is 8, and only 4 is honoured; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("llama.attention.causal", 7, &[0]),
        "tiny.gguf: llama.attention.causal is false; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("llama.rope.scaling.yarn_attn_factor", 6, &2f32.to_le_bytes()),
        "tiny.gguf: the metadata key llama.rope.scaling.yarn_attn_factor is 2, and only 1 is honoured; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("qwen3.rope.freq_base_swa", 6, &2f32.to_le_bytes()),
        "tiny.gguf: the metadata key qwen3.rope.freq_base_swa is 2, and only 500000 is honoured; use the model's Hugging Face directory instead"
    );
    assert_eq!(
        refused("qwen3.rope.scaling.type", 4, &2u32.to_le_bytes()),
        "tiny.gguf: the metadata key qwen3.rope.scaling.type is not text"
    );
    // Zero is none, and what tensors say too is no matter.
    let idle = tiny("qwen2")
        .metadata("qwen2.attention.sliding_window", 4, &0u32.to_le_bytes())
        .metadata("qwen2.expert_count", 4, &0u32.to_le_bytes())
        .metadata("qwen2.vocab_size", 4, &5u32.to_le_bytes());
    assert!(opened(idle).is_ok());
}

#[test]
fn what_files_leave_out_is_filled_in() {
    let float = |value: f32| value.to_le_bytes();
    let gemma2 = opened(tiny("gemma2")).unwrap().config;
    assert_eq!((&gemma2["sliding_window"], &gemma2["layer_types"]), (&json!(4096), &json!(["sliding_attention"])));
    assert_eq!((&gemma2["attn_logit_softcapping"], &gemma2["final_logit_softcapping"]), (&json!(50.0), &json!(30.0)));
    let gemma3 = opened(tiny("gemma3")).unwrap().config;
    assert_eq!((&gemma3["sliding_window"], &gemma3["layer_types"]), (&Json::Null, &json!(["full_attention"])));

    let layered = |architecture: &str| {
        let key = format!("{architecture}.attention.layer_norm_epsilon");
        tiny(architecture).metadata(&key, 6, &float(1e-5))
    };
    let stablelm = layered("stablelm").metadata("stablelm.use_parallel_residual", 7, &[1]);
    assert_eq!(opened(stablelm.clone()).unwrap().config["use_parallel_residual"], json!(true));
    let serial = stablelm.tensor("blk.0.ffn_norm.weight", &[8], 0, &[0; 32]);
    assert_eq!(opened(serial).unwrap().config["use_parallel_residual"], json!(false));
    assert_eq!(opened(layered("starcoder2")).unwrap().config.get("sliding_window"), None);

    let granite = tiny("granite");
    assert_eq!(
        format!("{:#}", opened(granite.clone()).err().unwrap()),
        "tiny.gguf: the metadata key granite.logit_scale is missing"
    );
    let granite = granite.metadata("granite.logit_scale", 6, &float(8.0));
    assert_eq!(opened(granite.clone()).unwrap().config["attention_multiplier"], json!(0.5));
    let turned = granite.metadata("granite.rope.scaling.finetuned", 7, &[0]);
    assert!(opened(turned).is_err());
}

#[test]
fn early_files_of_experts_have_a_tensor_for_each() {
    let file = tiny("llama")
        .metadata("llama.expert_count", 4, &2u32.to_le_bytes())
        .metadata("llama.expert_used_count", 4, &1u32.to_le_bytes())
        .tensor("blk.0.ffn_up_exps.weight", &[8, 3, 2], 0, &floats(&[0.5; 48]))
        .tensor("blk.0.ffn_gate.1.weight", &[8, 3], 0, &[0; 96]);
    let opened = opened(file).unwrap();
    let shape = |name: &str| opened.tensors[&format!("model.layers.0.block_sparse_moe.experts.{name}")].shape.clone();
    assert_eq!(
        (shape("0.w3.weight"), shape("1.w3.weight"), shape("1.w1.weight")),
        (vec![3, 8], vec![3, 8], vec![3, 8])
    );
    let bytes = |name: &str| opened.tensors[&format!("model.layers.0.block_sparse_moe.experts.{name}")].bytes.clone();
    assert_eq!(bytes("0.w3.weight").end, bytes("1.w3.weight").start);
    assert_eq!(opened.config["architectures"], json!(["MixtralForCausalLM"]));
}

#[test]
fn a_shared_experts_gate_is_a_row_of_one_or_two_dimensions() {
    for dims in [&[8][..], &[8, 1]] {
        let file = tiny("qwen2moe")
            .metadata("qwen2moe.expert_count", 4, &2u32.to_le_bytes())
            .metadata("qwen2moe.expert_used_count", 4, &1u32.to_le_bytes())
            .tensor("blk.0.ffn_gate_inp_shexp.weight", dims, 0, &[0; 32]);
        let opened = opened(file).unwrap();
        assert_eq!(opened.tensors["model.layers.0.mlp.shared_expert_gate.weight"].shape, [1, 8]);
        assert_eq!(opened.config["norm_topk_prob"], json!(false));
    }
}

#[test]
fn smollm3_turns_three_layers_of_four() {
    let mut file = Builder::new(3).metadata("general.architecture", 8, &text("smollm3"));
    for (key, value) in [
        ("embedding_length", 8u32),
        ("block_count", 8),
        ("feed_forward_length", 12),
        ("context_length", 64),
        ("attention.head_count", 2),
    ] {
        file = file.metadata(&format!("smollm3.{key}"), 4, &value.to_le_bytes());
    }
    let file = file.metadata("smollm3.attention.layer_norm_rms_epsilon", 6, &1e-6f32.to_le_bytes());
    let opened = opened(file.tensor("token_embd.weight", &[8, 5], 0, &[0; 160])).unwrap();
    assert_eq!(opened.config["no_rope_layers"], json!([1, 1, 1, 0, 1, 1, 1, 0]));
}
