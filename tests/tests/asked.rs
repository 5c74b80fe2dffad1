//! What a model asks of its texts in the files beside its weights, as a user of `fuserun generate` sees it.

use std::collections::BTreeSet;

use fuse_tests::gguf::{Meta, gguf_with, tokenizer_meta};
use fuse_tests::{Finished, TempFolder, fuserun, root};
use serde_json::{Value, json};

const PROMPT: &str = "Call me";

/// The demo model with another generation_config.json.
fn demo(generation: Value) -> TempFolder {
    let folder = TempFolder::copy_of(&root().join("models/demo"));
    folder.write("generation_config.json", generation.to_string());
    folder
}

fn run(folder: &TempFolder, more: &[&str]) -> Finished {
    let model = folder.path().to_str().unwrap();
    fuserun(&[&["generate", "--device", "cpu", "-m", model, PROMPT], more].concat(), "")
}

fn object(folder: &TempFolder, more: &[&str]) -> Value {
    let done = run(folder, &[more, &["--json"]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

fn tokens(object: &Value, key: &str) -> Vec<u64> {
    object[key].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect()
}

/// What the demo model writes where it is asked for nothing: greedy, 24 tokens.
fn plain() -> Value {
    object(&demo(json!({})), &["-n", "24"])
}

#[test]
fn stop_strings_end_a_text_and_stop_adds_to_them() {
    let whole = plain();
    let text = whole["text"].as_str().unwrap();
    let middle = text.char_indices().map(|(at, _)| at).find(|at| at * 2 >= text.len()).unwrap();
    let stop = &text[middle..middle + text[middle..].chars().next().unwrap().len_utf8()];
    let before = &text[..text.find(stop).unwrap()];
    for stops in [json!([stop, "never said"]), json!(stop)] {
        let cut = object(&demo(json!({ "stop_strings": stops })), &["-n", "24", "--stop", "nor this"]);
        assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (Some(before), Some("stop")));
    }
    let first = &text[..text.chars().next().unwrap().len_utf8()];
    let none = object(&demo(json!({ "stop_strings": [stop] })), &["-n", "24", "--stop", first]);
    assert_eq!(none["text"].as_str(), Some(""));
}

#[test]
fn max_new_tokens_and_max_length_stand_where_the_user_says_nothing() {
    let made = |config: Value, more: &[&str]| {
        let object = object(&demo(config), more);
        assert_eq!(object["finish_reason"].as_str(), Some("length"));
        tokens(&object, "tokens").len()
    };
    let prompt = tokens(&plain(), "prompt_tokens").len();
    assert_eq!(made(json!({ "max_new_tokens": 5, "max_length": 4096 }), &[]), 5);
    assert_eq!(made(json!({ "max_new_tokens": 5 }), &["-n", "7"]), 7);
    assert_eq!(made(json!({ "max_length": prompt + 4 }), &[]), 4);
    let short = run(&demo(json!({ "max_length": prompt })), &[]);
    assert_eq!((short.code, short.stdout.as_str()), (1, ""));
    let said = format!(
        "error: the prompt has {prompt} tokens, and max_length of generation_config.json is {prompt} with the prompt; give --max-tokens\n"
    );
    assert!(short.stderr.ends_with(&said), "{}", short.stderr);
}

#[test]
fn suppressed_tokens_are_not_chosen() {
    let first = tokens(&plain(), "tokens")[0];
    let other = object(&demo(json!({ "suppress_tokens": [first, 1_000_000, -1] })), &["-n", "24"]);
    assert!(!tokens(&other, "tokens").contains(&first));
    assert_eq!(other["sampling"]["suppress_tokens"], json!([first, 1_000_000]));
}

#[test]
fn a_repetition_penalty_holds_for_the_prompt_and_the_text() {
    let config = json!({ "repetition_penalty": 1e9 });
    for (config, more) in [
        (config.clone(), &[][..]),
        (json!({}), &["--repetition-penalty", "1e9"]),
        (json!({}), &["--repeat-penalty", "1e9"]),
    ] {
        let object = object(&demo(config), &[&["-n", "24"], more].concat());
        let made = [tokens(&object, "prompt_tokens"), tokens(&object, "tokens")].concat();
        assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len(), "each token once: {made:?}");
        assert_eq!(object["sampling"]["repetition_penalty"].as_f64(), Some(1e9));
    }
    let off = object(&demo(config), &["-n", "24", "--repetition-penalty", "1"]);
    assert_eq!(off["tokens"], plain()["tokens"]);
    let wrong = run(&demo(json!({})), &["--repetition-penalty", "0"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("the repetition penalty is 0; give 1e-9 to 1e9, 1 is off"), "{}", wrong.stderr);
}

#[test]
fn each_of_several_ends_ends_a_text() {
    let made = tokens(&plain(), "tokens");
    let (early, late) = (made[9], made[20]);
    let end = made.iter().position(|token| [early, late].contains(token)).unwrap();
    let cut = object(&demo(json!({ "eos_token_id": [late, early] })), &["-n", "24"]);
    assert_eq!((tokens(&cut, "tokens"), cut["finish_reason"].as_str()), (made[..=end].to_vec(), Some("stop")));
    // More than the device watches for: the host sees the rest.
    let many: Vec<u64> =
        (500..520).chain([early, late]).filter(|id| *id == early || *id == late || !made.contains(id)).collect();
    assert_eq!(object(&demo(json!({ "eos_token_id": many })), &["-n", "24"])["tokens"], cut["tokens"]);
}

#[test]
fn what_is_not_honoured_is_one_line() {
    let folder = demo(
        json!({ "no_repeat_ngram_size": 3, "typical_p": 0.5, "do_sample": true, "cache_implementation": "static" }),
    );
    let done = run(&folder, &["-n", "2"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let line = "generation_config.json asks for no_repeat_ngram_size 3, typical_p 0.5: not honoured, other programs may write another text";
    assert_eq!(done.stderr.lines().filter(|found| *found == line).count(), 1, "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 2, "{}", done.stderr);
    let wrong = run(&demo(json!({ "suppress_tokens": "all" })), &[]);
    assert_eq!(
        (wrong.code, wrong.stderr.as_str()),
        (1, "error: generation_config.json: suppress_tokens is \"all\", not a list of tokens\n")
    );
}

/// A token of the text becomes a special one: a stop text that is or holds it ends the text, which is shown without it.
#[test]
fn a_stop_text_may_be_or_hold_a_special_token() {
    let whole = plain();
    let made = tokens(&whole, "tokens");
    let tokenizer = fuserun::demo::tokenizer().unwrap();
    let at = (8..made.len()).find(|&at| !made[..at].contains(&made[at])).unwrap();
    let special = tokenizer.id_to_token(made[at] as u32).unwrap();
    let folder = demo(json!({}));
    let path = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["added_tokens_decoder"] = json!({ made[at].to_string(): { "content": special, "special": true } });
    folder.write("tokenizer_config.json", config.to_string());

    let text = |ids: &[u64]| tokenizer.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), true).unwrap();
    let (before, without) = (text(&made[..at]), [&made[..at], &made[at + 1..]].concat());
    let shown = object(&folder, &["-n", "24"]);
    if !without.contains(&made[at]) {
        assert_eq!(shown["text"].as_str(), Some(text(&without).as_str()), "it is not shown");
    }
    let last = before.chars().next_back().unwrap();
    for (stop, shown) in
        [(special.clone(), before.as_str()), (format!("{last}{special}"), &before[..before.len() - last.len_utf8()])]
    {
        let cut = object(&folder, &["-n", "24", "--stop", &stop]);
        assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (Some(shown), Some("stop")), "{stop}");
        assert_eq!(tokens(&cut, "tokens"), made[..=at]);
    }
}

/// `generate --json` with the demo model as a GGUF file of these metadata, and what it says on stderr.
fn of_gguf(sampling: &[(&str, Meta)], more: &[&str]) -> (Value, String) {
    let demo = root().join("models/demo");
    let folder = TempFolder::new();
    let metadata = [&tokenizer_meta(&demo)[..], sampling].concat();
    let file = folder.write("demo.gguf", gguf_with(&demo, &[], &metadata));
    let model = file.to_str().unwrap();
    let done =
        fuserun(&[&["generate", "--device", "cpu", "-n", "24", "--json", "-m", model, PROMPT], more].concat(), "");
    assert_eq!(done.code, 0, "{}", done.stderr);
    (serde_json::from_str(&done.stdout).unwrap(), done.stderr)
}

#[test]
fn a_gguf_file_asks_by_its_general_sampling_keys() {
    let (silent, notes) = of_gguf(&[], &[]);
    assert_eq!((&silent["tokens"], &silent["prompt_tokens"]), (&plain()["tokens"], &plain()["prompt_tokens"]));
    assert_eq!((silent["sampling"]["temperature"].as_f64(), notes.as_str()), (Some(0.0), ""));
    let keys = [
        ("general.sampling.temp", Meta::F32(0.75)),
        ("general.sampling.top_k", Meta::U32(40)),
        ("general.sampling.top_p", Meta::F32(0.875)),
        ("general.sampling.min_p", Meta::F32(0.0625)),
    ];
    let (asked, notes) = of_gguf(&keys, &[]);
    let folder = demo(json!({"do_sample": true, "temperature": 0.75, "top_k": 40, "top_p": 0.875, "min_p": 0.0625}));
    let same = object(&folder, &["-n", "24"]);
    assert_eq!((&asked["tokens"], &asked["sampling"], notes.as_str()), (&same["tokens"], &same["sampling"], ""));
    assert_ne!(asked["tokens"], silent["tokens"]);
    // Each of them alone, and what the user says above it.
    for (key, value) in &keys {
        let (one, _) = of_gguf(&[(*key, value.clone())], &[]);
        let name = match key.rsplit_once('.').unwrap().1 {
            "temp" => "temperature",
            name => name,
        };
        assert_eq!(one["sampling"][name], same["sampling"][name], "{key}");
        assert_ne!(one["sampling"]["temperature"].as_f64(), Some(0.0), "{key} samples");
    }
    assert_eq!(of_gguf(&keys, &["--temperature", "0"]).0["tokens"], silent["tokens"]);
    let (penalised, notes) = of_gguf(
        &[("general.sampling.penalty_repeat", Meta::F32(1e9)), ("general.sampling.mirostat", Meta::U32(2))],
        &[],
    );
    let made = [tokens(&penalised, "prompt_tokens"), tokens(&penalised, "tokens")].concat();
    assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len(), "each token once: {made:?}");
    assert!(
        notes.lines().count() == 1 && notes.contains("asks for general.sampling.mirostat 2: not honoured"),
        "{notes}"
    );
}
