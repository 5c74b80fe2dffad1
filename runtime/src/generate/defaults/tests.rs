use super::*;
use serde_json::json;

fn read(config: Value) -> GenerationDefaults {
    GenerationDefaults::from_json(&config).unwrap()
}

#[test]
fn what_is_honoured_is_read() {
    let all = read(json!({
        "do_sample": true, "temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "suppress_tokens": [3, -1, 4],
        "stop_strings": ["#", "END"], "max_new_tokens": 7, "max_length": 20, "eos_token_id": [1, 2], "transformers_version": "4.0.0",
    }));
    assert_eq!((all.temperature, all.top_k, all.top_p, all.min_p), (Some(0.5), Some(20), Some(0.9), Some(0.1)));
    assert_eq!((all.repetition_penalty, &all.suppress_tokens[..]), (Some(1.1), &[3, 4][..]));
    assert_eq!((all.stop_strings.join("|").as_str(), all.note()), ("#|END", None));
    assert_eq!(read(json!({ "stop_strings": "#" })).stop_strings, ["#"]);
    let greedy = read(
        json!({ "temperature": 0.5, "top_k": 5, "typical_p": 0.3, "repetition_penalty": 2, "suppress_tokens": null }),
    );
    assert_eq!((greedy.temperature, greedy.top_k, greedy.repetition_penalty), (None, None, Some(2.0)));
    assert_eq!(greedy.note(), None, "typical_p is of draws");
}

#[test]
fn the_prompt_counts_in_max_length_only() {
    let limit = |config: Value, prompt| read(config).limit(prompt).map_err(|error| error.to_string());
    assert_eq!(limit(json!({}), 3), Ok(None));
    assert_eq!(limit(json!({ "max_length": 10 }), 3), Ok(Some(7)));
    assert_eq!(limit(json!({ "max_new_tokens": 5, "max_length": 10 }), 30), Ok(Some(5)));
    assert_eq!(
        limit(json!({ "max_length": 10 }), 10).unwrap_err(),
        "the prompt has 10 tokens, and max_length of generation_config.json is 10 with the prompt; give --max-tokens"
    );
    assert!(limit(json!({ "max_new_tokens": 0 }), 1).is_err());
}

#[test]
fn what_changes_tokens_is_named_in_one_line() {
    let note = read(json!({
        "do_sample": true, "no_repeat_ngram_size": 3, "typical_p": 0.9, "num_beams": 4, "length_penalty": 2.0, "bad_words_ids": [[1], [2]],
        "forced_eos_token_id": 2, "guidance_scale": 1.5, "my_penalty": 0.5,
    }));
    assert_eq!(
        note.note().unwrap(),
        "generation_config.json asks for num_beams 4, no_repeat_ngram_size 3, bad_words_ids [[1],[2]], forced_eos_token_id 2, guidance_scale 1.5, \
         typical_p 0.9, my_penalty 0.5: not honoured, other programs may write another text"
    );
}

/// The values that transformers writes where a user has set none.
#[test]
fn defaults_that_are_written_out_are_not_named() {
    let config = serde_json::from_str(
        r#"{
        "max_length": 20, "max_new_tokens": null, "min_length": 0, "min_new_tokens": null, "early_stopping": false, "max_time": null, "stop_strings": null,
        "do_sample": true, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": null, "dola_layers": null, "use_cache": true, "cache_implementation": null,
        "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": null, "top_h": null, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
        "diversity_penalty": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
        "bad_words_ids": null, "force_words_ids": null, "renormalize_logits": false, "constraints": null, "forced_bos_token_id": null,
        "forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null, "suppress_tokens": null,
        "begin_suppress_tokens": null, "forced_decoder_ids": null, "sequence_bias": null, "token_healing": false, "guidance_scale": null,
        "low_memory": null, "watermarking_config": null, "num_return_sequences": 1, "output_attentions": false, "output_hidden_states": false,
        "output_scores": false, "output_logits": null, "return_dict_in_generate": false, "pad_token_id": null, "bos_token_id": 1, "eos_token_id": 2,
        "encoder_no_repeat_ngram_size": 0, "decoder_start_token_id": null, "is_assistant": false, "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4, "prompt_lookup_num_tokens": null,
        "max_matching_ngram_size": null, "generation_kwargs": {}, "_from_model_config": true, "transformers_version": "4.57.0"
    }"#,
    );
    assert_eq!(read(config.unwrap()).note(), None);
}

#[test]
fn wrong_types_are_refused_by_name() {
    let said = |config: Value| GenerationDefaults::from_json(&config).unwrap_err().to_string();
    assert_eq!(said(json!([])), "generation_config.json is not a JSON object");
    assert_eq!(said(json!({ "do_sample": 1 })), "generation_config.json: do_sample is 1, not true or false");
    assert_eq!(
        said(json!({ "do_sample": true, "top_p": "high" })),
        "generation_config.json: top_p is \"high\", not a number"
    );
    let off = GenerationDefaults::from_json(&json!({ "do_sample": true, "top_k": -1 })).unwrap();
    assert_eq!(off.top_k, Some(0));
    assert_eq!(
        said(json!({ "do_sample": true, "temperature": {"$float": "Infinity"} })),
        "generation_config.json: temperature is Infinity, not a number"
    );
    assert_eq!(
        said(json!({ "do_sample": true, "top_k": 1.5 })),
        "generation_config.json: top_k is 1.5, not a count of tokens"
    );
    assert_eq!(
        said(json!({ "max_new_tokens": -3 })),
        "generation_config.json: max_new_tokens is -3, not a count of tokens"
    );
    assert_eq!(
        said(json!({ "suppress_tokens": [1, "a"] })),
        "generation_config.json: suppress_tokens has \"a\", which is no token"
    );
    assert_eq!(
        said(json!({ "suppress_tokens": 7 })),
        "generation_config.json: suppress_tokens is 7, not a list of tokens"
    );
    assert_eq!(said(json!({ "stop_strings": [1] })), "generation_config.json: stop_strings has 1, not text");
}

#[test]
fn a_gguf_file_says_it_in_its_own_keys() {
    use gguf::Value::{Float, Signed, Text};
    let read = |pairs: Vec<(&'static str, gguf::Value)>| GenerationDefaults::from_gguf(&Metadata::from_pairs(pairs));
    let all = read(vec![
        ("general.sampling.temp", Float(0.5)),
        ("general.sampling.top_k", Signed(7)),
        ("general.sampling.top_p", Float(0.75)),
        ("general.sampling.min_p", Float(0.25)),
        ("general.sampling.penalty_repeat", Float(1.5)),
    ]);
    let all = all.unwrap();
    assert_eq!(
        (all.samples, all.temperature, all.top_k, all.top_p, all.min_p),
        (true, Some(0.5), Some(7), Some(0.75), Some(0.25))
    );
    assert_eq!((all.repetition_penalty, all.note()), (Some(1.5), None));
    assert!(!read(vec![("general.name", Text("x".into()))]).unwrap().samples);
    let others = read(vec![
        ("general.sampling.sequence", Text("kpmt".into())),
        ("general.sampling.mirostat", Signed(2)),
        ("general.sampling.mirostat_tau", Float(5.0)),
        ("general.sampling.xtc_probability", Float(0.0)),
        ("general.sampling.penalty_repeat", Float(1.5)),
        ("general.sampling.penalty_last_n", Signed(64)),
        ("general.sampling.dry_multiplier", Float(0.5)),
    ]);
    assert_eq!(
        others.unwrap().note().unwrap(),
        "the GGUF file's metadata asks for general.sampling.mirostat 2, general.sampling.sequence \"kpmt\", general.sampling.penalty_last_n 64, \
         general.sampling.dry_multiplier: not honoured, other programs may write another text"
    );
    let off =
        read(vec![("general.sampling.penalty_repeat", Float(1.5)), ("general.sampling.penalty_last_n", Signed(0))]);
    assert_eq!(off.unwrap().repetition_penalty, None);
    let cold = read(vec![("general.sampling.temp", Float(-1.0)), ("general.sampling.top_k", Signed(-1))]).unwrap();
    assert_eq!((cold.temperature, cold.top_k), (Some(0.0), Some(0)));
    let wrong = read(vec![("general.sampling.temp", Text("hot".into()))]).unwrap_err().to_string();
    assert_eq!(wrong, "general.sampling.temp is not a number");
}
