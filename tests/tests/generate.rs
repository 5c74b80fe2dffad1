//! `fuserun generate` as a user runs it.

use std::collections::BTreeSet;
use std::process::Stdio;

use fuse_tests::{Finished, command, finish, fuserun, gpu, root, smollm2_gguf};
use fuserun::demo;
use fuserun::device::Gpu;
use serde_json::Value;

/// Runs `fuserun generate` on a device and checks that it succeeds.
fn generate(device: &str, arguments: &[&str], input: &str) -> Finished {
    let done = fuserun(&[&["generate", "--device", device], arguments].concat(), input);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    done
}

/// The object that `--json` prints.
fn json(device: &str, arguments: &[&str]) -> Value {
    let done = generate(device, &[arguments, &["--json"]].concat(), "");
    assert_eq!(done.stdout.lines().count(), 1, "one object on one line: {}", done.stdout);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

fn tokens(object: &Value) -> Vec<u64> {
    object["tokens"].as_array().expect("a list of tokens").iter().map(|token| token.as_u64().expect("an id")).collect()
}

#[test]
fn ten_runs_give_the_same_tokens() {
    repeat("cpu");
}

#[test]
fn ten_runs_give_the_same_tokens_on_the_gpu() {
    if gpu().is_some() {
        repeat("cuda:0");
    }
}

fn repeat(device: &str) {
    let ways: [&[&str]; 3] =
        [&["--temperature", "0"], &["--seed", "7"], &["--temperature", "1.5", "--top-p", "0.9", "--seed", "8"]];
    let mut told = BTreeSet::new();
    for way in ways {
        let run = || tokens(&json(device, &[&["Call me", "-n", "32"], way].concat()));
        let first = run();
        assert_eq!(first.len(), 32);
        for again in 1..10 {
            assert_eq!(run(), first, "{way:?}, run {again}");
        }
        told.insert(first);
    }
    assert_eq!(told.len(), ways.len(), "each way tells something else");
    assert_ne!(
        tokens(&json(device, &["Call me", "-n", "32", "--seed", "9"])),
        tokens(&json(device, &["Call me", "-n", "32", "--seed", "10"])),
        "another seed, another text"
    );
}

#[test]
fn threads_do_not_change_the_tokens() {
    let run = |threads| tokens(&json("cpu", &["Call me", "-n", "48", "--threads", threads]));
    assert_eq!(run("1"), run("2"));
    assert_eq!(run("1"), run("3"));
}

#[test]
fn the_object_has_what_is_documented() {
    let object = json("cpu", &["Call me", "-n", "5"]);
    let keys: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    let documented = [
        "model",
        "device",
        "prompt",
        "text",
        "finish_reason",
        "prompt_tokens",
        "tokens",
        "sampling",
        "load_seconds",
        "first_token_seconds",
        "decode_tokens_per_second",
    ];
    assert_eq!(keys, documented);
    let guide = std::fs::read_to_string(root().join("docs/guide.md")).expect("the guide is there");
    for key in documented {
        assert!(guide.contains(&format!("| `{key}` |")), "docs/guide.md says what {key} is");
    }
    assert_eq!((object["prompt"].as_str(), object["finish_reason"].as_str()), (Some("Call me"), Some("length")));
    assert_eq!((object["prompt_tokens"].as_array().map(Vec::len), tokens(&object).len()), (Some(3), 5));
    let ids: Vec<u32> = tokens(&object).iter().map(|&token| token as u32).collect();
    assert_eq!(object["text"].as_str(), Some(demo::tokenizer().unwrap().decode(&ids, true).unwrap().as_str()));
    assert!(object["decode_tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
}

#[test]
fn text_goes_to_stdout_and_the_rest_to_stderr() {
    let object = json("cpu", &["Call me", "-n", "9"]);
    let done = generate("cpu", &["Call me", "-n", "9"], "");
    assert_eq!(done.stdout, format!("{}\n", object["text"].as_str().unwrap()));
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(
        done.stderr.contains("tok/s") && done.stderr.contains("temperature 0.8, top-k 50, seed 0"),
        "{}",
        done.stderr
    );
    let silent = fuserun(&["generate", "Call me", "-n", "2"], "");
    assert_eq!(silent.code, 0);
    assert!(Gpu::count() > 0 || silent.stderr.contains("no NVIDIA GPU found: running on the CPU"), "{}", silent.stderr);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for more in [&[][..], &["--json"]] {
        let mut program = command("fuserun");
        program.args(["generate", "--device", "cpu", "-n", "64", "Call me"]).args(more);
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("fuserun starts");
        drop(child.stdout.take());
        let done = child.wait_with_output().expect("fuserun ends");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && !said.contains("panicked"), "{more:?}: {said}");
    }
}

#[test]
fn flags_read_their_variables() {
    for (value, object) in [("1", true), ("true", true), ("0", false), ("", false)] {
        let mut program = command("fuserun");
        program.args(["generate", "--device", "cpu", "Call me"]).env("FUSE_MAX_TOKENS", "2").env("FUSE_JSON", value);
        let done = finish(&mut program, "");
        assert_eq!((done.code, done.stdout.starts_with('{')), (0, object), "FUSE_JSON={value}: {}", done.stderr);
    }
}

#[test]
fn a_prompt_comes_from_stdin_or_is_the_demos_own() {
    let spoken = generate("cpu", &["Call me", "-n", "6"], "").stdout;
    assert_eq!(generate("cpu", &["-", "-n", "6"], "Call me").stdout, spoken);
    assert_eq!(generate("cpu", &["-n", "6"], "").stdout, spoken);
    let none = fuserun(&["generate", "-m", smollm2_gguf().to_str().unwrap(), "--device", "cpu"], "");
    assert!(none.code == 1 && none.stderr.contains("give a PROMPT"), "{}", none.stderr);
}

#[test]
fn stop_texts_end_before_they_appear() {
    let whole = json("cpu", &["Call me", "-n", "40", "--temperature", "0"]);
    let text = whole["text"].as_str().unwrap();
    let middle = text.char_indices().map(|(at, _)| at).find(|at| at * 2 >= text.len()).unwrap();
    let stop: String = text[middle..].chars().take(9).collect();
    let (at, stop) = (text.find(&stop).unwrap(), stop.as_str());
    assert!(at > 0);
    let cut = json("cpu", &["Call me", "-n", "40", "--temperature", "0", "--stop", stop, "--stop", "never said"]);
    assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (Some(&text[..at]), Some("stop")));
    assert!(tokens(&cut).len() < tokens(&whole).len());
}

#[test]
fn the_end_of_a_text_ends_it_unless_it_is_ignored() {
    let model = smollm2_gguf();
    let ask = ["-m", model.to_str().unwrap(), "--chat", "What is the capital of France?", "-n", "20"];
    let short = json("cpu", &ask);
    assert_eq!(short["finish_reason"].as_str(), Some("stop"));
    assert_eq!(tokens(&short).last(), Some(&2));
    assert_eq!(short["text"].as_str(), Some("The capital of France is Paris."));
    let long = json("cpu", &[&ask[..], &["--ignore-eos"]].concat());
    assert_eq!((tokens(&long).len(), long["finish_reason"].as_str()), (20, Some("length")));
    assert_eq!(tokens(&long)[..tokens(&short).len()], tokens(&short));
    assert_eq!(long["sampling"]["temperature"].as_f64(), Some(0.0), "a GGUF file says nothing of sampling: greedy");
}

#[test]
fn the_gpu_answers_a_question() {
    if gpu().is_some() {
        let model = smollm2_gguf();
        let answer =
            json("cuda:0", &["-m", model.to_str().unwrap(), "--chat", "What is the capital of France?", "-n", "20"]);
        assert_eq!(answer["text"].as_str(), Some("The capital of France is Paris."));
    }
}

#[test]
fn the_model_says_how_it_is_sampled() {
    let sampling = |more: &[&str]| json("cpu", &[&["Call me", "-n", "2"], more].concat())["sampling"].clone();
    let of = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let own = of(r#"{"temperature": 0.8, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "seed": 0}"#);
    assert_eq!(sampling(&[]), own);
    let folder = root().join("models/demo");
    assert_eq!(sampling(&["-m", folder.to_str().unwrap()]), own);
    let changed = of(r#"{"temperature": 0.3, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "seed": 5}"#);
    let flags = ["--temperature", "0.3", "--top-k", "0", "--top-p", "0.9", "--min-p", "0.05", "--seed", "5"];
    assert_eq!(sampling(&flags), changed);
    assert_eq!(sampling(&["--temperature", "0"])["temperature"].as_f64(), Some(0.0));
}

#[test]
fn the_context_ends_a_text() {
    let object = json("cpu", &["Call me", "-n", "100", "--max-context", "16", "--ignore-eos"]);
    let made = tokens(&object).len();
    assert!((13..=14).contains(&made), "{made} tokens after 3 in a context of 16");
    assert_eq!(object["finish_reason"].as_str(), Some("length"));
}

#[test]
fn several_prompts_are_answered_as_each_by_itself() {
    let folder = fuse_tests::TempFolder::new();
    let lines: Vec<String> = (0..9).map(|index| format!("The whale {index} of")).collect();
    let file = folder.write("prompts.txt", format!("{}\n\n{}\n", lines[..4].join("\n"), lines[4..].join("\n")));
    let file = file.to_str().unwrap();
    let all = |more: &[&str]| -> Vec<Value> {
        let done =
            generate("cpu", &[&["-n", "6", "--seed", "5", "--json", "Call me", "--prompts", file], more].concat(), "");
        done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let told = all(&[]);
    assert_eq!(told.len(), 10);
    let prompts: Vec<&str> = told.iter().filter_map(|object| object["prompt"].as_str()).collect();
    assert_eq!(prompts, [&["Call me"], &lines.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    for object in [&told[0], &told[7]] {
        let alone = json("cpu", &["-n", "6", "--seed", "5", object["prompt"].as_str().unwrap()]);
        assert_eq!((&alone["tokens"], &alone["text"]), (&object["tokens"], &object["text"]));
        assert_eq!(alone["finish_reason"], object["finish_reason"]);
    }
    let text = generate("cpu", &["-n", "4", "--temperature", "0", "Call me", "The whale"], "").stdout;
    assert!(text.starts_with("> Call me\n") && text.contains("\n\n> The whale\n"), "{text}");
    let from_stdin = generate("cpu", &["-n", "2", "--json", "--prompts", "-"], "Call me\nThe whale\n").stdout;
    assert_eq!(from_stdin.lines().count(), 2);
    for (arguments, error) in [
        (&["-", "--prompts", "-"][..], "stdin is read once"),
        (&["--prompts", "nowhere.txt"], "cannot read nowhere.txt"),
        (&["--prompts", "/dev/null"], "/dev/null has no prompts"),
        (&["--max-context", "8", "Call me", "The whale and the sea and the ship and the sky"], "prompt 2"),
    ] {
        let done = fuserun(&[&["generate", "--device", "cpu"], arguments].concat(), "");
        assert!(done.code == 1 && done.stderr.contains(error), "{arguments:?}: {}", done.stderr);
    }
}

#[test]
fn a_system_prompt_comes_before_the_message() {
    let ask = |more: &[&str]| {
        json("cpu", &[&["--chat", "Hast seen him?", "-n", "2"], more].concat())["prompt_tokens"].clone()
    };
    let with = ask(&["--system", "Be brief."]);
    let folder = root().join("models/demo");
    let text = demo::tokenizer().unwrap();
    let ids: Vec<u32> = serde_json::from_value(with.clone()).unwrap();
    assert!(text.decode(&ids, false).unwrap().starts_with("Be brief."), "{with}");
    assert_ne!(with, ask(&[]));
    let alone = fuserun(&["generate", "-m", folder.to_str().unwrap(), "--system", "Be brief.", "x"], "");
    assert!(alone.code == 2 && alone.stderr.contains("--chat"), "{}", alone.stderr);
}
