use super::super::read;
use super::super::test_file::{Builder, text};
use super::*;

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
    let heads: Vec<_> = llama.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.paired_heads)).collect();
    assert_eq!(
        heads,
        [
            ("blk.0.odd.weight", None),
            ("model.embed_tokens.weight", None),
            ("model.layers.0.self_attn.k_proj.weight", Some(1)),
            ("model.layers.0.self_attn.q_proj.bias", Some(2)),
            ("model.layers.0.self_attn.q_proj.weight", Some(2)),
        ]
    );
    let qwen = opened(tiny("qwen2")).unwrap();
    assert!(qwen.tensors.values().all(|tensor| tensor.paired_heads.is_none()));
    assert_eq!(qwen.config["architectures"], json!(["Qwen2ForCausalLM"]));
}

#[test]
fn divisors_become_llama3_scaling_or_are_refused() {
    let foreign = floats(&[1.0, 3.0]);
    let refused = opened(tiny("llama").tensor(ROPE_DIVISORS, &[2], 0, &foreign)).err().unwrap();
    assert_eq!(
        format!("{refused:#}"),
        "tiny.gguf: rope_freqs.weight is not llama 3's scaling; use the model's Hugging Face directory instead"
    );
    let plain = opened(tiny("llama").tensor(ROPE_DIVISORS, &[2], 0, &floats(&[1.0, 1.0]))).unwrap();
    assert_eq!((plain.config["rope_scaling"].clone(), plain.tensors.contains_key(ROPE_DIVISORS)), (Json::Null, false));

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
    let scaling = llama3_scaling(&wide, 500000.0, 64).unwrap();
    let expected = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    assert_eq!(scaling, expected);
    let mut bent = wide.clone();
    bent[20] *= 1.01;
    assert!(llama3_scaling(&bent, 500000.0, 64).is_err());
    assert!(llama3_scaling(&wide[1..], 500000.0, 64).is_err());
}

#[test]
fn missing_keys_and_other_families_are_named() {
    let message = |file: Builder| format!("{:#}", opened(file).err().unwrap());
    assert_eq!(
        message(Builder::new(3).metadata("general.architecture", 8, &text("gemma3"))),
        "tiny.gguf: GGUF files of architecture 'gemma3' are not read (known: llama, qwen2, qwen3, olmo2, smollm3); use the model's Hugging Face directory instead"
    );
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
fn each_family_has_a_description_that_reads_its_configuration() {
    for family in FAMILIES {
        let config = opened(tiny(family.architecture)).unwrap().config;
        let (file, text) = fusec::description::find_for(&[family.class]).expect("a shipped description serves it");
        let description = fusec::description::Description::parse(text, file).unwrap();
        let resolved =
            description.resolve(Some(&config)).unwrap_or_else(|errors| panic!("{}: {errors}", family.architecture));
        // Each name that a file may have is one that the description reads.
        let read: Vec<&String> = resolved.calls.iter().flat_map(|call| call.weights.values()).collect();
        for (_, name) in family.inside.iter().filter(|(gguf, _)| !gguf.ends_with("q_norm") && !gguf.ends_with("k_norm"))
        {
            let name = format!("model.layers.0.{name}.weight");
            assert!(read.contains(&&name), "{}: {file} does not read {name}", family.architecture);
        }
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
