//! config.json as people find it: keys that nobody knows, keys that are absent, texts longer than the trained context.

use std::path::Path;

use fuse_tests::{Finished, TempFolder, fusec, fuserun, root};
use serde_json::{Map, Value, json};

fn golden(name: &str) -> TempFolder {
    TempFolder::copy_of(&root().join("tests/goldens").join(name))
}

/// Changes a copied checkpoint's config.json.
fn edit_config(folder: &TempFolder, edit: impl FnOnce(&mut Map<String, Value>)) {
    let text = std::fs::read_to_string(folder.path().join("config.json")).expect("a checkpoint has one");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    edit(config.as_object_mut().expect("a table"));
    folder.write("config.json", config.to_string());
}

/// `fuserun logits` on the CPU for the first `count` of some tokens, and the file that it writes.
fn logits(model: &Path, count: usize, more: &[&str]) -> (Finished, Vec<u8>) {
    let out = TempFolder::new();
    let file = out.path().join("logits.safetensors");
    let tokens: Vec<String> = (0..count).map(|position| (1 + position * 7 % 50).to_string()).collect();
    let tokens = tokens.join(",");
    let mut arguments = vec!["logits", "--device", "cpu", "--threads", "2", "-m", model.to_str().expect("UTF-8")];
    arguments.extend(["--tokens", &tokens, "-o", file.to_str().expect("UTF-8")]);
    arguments.extend(more);
    let done = fuserun(&arguments, "");
    (done, std::fs::read(&file).unwrap_or_default())
}

/// The lines on stderr that are not about what was written.
fn notes(done: &Finished) -> Vec<&str> {
    done.stderr.lines().filter(|line| !line.contains("logits f32")).collect()
}

#[test]
fn a_key_that_nothing_knows_is_an_error_of_check_and_a_line_of_fuserun() {
    let folder = golden("llama-tied");
    let check = |folder: &TempFolder| fusec(&["check", "--checkpoint", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(check(&folder).code, 0);
    let (done, plain) = logits(folder.path(), 3, &[]);
    assert_eq!((done.code, notes(&done)), (0, vec![]), "{}", done.stderr);
    edit_config(&folder, |config| drop(config.insert("expert_selection_fn".to_owned(), json!("sigmoid"))));
    let from = folder.path().to_str().expect("UTF-8");
    for more in [&["print"][..], &["explain", "--arch", "sm_80,sm_90a"]] {
        let done = fusec(&[more, &["--checkpoint", from]].concat());
        let lines = done.stderr.lines().filter(|line| line.contains("a key that nothing knows")).count();
        assert_eq!((done.code, lines), (0, 1), "{more:?}: {}", done.stderr);
    }
    for value in [json!("sigmoid"), json!(3), json!(false), json!([1]), json!({"a": 1}), json!(null)] {
        edit_config(&folder, |config| drop(config.insert("expert_selection_fn".to_owned(), value.clone())));
        let checked = check(&folder);
        assert_eq!((checked.code, checked.stdout.as_str()), (1, ""), "{value}");
        assert!(checked.stderr.contains("error[F0406]: nothing knows the key `expert_selection_fn`"), "{value}");
        let (done, same) = logits(folder.path(), 3, &[]);
        assert_eq!((done.code, notes(&done).len()), (0, 1), "{value}: {}", done.stderr);
        assert!(notes(&done)[0].contains("config.json has a key that nothing knows") && same == plain, "{value}");
        assert!(notes(&done)[0].ends_with(": expert_selection_fn"), "{value}");
    }
}

#[test]
fn a_part_may_leave_out_what_its_class_has() {
    let folder = golden("smolvlm");
    let (_, whole) = logits(folder.path(), 5, &[]);
    edit_config(&folder, |config| {
        let text = config["text_config"].as_object_mut().expect("a table");
        for key in ["hidden_act", "attention_bias", "mlp_bias", "rope_scaling"] {
            text.remove(key);
        }
    });
    let (done, fewer) = logits(folder.path(), 5, &[]);
    assert_eq!((done.code, notes(&done)), (0, vec![]), "{}", done.stderr);
    assert!(!whole.is_empty() && whole == fewer);
}

#[test]
fn infinity_in_a_key_that_nothing_reads_does_no_harm() {
    let folder = golden("llama-tied");
    let (_, plain) = logits(folder.path(), 3, &[]);
    let text = std::fs::read_to_string(folder.path().join("config.json")).expect("a checkpoint has one");
    let with = |key: &str, value: &str| text.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
    for (value, named) in [("Infinity", "Infinity"), ("1e400", "Infinity"), ("-1.5E+400", "-Infinity")] {
        folder.write("config.json", with("attention_dropout_prob", value));
        let (done, same) = logits(folder.path(), 3, &[]);
        assert_eq!((done.code, notes(&done)), (0, vec![]), "{}", done.stderr);
        assert!(same == plain);
        folder.write("config.json", with("logit_scale", value));
        let (done, _) = logits(folder.path(), 3, &[]);
        assert!(done.code == 1 && done.stderr.contains(&format!("`logit_scale` is {named}")), "{}", done.stderr);
    }
}

/// A model of 64 trained positions whose RoPE is scaled.
fn scaled(scaling: &Value) -> TempFolder {
    let folder = golden("llama-tied");
    edit_config(&folder, |config| {
        config.remove("rope_parameters");
        let more = json!({"max_position_embeddings": 64, "rope_theta": 10000.0, "rope_scaling": scaling});
        config.extend(more.as_object().expect("a table").clone());
    });
    folder
}

#[test]
fn a_scaling_of_rope_lets_a_text_go_beyond_the_trained_context() {
    for scaling in [
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"type": "yarn", "factor": 4.0, "finetuned": true, "attn_factor": 1, "mscale_all_dim": 0}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    ] {
        let folder = scaled(&scaling);
        let (done, _) = logits(folder.path(), 100, &[]);
        assert_eq!((done.code, notes(&done)), (0, vec![]), "{scaling}: {}", done.stderr);
        for (count, more) in [(257, &[][..]), (3, &["--max-context", "257"])] {
            let (done, _) = logits(folder.path(), count, more);
            let notes = notes(&done);
            assert_eq!((done.code, notes.len()), (0, 1), "{scaling}: {}", done.stderr);
            assert!(notes[0].contains("a context of 257 is beyond the 256 positions"), "{scaling}: {notes:?}");
        }
    }
    // transformers 5's form, and a context that has the factor in it.
    let folder = scaled(&Value::Null);
    edit_config(&folder, |config| {
        let yarn =
            json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16});
        config.insert("rope_parameters".to_owned(), yarn);
    });
    let (done, _) = logits(folder.path(), 65, &[]);
    assert!(done.code == 0 && notes(&done)[0].contains("beyond the 64 positions"), "{}", done.stderr);
    // Without a scaling, the trained context is the end.
    let (done, _) = logits(scaled(&Value::Null).path(), 65, &["--max-context", "65"]);
    assert!(done.code == 1 && done.stderr.contains("max_position_embeddings, 64"), "{}", done.stderr);
}

#[test]
fn dynamic_rope_follows_a_whole_text_and_refuses_one_that_grows() {
    let folder = scaled(&json!({"rope_type": "dynamic", "factor": 4.0}));
    let (done, within) = logits(folder.path(), 64, &["--step"]);
    assert_eq!((done.code, notes(&done)), (0, vec![]), "{}", done.stderr);
    assert!(within == logits(scaled(&Value::Null).path(), 64, &["--step"]).1, "within the trained context it is plain");
    // transformers' base for 100 positions: heads of 16 values.
    let (done, beyond) = logits(folder.path(), 100, &[]);
    assert_eq!((done.code, notes(&done)), (0, vec![]), "{}", done.stderr);
    let plain = scaled(&Value::Null);
    edit_config(&plain, |config| {
        let size =
            config["hidden_size"].as_f64().expect("a size") / config["num_attention_heads"].as_f64().expect("a count");
        let size = config.get("head_dim").and_then(Value::as_f64).unwrap_or(size);
        let base = 1e4 * (4.0f64 * 100.0 / 64.0 - 3.0).powf(size / (size - 2.0));
        let more = json!({"rope_theta": base, "max_position_embeddings": 100});
        config.extend(more.as_object().expect("a table").clone());
    });
    assert!(beyond == logits(plain.path(), 100, &[]).1, "the base of 100 positions");
    assert!(beyond == logits(folder.path(), 100, &["--max-context", "200"]).1, "the text's own length counts");
    for (count, more) in [(65, &["--step"][..]), (3, &["--step", "--max-context", "65"])] {
        let (done, _) = logits(folder.path(), count, more);
        assert!(
            done.code == 1 && done.stderr.contains("beyond 64 positions the base of dynamic RoPE"),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains("give --max-context 64"), "{}", done.stderr);
    }
    let folder = folder.path().to_str().expect("UTF-8");
    let out = TempFolder::new();
    let file = out.path().join("x.fuse");
    let compile = ["compile", "--checkpoint", folder, "--max-context", "65", "-o", file.to_str().expect("UTF-8")];
    let done = fusec(&compile);
    assert!(done.code == 1 && done.stderr.contains("dynamic RoPE changes with every token"), "{}", done.stderr);
}
