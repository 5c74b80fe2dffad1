//! No silent nonsense: a configuration key that changes what a model computes either changes what a shipped description computes, or is refused by
//! name.

use fusec::description::{Description, Resolved, shipped};
use serde_json::{Map, Value, json};

/// Keys, and a value that asks for something.
fn features() -> Vec<(&'static str, Value)> {
    let kinds = json!(["full_attention", "full_attention", "sliding_attention"].repeat(64));
    vec![
        ("_remove_final_layer_norm", json!(true)),
        ("activation", json!("relu")),
        ("activation_function", json!("relu")),
        ("add_bias_linear", json!(true)),
        ("add_cross_attention", json!(true)),
        ("add_qkv_bias", json!(true)),
        ("alibi", json!(true)),
        ("apply_residual_connection_post_layernorm", json!(true)),
        ("attention_bias", json!(true)),
        ("attention_chunk_size", json!(8192)),
        ("attention_layers", json!(["global", "local"])),
        ("attention_multiplier", json!(0.3)),
        ("attention_out_bias", json!(true)),
        ("attention_types", json!([[["global", "local"], 6]])),
        ("attn_config", json!({"alibi": true})),
        ("attn_logit_softcapping", json!(11.0)),
        ("attn_output_gate", json!(true)),
        ("attn_temperature_tuning", json!(true)),
        ("bias", json!(true)),
        ("clip_qkv", json!(8.0)),
        ("conv_L_cache", json!(3)),
        ("decoder_sparse_step", json!(2)),
        ("dim_model_base", json!(256)),
        ("do_layer_norm_before", json!(false)),
        ("embedding_multiplier", json!(3.0)),
        ("final_logit_softcapping", json!(11.0)),
        ("first_k_dense_replace", json!(1)),
        ("hidden_act", json!("relu")),
        ("hidden_activation", json!("relu")),
        ("hidden_size_per_layer_input", json!(256)),
        ("is_encoder_decoder", json!(true)),
        ("kv_lora_rank", json!(64)),
        ("layer_rope_theta", json!([0, 10000].repeat(64))),
        ("layer_types", kinds),
        ("lm_head_bias", json!(true)),
        ("logit_scale", json!(2.0)),
        ("logits_scaling", json!(3.0)),
        ("max_window_layers", json!(1)),
        ("mlp_bias", json!(true)),
        ("mlp_only_layers", json!([0])),
        ("moe_layer_freq", json!(2)),
        ("moe_layer_start_index", json!(1)),
        ("moe_num_experts", json!(7)),
        ("moe_num_shared_experts", json!(2)),
        ("multi_query", json!(true)),
        ("n_group", json!(8)),
        ("n_routed_experts", json!(4)),
        ("n_shared_experts", json!(1)),
        ("new_decoder_architecture", json!(true)),
        ("norm_topk_prob", json!(true)),
        ("no_rope_layers", json!([0, 1].repeat(64))),
        ("num_experts", json!(7)),
        ("num_kv_shared_layers", json!(2)),
        ("num_ln_in_parallel_attn", json!(2)),
        ("num_local_experts", json!(7)),
        ("parallel_attn", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("position_embedding_type", json!("alibi")),
        ("qk_layernorm", json!(true)),
        ("compression_config", json!({"format": "pack-quantized"})),
        ("quantization", json!({"group_size": 64, "bits": 4})),
        ("quantization_config", json!({"bits": 4})),
        ("query_pre_attn_scalar", json!(99)),
        ("qkv_bias", json!(true)),
        ("residual_multiplier", json!(0.5)),
        ("rope_interleave", json!(true)),
        ("rope_interleaved", json!(true)),
        ("rope_local_base_freq", json!(777.0)),
        ("rope_ratio", json!(50)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 3.0})),
        ("rope_scaling", json!({"type": "mrope", "factor": 3.0})),
        ("rope_theta", json!(777.0)),
        ("rotary_emb_base", json!(777)),
        ("rotary_pct", json!(0.5)),
        ("rotary_dim", json!(8)),
        ("routed_scaling_factor", json!(2.5)),
        ("scoring_func", json!("sigmoid")),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("scale_attn_weights", json!(false)),
        ("scale_depth", json!(1.4)),
        ("scale_emb", json!(12.0)),
        ("scale_embedding", json!(true)),
        ("sliding_window", json!(99)),
        ("sliding_window_pattern", json!(2)),
        ("swiglu_limit", json!(7.0)),
        ("text_config", json!({})),
        ("tie_word_embeddings", json!(true)),
        ("topk_method", json!("group_limited_greedy")),
        ("use_bias", json!(true)),
        ("use_bidirectional_attention", json!(true)),
        ("use_logn_attn", json!(true)),
        ("use_mrope", json!(true)),
        ("use_parallel_residual", json!(true)),
        ("use_qk_norm", json!(true)),
        ("use_qkv_bias", json!(true)),
        ("vision_config", json!({})),
        ("window_size", json!(99)),
    ]
}

/// What transformers reads of a family's configuration, and no more: the key changes nothing there either.
const IGNORED: &[(&str, &str)] = &[
    // Windows, and kinds of layers, are used only where `model_type` is "mistral".
    ("llama", "layer_types"),
    ("llama", "sliding_window"),
    // Only the new architecture has two.
    ("falcon", "num_ln_in_parallel_attn"),
    // What these two do without the key; any other value is refused.
    ("dots1", "scoring_func"),
    ("glm4_moe", "scoring_func"),
    // The preset's layers with windows begin after its last.
    ("dots1", "sliding_window"),
    // The preset has no RoPE.
    ("granitemoehybrid", "rope_scaling"),
    ("granitemoehybrid", "rope_theta"),
    // `hidden_activation` is what counts.
    ("gemma2", "hidden_act"),
    ("gemma3", "hidden_act"),
    // The older spelling of `num_experts`.
    ("olmoe", "num_local_experts"),
    ("qwen2_moe", "num_local_experts"),
    ("qwen3_moe", "num_local_experts"),
];

#[test]
fn a_feature_changes_the_model_or_is_refused() {
    let mut silent = Vec::new();
    let (mut changed, mut refused) = (0, 0);
    for (file, text) in shipped() {
        let family = file.trim_end_matches(".toml");
        let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
        let resolve = |config: &Map<String, Value>| description.resolve(Some(&Value::Object(config.clone())));
        for preset in presets(text) {
            let plain = told(&resolve(&preset).unwrap_or_else(|errors| panic!("{errors}")));
            let windows_off = preset.get("use_sliding_window") == Some(&json!(false));
            for (key, value) in features() {
                let idle = windows_off && ["sliding_window", "max_window_layers", "layer_types"].contains(&key);
                if idle || preset.get(key) == Some(&value) {
                    continue;
                }
                let asked = |value: Value| {
                    let mut config = preset.clone();
                    config.insert(key.to_owned(), value);
                    resolve(&config)
                };
                // What a family does unless told otherwise shows by the opposite.
                let opposite = value.as_bool().map(|flag| json!(!flag)).filter(|_| text.contains(key));
                match (asked(value.clone()), opposite.map(asked)) {
                    (Ok(other), _) | (_, Some(Ok(other))) if told(&other) != plain => changed += 1,
                    (Err(errors), _) | (_, Some(Err(errors))) => {
                        let said = errors.to_string();
                        let word = key.split('_').next().expect("a word");
                        assert!(said.contains(word), "{family}: {key} is refused by another name: {said}");
                        let advice = ["[expect]", "[derive]", "let the description", "??"];
                        let to_the_author = advice.iter().find(|part| said.contains(**part));
                        assert_eq!(to_the_author, None, "{family}: {key}: the reader did not write it: {said}");
                        refused += 1;
                    }
                    _ if IGNORED.contains(&(family, key)) => {}
                    _ => silent.push(format!("{family}: {key} = {value}")),
                }
            }
        }
    }
    assert!(silent.is_empty(), "keys that change nothing and are not refused:\n{}", silent.join("\n"));
    assert!(changed > 100 && refused > 500, "{changed} change the model, {refused} are refused");
}

#[test]
fn what_only_a_familys_name_tells_is_refused() {
    let (file, text) = shipped().iter().find(|(file, _)| *file == "olmo2.toml").expect("it is shipped");
    let mut config = preset(text);
    config.insert("model_type".to_owned(), json!("bloom"));
    let resolve = |text: &str| {
        let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
        description.resolve(Some(&Value::Object(config.clone()))).map(|_| ()).map_err(|errors| errors.to_string())
    };
    let said = resolve(text).expect_err("ALiBi has no operation");
    assert!(said.contains("F0403") && said.contains("ALiBi") && said.contains("`model_type`"), "{said}");
    let expecting = format!("{text}\n[expect]\nmodel_type = [\"bloom\"]\n");
    assert_eq!(resolve(&expecting), Ok(()));
}

/// What a resolved description says of each layer.
fn attributes(file: &str, changes: Value, attribute: &str) -> Result<Vec<String>, String> {
    let (file, text) = shipped().iter().find(|(name, _)| *name == file).expect("it is shipped");
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    let mut config = preset(text);
    config.extend(changes.as_object().expect("changes are a table").clone());
    let resolved = description.resolve(Some(&Value::Object(config))).map_err(|errors| errors.to_string())?;
    let of = |call: &fusec::description::Call| call.attributes.get(attribute).map(|value| format!("{value:?}"));
    Ok(resolved.calls.iter().filter(|call| call.layer.is_some()).filter_map(of).collect())
}

#[test]
fn layers_with_a_window_have_their_own_scaling_of_rope() {
    let rope = |sliding: Value| {
        let full = json!({"rope_theta": 1e6, "rope_type": "default"});
        json!({"rope_scaling": null, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}})
    };
    for file in ["gemma3.toml", "olmo3.toml"] {
        let linear = json!({"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0});
        let scaled = attributes(file, rope(linear), "scaling").unwrap_or_else(|said| panic!("{said}"));
        assert!(scaled.len() > 10 && scaled.iter().all(|scaling| scaling.contains("Linear")), "{file}: {scaled:?}");
        let plain = attributes(file, rope(json!({"rope_theta": 1e4, "rope_type": "default"})), "scaling");
        assert_eq!(plain, Ok(Vec::new()), "{file}");
    }
    // Where a description has one scaling for all layers, a second is refused.
    let said = attributes("llama.toml", rope(json!({"rope_type": "linear", "factor": 4.0})), "scaling");
    assert!(said.expect_err("llama has no second scaling").contains("scaled RoPE of layers with a window"));
    let both = json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}});
    let said = attributes("llama.toml", both, "scaling").expect_err("which one is meant?");
    assert!(said.contains("different scalings of RoPE") && said.contains("remove the one"), "{said}");
}

#[test]
fn mistral_with_kinds_of_layers_has_windows_on_some() {
    let config = |kinds: [&str; 2]| json!({"model_type": "mistral", "num_hidden_layers": 2, "layer_types": kinds, "sliding_window": 9});
    let windows = |kinds| attributes("llama.toml", config(kinds), "window").unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(windows(["full_attention", "sliding_attention"]), ["Count(9)"]);
    assert_eq!(windows(["full_attention"; 2]), [""; 0]);
}

#[test]
fn a_dotted_key_reaches_into_a_table() {
    let (file, text) = shipped().iter().find(|(file, _)| *file == "olmo2.toml").expect("it is shipped");
    let text = format!("{text}\n[expect]\n\"attn_config.alibi\" = [false]\n");
    let description = Description::parse(&text, file).unwrap_or_else(|errors| panic!("{errors}"));
    let said = |alibi: bool| {
        let mut config = preset(&text);
        config.insert("attn_config".to_owned(), json!({"alibi": alibi}));
        description.resolve(Some(&Value::Object(config))).map(|_| ()).map_err(|errors| errors.to_string())
    };
    assert_eq!(said(false), Ok(()));
    assert!(said(true).expect_err("it is not listed").contains("`attn_config.alibi` is true in config.json"));
}

/// Families with windows, changes that turn them on, and what transformers has where the key is absent; 0: no window.
const WINDOWS: &[(&str, &str, usize)] = &[
    ("cohere", "{}", 4096),
    ("dots1", r#"{"max_window_layers": 2}"#, 4096),
    ("exaone4", "{}", 4096),
    ("gemma2", "{}", 4096),
    ("gemma3", "{}", 4096),
    ("gemma4", "{}", 512),
    ("gpt_oss", "{}", 128),
    ("llama", r#"{"model_type": "mistral"}"#, 4096),
    ("mixtral", "{}", 0),
    ("olmo3", "{}", 4096),
    ("phi3", "{}", 0),
    ("qwen2", r#"{"use_sliding_window": true, "max_window_layers": 2}"#, 4096),
    ("qwen2_moe", r#"{"use_sliding_window": true, "layer_types": null}"#, 4096),
    ("qwen3", r#"{"use_sliding_window": true, "max_window_layers": 2}"#, 4096),
    ("qwen3_moe", r#"{"use_sliding_window": true}"#, 4096),
    ("smollm3", r#"{"use_sliding_window": true}"#, 0),
    ("starcoder2", "{}", 0),
];

#[test]
fn a_null_window_is_none_and_an_absent_one_the_familys() {
    for (file, text) in shipped() {
        let family = file.trim_end_matches(".toml");
        let Some(&(_, changes, default)) = WINDOWS.iter().find(|(name, ..)| *name == family) else {
            assert!(!text.contains("window = "), "{family} has windows that no test asks for");
            continue;
        };
        let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
        let mut config = preset(text);
        let changes: Map<String, Value> = serde_json::from_str(changes).expect("changes are JSON");
        config.extend(changes);
        let mut windows = |window: Option<Value>| {
            config.remove("sliding_window");
            config.extend(window.map(|window| ("sliding_window".to_owned(), window)));
            let resolved = description.resolve(Some(&Value::Object(config.clone())));
            let calls = resolved.unwrap_or_else(|errors| panic!("{family}: {errors}")).calls;
            let windows = calls.iter().filter_map(|call| call.attributes.get("window"));
            windows.map(|window| format!("{window:?}")).collect::<Vec<_>>()
        };
        assert!(windows(Some(json!(17))).iter().any(|window| window == "Count(17)"), "{family} honours a window");
        assert_eq!(windows(Some(json!(null))), [""; 0], "{family}: a null window");
        let absent = windows(None);
        assert_eq!(!absent.is_empty(), default > 0, "{family}: an absent window");
        let wanted = format!("Count({default})");
        assert!(absent.iter().all(|window| *window == wanted), "{family}: an absent window: {absent:?}");
    }
}

#[test]
fn a_null_is_not_a_default() {
    let resolve = |file: &str, key: &str, value: Option<Value>| {
        let (file, text) = shipped().iter().find(|(name, _)| *name == file).expect("it is shipped");
        let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
        let mut config = preset(text);
        config.remove(key);
        config.extend(value.map(|value| (key.to_owned(), value)));
        description.resolve(Some(&Value::Object(config))).map_err(|errors| errors.to_string())
    };
    let null = || Some(json!(null));
    // A constant that stands for an absent key does not stand for a null one.
    for (file, key) in [
        ("cohere.toml", "logit_scale"),
        ("cohere.toml", "tie_word_embeddings"),
        ("falcon.toml", "multi_query"),
        ("falcon.toml", "parallel_attn"),
        ("gemma2.toml", "head_dim"),
        ("qwen2.toml", "max_window_layers"),
        ("smollm3.toml", "rope_theta"),
        ("stablelm.toml", "partial_rotary_factor"),
    ] {
        let said = resolve(file, key, null()).expect_err(key);
        assert!(said.contains("F0403") && said.contains(&format!("`{key}` is null in config.json")), "{said}");
        resolve(file, key, None).unwrap_or_else(|errors| panic!("{file}: {key} may be absent: {errors}"));
    }
    // Where another key tells what holds, or null means no, it does.
    for (file, key) in
        [("llama.toml", "num_key_value_heads"), ("llama.toml", "head_dim"), ("llama.toml", "attention_bias")]
    {
        let [null, absent] = [resolve(file, key, null()), resolve(file, key, None)].map(|found| told(&found.unwrap()));
        assert_eq!(null, absent, "{file}: {key}");
    }
    // Gemma 2 has caps unless told otherwise.
    for (key, cap, caps) in [("attn_logit_softcapping", "softcap", 26), ("final_logit_softcapping", "cap", 1)] {
        let count = |value| {
            let calls = resolve("gemma2.toml", key, value).unwrap().calls;
            calls.iter().filter(|call| call.attributes.contains_key(cap)).count()
        };
        assert_eq!((count(None), count(null())), (caps, 0), "{key}");
    }
    // Cohere 2 rotates where it has a window.
    let ropes = |value| {
        let calls = resolve("cohere.toml", "sliding_window", value).unwrap().calls;
        calls.iter().filter(|call| call.op.name() == "rope").count()
    };
    assert_eq!((ropes(None), ropes(null())), (2 * 24, 0));
}

/// The `[config]` of a description as JSON; once more with windows where the family has a switch for them.
fn presets(text: &str) -> Vec<Map<String, Value>> {
    let plain = preset(text);
    let mut windows = plain.clone();
    if windows.contains_key("use_sliding_window") {
        windows.insert("use_sliding_window".to_owned(), json!(true));
        windows.insert("sliding_window".to_owned(), json!(50));
        if windows.contains_key("max_window_layers") {
            windows.insert("max_window_layers".to_owned(), json!(2));
        }
        return vec![plain, windows];
    }
    vec![plain]
}

/// The `[config]` of a description, as JSON.
fn preset(text: &str) -> Map<String, Value> {
    let table: toml::Table = toml::from_str(text).expect("a description is TOML");
    let config = serde_json::to_value(&table["config"]).expect("a preset is JSON too");
    config.as_object().expect("a table").clone()
}

/// All that is computed.
fn told(resolved: &Resolved) -> String {
    let call = |call: &fusec::description::Call| {
        format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}\n",
            call.op, call.outs, call.values, call.weights, call.attributes, call.layer
        )
    };
    resolved.calls.iter().map(call).collect()
}

/// What the shipped description that serves `architecture` makes of a configuration, or what it says.
fn resolved(architecture: &str, config: Value) -> Result<Resolved, String> {
    let (file, text) = fusec::description::find_for(&[architecture]).expect("it is served");
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    description.resolve(Some(&config)).map_err(|errors| errors.to_string())
}

#[test]
fn what_published_files_have_beside_is_taken() {
    for (architecture, keys, other) in [
        ("PhiForCausalLM", json!({"rotary_dim": 32, "auto_map": {}}), json!({"rotary_dim": 64})),
        ("Dots1ForCausalLM", json!({"scoring_func": "noaux_tc", "seq_aux": true}), json!({"scoring_func": "softmax"})),
        ("Gemma2ForCausalLM", json!({"sliding_window_size": 4096}), json!({"sliding_window_size": 1024})),
        ("HunYuanDenseV1ForCausalLM", json!({"num_experts": 1, "org_vocab_size": 1}), json!({"num_experts": 2})),
        ("LlamaForCausalLM", json!({"activation": "swiglu"}), json!({"activation": "relu"})),
    ] {
        let (_, text) = fusec::description::find_for(&[architecture]).expect("it is served");
        let with = |keys: &Value| {
            let mut config = preset(text);
            config.insert("architectures".to_owned(), json!([architecture]));
            config.extend(keys.as_object().expect("a table").clone());
            resolved(architecture, Value::Object(config))
        };
        let plain = with(&json!({})).unwrap_or_else(|said| panic!("{architecture}: {said}"));
        let more = with(&keys).unwrap_or_else(|said| panic!("{architecture}: {said}"));
        assert_eq!((told(&more), more.unread_note()), (told(&plain), None), "{architecture}");
        let said = with(&other).map(|_| ()).expect_err("it asks for something");
        assert!(said.contains("F0403"), "{architecture}: {said}");
    }
}

#[test]
fn absent_keys_have_the_values_of_the_configuration_class() {
    // transformers' own: what `LlamaConfig()` and the others have.
    for (architecture, kind, layers, heads, key_heads) in [
        ("LlamaForCausalLM", "llama", 32, 32, 32),
        ("MistralForCausalLM", "mistral", 32, 32, 8),
        ("Qwen2ForCausalLM", "qwen2", 32, 32, 32),
        ("Qwen3MoeForCausalLM", "qwen3_moe", 24, 32, 4),
        ("Gemma3ForCausalLM", "gemma3_text", 26, 8, 4),
        ("Starcoder2ForCausalLM", "starcoder2", 30, 24, 2),
    ] {
        let bare = json!({"architectures": [architecture], "model_type": kind});
        let said = resolved(architecture, bare.clone()).map(|_| ()).expect_err("no count of layers");
        assert!(said.contains("has no key `num_hidden_layers`"), "{said}");
        let (file, text) = fusec::description::find_for(&[architecture]).expect("it is served");
        let text = text.replacen(&format!("\"{architecture}\""), &format!("\"{architecture}:{kind}\""), 1);
        let description = Description::parse(&text, file).unwrap_or_else(|errors| panic!("{errors}"));
        let part = json!({"architectures": [architecture], "text_config": bare});
        let model = description.resolve(Some(&part)).unwrap_or_else(|said| panic!("{kind}: {said}"));
        let counts = |weight: &str| {
            let call = model.calls.iter().find(|call| call.weights.values().any(|name| name.contains(weight)));
            call.and_then(|call| call.attributes.get("heads")).map(|heads| format!("{heads:?}"))
        };
        assert_eq!(model.facts.num_layers, layers, "{kind}");
        assert_eq!(counts("q_proj"), Some(format!("Count({heads})")), "{kind}");
        assert_eq!(counts("k_proj"), Some(format!("Count({key_heads})")), "{kind}");
    }
    // A null is no absent key: it is what the class makes of None.
    let null = json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 1, "num_key_value_heads": null});
    let model = resolved("MistralForCausalLM", null).unwrap_or_else(|said| panic!("{said}"));
    assert!(told(&model).contains("Count(32)") && !told(&model).contains("Count(8)"), "as many as heads");
    // Without a class, nothing stands in.
    let said = resolved("LlamaForCausalLM", json!({"architectures": ["LlamaForCausalLM"]})).map(|_| ());
    assert!(said.expect_err("no class").contains("has no key `num_hidden_layers`"));
}

#[test]
fn a_list_of_one_value_for_each_layer_is_that_value() {
    let text = shipped().iter().find(|(file, _)| *file == "llama.toml").expect("it is shipped").1;
    let with = |key: &str, value: Value| {
        let mut config = preset(text);
        config.insert("num_hidden_layers".to_owned(), json!(3));
        config.insert(key.to_owned(), value);
        resolved("LlamaForCausalLM", Value::Object(config))
    };
    let plain = told(&with("use_cache", json!(true)).unwrap_or_else(|said| panic!("{said}")));
    for (key, value) in [
        ("num_key_value_heads", json!([8, 8, 8])),
        ("intermediate_size", json!([8192, 8192.0, 8192])),
        ("hidden_act", json!(["silu", "silu", "silu"])),
        ("attention_bias", json!([false, false, false])),
        ("head_dim", json!([64, 64, 64])),
        ("no_rope_layers", json!([1, 1, 1])),
    ] {
        let model = with(key, value).unwrap_or_else(|said| panic!("{key}: {said}"));
        assert_eq!(told(&model), plain, "{key}");
    }
    for value in [json!([8, 8]), json!([8, 4, 8]), json!([])] {
        assert!(with("num_key_value_heads", value.clone()).is_err(), "{value} is not one value for each of 3 layers");
    }
    // What is a list for one layer too stays one.
    let ends = with("eos_token_id", json!([5, 5, 5])).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(ends.facts.eos_token_ids, [5, 5, 5]);
    let no_rope = json!({"no_rope_layers": [1, 1, 1], "num_hidden_layers": 3});
    assert!(attributes("smollm3.toml", no_rope, "theta").is_ok(), "a description that takes elements gets a list");
}

#[test]
fn a_number_that_is_not_finite_is_refused_where_it_is_read() {
    let text = shipped().iter().find(|(file, _)| *file == "llama.toml").expect("it is shipped").1;
    let with = |key: &str, number: &str| {
        let mut config = preset(text);
        config.remove(key);
        let config = serde_json::to_string(&config).expect("a preset is JSON");
        let config = config.replacen('{', &format!("{{\"{key}\": {number}, "), 1);
        let config = fusec::json::parse(&config).unwrap_or_else(|error| panic!("{config}: {error}"));
        resolved("LlamaForCausalLM", config).map(|_| ())
    };
    for number in ["Infinity", "-Infinity", "NaN"] {
        assert_eq!(with("attention_dropout", number), Ok(()), "nothing reads it");
        for key in ["rope_theta", "rms_norm_eps", "max_position_embeddings", "hidden_size"] {
            let said = with(key, number).expect_err(key);
            assert!(said.contains("F0404") && said.contains(&format!("`{key}` is {number}")), "{said}");
        }
        let said = with("logit_scale", number).expect_err("it changes the logits");
        assert!(said.contains("F0403") && said.contains(number), "{said}");
    }
}
