//! What goes wrong ends in one clear message on stderr, an exit code of 1 (2 for bad usage), nothing on stdout and no panic.

use std::collections::BTreeMap;
use std::path::Path;

use fuse_tests::{Finished, TempFolder, command, finish, fusec, fuserun, root};
use fusec::artifact::{Artifact, Manifest};
use serde_json::{Value, json};

/// Runs `fuserun` on the CPU with a model and asks for the logits of some tokens.
fn logits(model: &Path, tokens: &str, more: &[&str]) -> Finished {
    let out = TempFolder::new();
    let file = out.path().join("logits.safetensors");
    let mut arguments = vec!["logits", "--device", "cpu", "-m", model.to_str().unwrap(), "--tokens", tokens, "-o"];
    arguments.push(file.to_str().unwrap());
    arguments.extend(more);
    let done = fuserun(&arguments, "");
    assert!(done.code == 0 || !file.exists(), "a failed run leaves no file");
    done
}

/// Checks the shape of a failure and that its one message holds each of `parts`.
fn assert_fails(done: &Finished, code: i32, parts: &[&str]) {
    let Finished { stdout, stderr, .. } = done;
    assert_eq!(done.code, code, "{stderr}");
    assert_eq!(stdout, "", "nothing goes to stdout");
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
    let begins = |line: &&str| line.starts_with("error:") || line.starts_with("error[");
    assert!(stderr.starts_with("error") && stderr.lines().filter(begins).count() == 1, "one message: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}

fn golden(name: &str) -> TempFolder {
    TempFolder::copy_of(&root().join("tests/goldens").join(name))
}

/// Changes a copied checkpoint's config.json.
fn edit_config(folder: &TempFolder, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    edit(config.as_object_mut().unwrap());
    folder.write("config.json", config.to_string());
}

#[test]
fn a_sound_checkpoint_succeeds() {
    let done = logits(golden("llama-tied").path(), "1,2,3", &[]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
}

#[test]
fn truncated_weights() {
    let folder = golden("llama-tied");
    let whole = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    folder.write("model.safetensors", &whole[..whole.len() / 2]);
    let parts = ["model.safetensors", "truncated or corrupt, download it again"];
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &parts);
    folder.write("model.safetensors", &whole[..5]);
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &parts);
    folder.write("model.safetensors", b"");
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["model.safetensors"]);
}

#[test]
fn a_configuration_without_a_key() {
    let folder = golden("llama-tied");
    edit_config(&folder, |config| drop(config.remove("num_hidden_layers")));
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["num_hidden_layers", "config.json"]);
}

#[test]
fn a_configuration_that_is_no_json() {
    let folder = golden("llama-tied");
    folder.write("config.json", "{ \"hidden_size\": ");
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["config.json", "not valid JSON"]);
    folder.write("config.json", "[]");
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["config.json", "not a JSON object"]);
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["there is no config.json"]);
}

#[test]
fn an_architecture_that_nothing_serves() {
    let folder = golden("llama-tied");
    edit_config(&folder, |config| drop(config.insert("architectures".into(), json!(["LlamaNextForCausalLM"]))));
    let parts = ["no description serves LlamaNextForCausalLM", "LlamaForCausalLM", "--description"];
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &parts);
    edit_config(&folder, |config| drop(config.insert("architectures".into(), json!(["MambaForCausalLM"]))));
    let parts = ["MambaForCausalLM needs a selective state space (Mamba), which no operation computes"];
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &parts);
    // A description that is named is taken nevertheless, and refuses what it does not honour as ever.
    let llama = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/llama.toml");
    let named = logits(folder.path(), "1,2", &["--description", llama]);
    assert!(named.code == 0 && named.stderr.contains("is for MambaForCausalLM, which"), "{}", named.stderr);
    edit_config(&folder, |config| drop(config.insert("final_logit_softcapping".into(), json!(30.0))));
    let refused = logits(folder.path(), "1,2", &["--description", llama]);
    assert!(
        refused.code == 1 && refused.stderr.contains("error[F0403]: `final_logit_softcapping`"),
        "{}",
        refused.stderr
    );
    edit_config(&folder, |config| drop(config.remove("architectures")));
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["names no architecture", "--description"]);
}

/// The whole may run its language model otherwise than that runs alone: a description serves both together.
#[test]
fn a_model_of_several_parts_that_nothing_serves() {
    let folder = golden("mistral3");
    let checked = fusec(&["check", "--checkpoint", folder.path().to_str().unwrap()]);
    assert!(checked.stdout.contains(" 21 read once, 15 of other parts than the language model"), "{}", checked.stdout);
    let whole = |name: &'static str| {
        edit_config(&folder, |config| drop(config.insert("architectures".into(), json!([name]))));
    };
    whole("OtherForConditionalGeneration");
    assert_fails(
        &logits(folder.path(), "1,2", &[]),
        1,
        &["no description serves OtherForConditionalGeneration:mistral"],
    );
    whole("MistralForCausalLM");
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["no description serves MistralForCausalLM:mistral"]);
}

#[test]
fn mistakes_in_a_description() {
    let (folder, model) = (TempFolder::new(), golden("llama-tied"));
    let llama = std::fs::read_to_string(root().join("models/llama.toml")).unwrap();
    let with = |from: &str, to: &str, parts: &[&str]| {
        assert!(llama.contains(from));
        let path = folder.write("mine.toml", llama.replacen(from, to, 1));
        let path = path.to_str().unwrap();
        assert_fails(&logits(model.path(), "1,2", &["--description", path]), 1, parts);
    };
    with("op = \"rms_norm\"", "op = \"rms_nrom\"", &["mine.toml", "rms_nrom", "rms_norm"]);
    with("self_attn.q_proj.weight", "self_attn.q_porj.weight", &["self_attn.q_porj.weight", "did you mean"]);
    with("schema = 1", "schema = 99", &["mine.toml", "schema"]);
    with("[layer]", "[layer", &["mine.toml"]);
    let missing = folder.path().join("none.toml");
    let done = logits(model.path(), "1,2", &["--description", missing.to_str().unwrap()]);
    assert_fails(&done, 1, &["none.toml", "cannot read the description"]);
}

#[test]
fn a_checkpoint_of_another_family() {
    let folder = golden("qwen3");
    edit_config(&folder, |config| {
        config.insert("architectures".into(), json!(["LlamaForCausalLM"]));
        for key in ["max_window_layers", "use_sliding_window", "sliding_window", "layer_types"] {
            config.remove(key);
        }
    });
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["F0603", "nothing reads", "q_norm.weight"]);
    let done = logits(
        golden("llama-tied").path(),
        "1,2",
        &["--description", root().join("models/qwen3.toml").to_str().unwrap()],
    );
    assert!(done.code == 1 && done.stderr.starts_with("config.json is for LlamaForCausalLM, which"), "{}", done.stderr);
    assert!(done.stderr.contains("error[F0601]") && done.stderr.contains("q_norm.weight"), "{}", done.stderr);
}

#[test]
fn tokens_that_do_not_fit() {
    let folder = golden("llama-tied");
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let vocabulary = serde_json::from_str::<Value>(&config).unwrap()["vocab_size"].as_u64().unwrap();
    let parts = [format!("token {vocabulary}"), "vocabulary".into()];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    assert_fails(&logits(folder.path(), &format!("1,{vocabulary}"), &[]), 1, &parts);
    assert_fails(&logits(folder.path(), &format!("{}", u32::MAX), &[]), 1, &["vocabulary"]);
    let long = ["1"; 9].join(",");
    assert_fails(&logits(folder.path(), &long, &["--max-context", "8"]), 1, &["9 tokens", "holds 8", "--max-context"]);
    let interpreter = ["--device", "interpreter"];
    for tokens in [format!("1,{vocabulary}"), format!("{}", u32::MAX)] {
        assert_fails(&logits_on(&interpreter, folder.path(), &tokens), 1, &["vocabulary"]);
    }
    assert_fails(
        &logits_on(&["--device", "interpreter", "--max-context", "8"], folder.path(), &long),
        1,
        &["9 tokens"],
    );
}

fn logits_on(device: &[&str], model: &Path, tokens: &str) -> Finished {
    let out = TempFolder::new();
    let file = out.path().join("logits.safetensors");
    let rest = ["-m", model.to_str().unwrap(), "--tokens", tokens, "-o", file.to_str().unwrap()];
    fuserun(&[&["logits"], device, &rest].concat(), "")
}

#[test]
fn a_context_that_does_not_fit() {
    let folder = golden("llama-tied");
    let done = logits(folder.path(), "1,2", &["--max-context", "257"]);
    assert_fails(&done, 1, &["--max-context 257", "max_position_embeddings", "256"]);
    assert_fails(&logits(folder.path(), "1,2", &["--max-context", "0"]), 2, &["--max-context"]);
    edit_config(&folder, |config| drop(config.remove("max_position_embeddings")));
    assert_fails(&logits(folder.path(), "1,2", &["--max-context", "3000000000"]), 1, &["3000000000", "--max-context"]);
    let done =
        fuserun(&["generate", "--device", "cpu", "--max-context", "4", "Call me anything but that, my friend"], "");
    assert_fails(&done, 1, &["the context holds 4", "--max-context"]);
}

#[test]
fn files_that_are_not_there_or_nothing() {
    let folder = TempFolder::new();
    let missing = folder.path().join("nothing-here");
    assert_fails(&logits(&missing, "1,2", &[]), 1, &["nothing-here", "no such file"]);
    let checkpoint = root().join("tests/goldens/llama-tied");
    for name in ["missing.gguf", "missing.fuse", "missing.toml"] {
        let more = ["--checkpoint", checkpoint.to_str().unwrap()];
        assert_fails(&logits(&folder.path().join(name), "1,2", &more), 1, &[name]);
    }
    assert_fails(&logits(folder.path(), "1,2", &[]), 1, &["there is no config.json"]);
    let odd = folder.write("odd.bin", "hello");
    assert_fails(&logits(&odd, "1,2", &[]), 1, &["odd.bin", "not a GGUF file"]);
    let out = folder.path().join("no/such/folder/logits.safetensors");
    let done = fuserun(&["logits", "--device", "cpu", "--tokens", "1,2", "-o", out.to_str().unwrap()], "");
    assert_fails(&done, 1, &["cannot write", "no/such/folder"]);
}

#[test]
fn a_corrupt_gguf() {
    let folder = TempFolder::new();
    for (name, contents) in [
        ("magic.gguf", &b"FUGG\x03\0\0\0\0\0\0\0\0\0\0\0"[..]),
        ("short.gguf", &b"GGUF\x03\0"[..]),
        ("empty.gguf", &b""[..]),
        ("counts.gguf", &b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x7f"[..]),
    ] {
        assert_fails(&logits(&folder.write(name, contents), "1,2", &[]), 1, &[name]);
    }
}

#[test]
fn a_corrupt_artifact() {
    let folder = TempFolder::new();
    let checkpoint = root().join("tests/goldens/llama-tied");
    let with = ["--checkpoint", checkpoint.to_str().unwrap()];
    for (name, contents) in [
        ("text.fuse", &b"not a zip"[..]),
        ("empty.fuse", b""),
        ("zip.fuse", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ] {
        assert_fails(&logits(&folder.write(name, contents), "1,2", &with), 1, &[name]);
    }
    let sound = Artifact {
        graph_text: "this is no graph".into(),
        plans: BTreeMap::from([("sm_90a".into(), r#"{"kernels": []}"#.into())]),
        description_toml: std::fs::read_to_string(root().join("models/llama.toml")).unwrap(),
        config_json: "null".into(),
        ..Artifact::default()
    };
    let path = folder.path().join("graph.fuse");
    sound.write(&path).unwrap();
    assert_fails(&logits(&path, "1,2", &with), 1, &["graph.fuse", "graph.txt"]);
    let path = folder.path().join("description.fuse");
    Artifact { description_toml: "= broken".into(), ..sound.clone() }.write(&path).unwrap();
    assert_fails(&logits(&path, "1,2", &with), 1, &["description.toml"]);
    assert_fails(&logits(&path, "1,2", &[]), 1, &["--checkpoint"]);
}

#[test]
fn names_that_contradict_each_other() {
    let (folder, llama) = (golden("llama-tied"), root().join("models/llama.toml"));
    let (folder, llama) = (folder.path(), llama.to_str().unwrap());
    let checkpoint = ["--checkpoint", folder.to_str().unwrap()];
    assert_fails(&logits(folder, "1", &checkpoint), 1, &["is a checkpoint: leave out --checkpoint"]);
    let twice = ["--description", llama];
    assert_fails(&logits(Path::new(llama), "1", &twice), 1, &["is a description: leave out --description"]);
    let done = logits(&folder.join("x.fuse"), "1", &["--passes", "none"]);
    assert_fails(&done, 1, &["x.fuse is compiled", "--passes and --tuning to fusec compile"]);
}

#[test]
fn an_artifact_of_another_configuration() {
    let folder = golden("llama-tied");
    let out = folder.path().join("tiny.fuse");
    let compile = ["compile", "--checkpoint", folder.path().to_str().unwrap(), "-o", out.to_str().unwrap()];
    let mut command = command("fusec");
    let done = finish(command.args(compile).args(["--max-context", "8"]).env("FUSE_NVRTC", "/nonexistent"), "");
    assert_eq!(done.code, 0, "{}", done.stderr);
    let run = |tokens: &str| logits(&out, tokens, &["--checkpoint", folder.path().to_str().unwrap()]);
    assert_eq!(run("1,2,3").code, 0, "{}", run("1,2,3").stderr);
    assert_fails(&run("1,2,3,4,5,6,7,8,9"), 1, &["9 tokens", "holds 8"]);
    edit_config(&folder, |config| drop(config.insert("rms_norm_eps".into(), json!(0.5))));
    assert_fails(&run("1,2,3"), 1, &["tiny.fuse", "another configuration", "--checkpoint or --config"]);
}

#[test]
fn an_artifact_without_this_gpu() {
    let manifest = Manifest { name: "tiny".into(), ..Manifest::default() };
    let plans = ["sm_90a", "sm_120"].map(|arch| (arch.into(), "{}".into())).into();
    let artifact = Artifact { manifest, plans, ..Artifact::default() };
    let message = artifact.plan_for(8, 9).expect_err("there is no plan for 8.9").to_string();
    assert_eq!(message, "`tiny` is compiled for sm_120, sm_90a, and this GPU is sm_89: compile it with `--arch sm_89`");
    assert_eq!(artifact.plan_for(9, 0).unwrap().0.to_string(), "sm_90a");
}

#[test]
fn a_device_that_is_not_there() {
    let folder = golden("llama-tied");
    let folder = folder.path();
    assert_fails(&logits_on(&["--device", "tpu"], folder, "1"), 2, &["tpu", "auto, cpu, cuda:N"]);
    assert_fails(&logits_on(&["--device", "cuda:x"], folder, "1"), 2, &["cuda:x"]);
    assert_fails(&logits_on(&["--device", "cuda:99"], folder, "1"), 1, &["cannot open cuda:99"]);
}

#[test]
fn a_profile_that_cannot_be_taken() {
    let folder = golden("llama-tied");
    let profile = |more: &[&str]| {
        fuserun(&[&["profile", "--device", "cpu", "-m", folder.path().to_str().unwrap()], more].concat(), "")
    };
    assert_fails(&profile(&[]), 1, &["profile takes a GPU's kernels apart", "needs an NVIDIA GPU"]);
    assert_fails(&profile(&["--depth", "250"]), 1, &["--depth 250 and 20 steps need 272 positions", "has 256"]);
    assert_fails(&profile(&["--runs", "0"]), 1, &["--runs"]);
    assert_fails(&profile(&["--batch", "x"]), 2, &["--batch"]);
}

#[test]
fn bad_usage() {
    for arguments in [
        &["generate", "--temperature", "warm"][..],
        &["generate", "--no-such-flag"],
        &["generate", "-n", "-3"],
        &["nonsense"],
        &["logits", "--tokens", "1,x", "-o", "x.safetensors"],
        &["logits", "--tokens", "1"],
        &["tokenize"],
    ] {
        let done = fuserun(arguments, "");
        assert_fails(&done, 2, &[]);
    }
    assert_fails(&fusec(&["nonsense"]), 2, &["nonsense"]);
}

#[test]
fn sampling_that_has_no_meaning() {
    for (arguments, part) in [
        (["--temperature", "-1"], "the temperature is -1"),
        (["--temperature", "nan"], "the temperature is NaN"),
        (["--top-p", "0"], "top-p is 0"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["--min-p", "2"], "min-p is 2"),
        (["-n", "0"], "--max-tokens"),
        (["--passes", "-fuse-mpl"], "did you mean `fuse-mlp`?"),
    ] {
        assert_fails(&fuserun(&[&["generate", "--device", "cpu", "Call me"], &arguments[..]].concat(), ""), 2, &[part]);
    }
    let folder = root().join("models/demo");
    let folder = folder.to_str().expect("a path that is text");
    let done = fuserun(&["generate", "--device", "cpu", "-m", folder, "--chat", "Hello"], "");
    assert_fails(&done, 1, &["models/demo has no chat template"]);
    let done = fuserun(&["generate", "--device", "interpreter", "Hello"], "");
    assert_fails(&done, 1, &["the interpreter computes logits only"]);
}

#[test]
fn what_the_compiler_refuses() {
    let folder = TempFolder::new();
    let llama = std::fs::read_to_string(root().join("models/llama.toml")).unwrap();
    let broken = folder.write("mine.toml", llama.replacen("op = \"rms_norm\"", "op = \"rms_nrom\"", 1));
    let out = folder.path().join("mine.fuse");
    let compile = |more: &[&str]| fusec(&[&["compile"], more, &["-o", out.to_str().unwrap()]].concat());
    assert_fails(&compile(&[broken.to_str().unwrap()]), 1, &["mine.toml", "rms_nrom"]);
    assert_fails(&compile(&[folder.path().join("none.toml").to_str().unwrap()]), 1, &["none.toml"]);
    let config = folder.write("config.json", r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 8}"#);
    let llama = root().join("models/llama.toml");
    let done = compile(&[llama.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    assert_fails(&done, 1, &["config.json", "num_hidden_layers"]);
    assert!(!out.exists());
}
