//! Files and folders that are handed over by mistake: each ends in one message that names the file and says what to do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use fuse_tests::{Finished, TempFolder, fusec, fuserun, root};
use serde_json::{Value, json};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n";
const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>model.safetensors</title></head></html>\n";

fn logits(model: &Path, more: &[&str]) -> Finished {
    let out = TempFolder::new();
    let file = out.path().join("logits.safetensors");
    let named = ["logits", "--device", "cpu", "--tokens", "1,2", "-m", text(model), "-o", text(&file)];
    fuserun(&[&named[..], more].concat(), "")
}

/// The one message of a failure, which holds each of `parts`.
fn refused(done: &Finished, parts: &[&str]) -> String {
    let Finished { code, stdout, stderr } = done;
    assert_eq!((*code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.starts_with("error") && !stderr.contains("panicked"), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error")).count(), 1, "one message: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
    stderr.trim_end().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn golden() -> TempFolder {
    TempFolder::copy_of(&root().join("tests/goldens/llama-tied"))
}

fn edit(folder: &TempFolder, changes: Value) {
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fs::write(path, config.to_string()).unwrap();
}

fn remove(folder: &TempFolder, name: &str) {
    fs::remove_file(folder.path().join(name)).unwrap();
}

#[test]
fn a_pointer_or_a_page_in_the_place_of_a_file() {
    let pointer = "it is a Git LFS pointer, and the file of 988097824 bytes that it stands for was not downloaded: run `git lfs pull`";
    let page = "it is a web page: the page about the file was saved in its place; download the file itself";
    for (contents, said) in [(POINTER, pointer), (PAGE, page)] {
        for name in ["config.json", "model.safetensors"] {
            let folder = golden();
            folder.write(name, contents);
            let error = refused(&logits(folder.path(), &[]), &[said]);
            assert!(error.starts_with(&format!("error: {}: it is", folder.path().join(name).display())), "{error}");
            refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &[name, said]);
        }
        let shards = golden();
        fs::rename(shards.path().join("model.safetensors"), shards.path().join("a.safetensors")).unwrap();
        shards.write("b.safetensors", contents);
        refused(&logits(shards.path(), &[]), &["b.safetensors", said]);
        shards.write("model.safetensors.index.json", contents);
        refused(&logits(shards.path(), &[]), &["model.safetensors.index.json", said]);

        let folder = TempFolder::copy_of(&root().join("models/demo"));
        let generate = |more: &[&str]| {
            fuserun(&[&["generate", "--device", "cpu", "-m", text(folder.path()), "hi"], more].concat(), "")
        };
        for (name, flags) in
            [("generation_config.json", &[][..]), ("chat_template.jinja", &["--chat"]), ("tokenizer.json", &[])]
        {
            let before = fs::read(folder.path().join(name)).ok();
            folder.write(name, contents);
            refused(&generate(flags), &[name, said]);
            match before {
                Some(before) => drop(folder.write(name, before)),
                None => remove(&folder, name),
            }
        }
        let gguf = folder.write("model.gguf", contents);
        refused(&logits(&gguf, &[]), &["model.gguf: not a usable GGUF file: it is", said]);
        refused(&fuserun(&["tokenize", "-m", text(&gguf), "hi"], ""), &["model.gguf", said]);
        let fuse = folder.write("model.fuse", contents);
        refused(&logits(&fuse, &["--checkpoint", text(golden().path())]), &["model.fuse", said]);
        refused(&fusec(&["inspect", text(&fuse)]), &["model.fuse", said]);
        let toml = folder.write("mine.toml", contents);
        refused(&logits(&toml, &["--checkpoint", text(golden().path())]), &["mine.toml", said]);
        refused(&fusec(&["check", text(&toml)]), &["mine.toml", said]);
        let expected = folder.write("expected.safetensors", contents);
        refused(&fuserun(&["verify", "--against", text(&expected)], ""), &["expected.safetensors", said]);
    }
}

#[test]
fn files_of_another_format() {
    let folder = golden();
    for (contents, said) in [
        (&b"Entry not found"[..], "it is what a server answered in its place: Entry not found"),
        (b"{\"error\": \"Invalid username or password.\"}", "a server answered in its place: Invalid username"),
        (
            b"PK\x03\x04 and so on",
            "it is a zip, as PyTorch's .bin and .pth files are: get the model's .safetensors files",
        ),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", "it is a GGUF file: get the model's .safetensors files"),
        (b"\x1f\x8b\x08\0", "it is compressed (gzip)"),
        (&[0; 4096], "it begins with zeros only: its download was not completed"),
        (b"", "truncated or corrupt, download it again"),
    ] {
        folder.write("model.safetensors", contents);
        refused(&logits(folder.path(), &[]), &["model.safetensors: ", said]);
        refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &["model.safetensors", said]);
    }
    folder.write("config.json", "");
    refused(&logits(folder.path(), &[]), &["config.json: it is empty, download it again"]);
    let single = |name: &str, contents: &[u8], said: &str| {
        let folder = TempFolder::new();
        refused(&logits(&folder.write(name, contents), &[]), &[name, said]);
    };
    single("model.safetensors", b"\x02\0\0\0\0\0\0\0{}", "it is one file of a model: name the folder that holds it (");
    single("config.json", b"{}", "it is one file of a model: name the folder that holds it (");
    single("model.gguf.part", b"GGU", "it is an unfinished download: finish it");
    single("x.incomplete", b"", "it is an unfinished download: finish it");
    single("consolidated.00.pth", b"PK\x03\x04", "its weights are PyTorch's pickles (consolidated.00.pth)");
    single("model.onnx", b"\x08\x07", "it is an ONNX export (model.onnx): get the model as .safetensors files");
    single("ggml-model.bak", b"tjgg\x03\0\0\0", "it is in GGML's format, which came before GGUF");
    let hub = "get it first (`fuserun pull Qwen/Qwen3-0.6B`) and name what that prints";
    refused(&logits(Path::new("Qwen/Qwen3-0.6B"), &[]), &["Qwen/Qwen3-0.6B: no such file or directory", hub]);
    refused(&fuserun(&["tokenize", "-m", "Qwen/Qwen3-0.6B", "hi"], ""), &[hub]);
    refused(&fusec(&["check", "--checkpoint", "Qwen/Qwen3-0.6B"]), &[hub]);
    for address in ["https://huggingface.co/", "hf://", "huggingface.co/"] {
        for end in ["", "/", "/tree/main", "/resolve/main/model.safetensors?download=true"] {
            let named = format!("{address}Qwen/Qwen3-0.6B{end}");
            refused(&logits(Path::new(&named), &[]), &[&named, hub]);
        }
    }
    for named in ["gs://models/model.gguf", "file:///models/x", "s3://models/x", "https://huggingface.co/Qwen"] {
        let what = if named.ends_with("/Qwen") {
            "no such file or directory"
        } else {
            "it is an address, and only files are read"
        };
        refused(&logits(Path::new(named), &[]), &[named, what]);
        refused(&fusec(&["new", "--from", named]), &[named, "is no folder, and a checkpoint is one with config.json"]);
    }
    refused(&logits(Path::new("~/models/x"), &[]), &["where it is not quoted: write $HOME"]);
}

/// What is named only for its tokenizer is what it is for the rest.
#[test]
fn a_folder_without_a_tokenizer_is_named() {
    let tokenize = |folder: &TempFolder, parts: &[&str]| {
        refused(&fuserun(&["tokenize", "-m", folder.path().to_str().unwrap(), "hi"], ""), parts);
    };
    let folder = TempFolder::new();
    let without = "there is no tokenizer.json; save the model's tokenizer with transformers";
    tokenize(&folder, &[without]);
    let gguf = folder.write("a.gguf", "GGUF");
    tokenize(
        &folder,
        &["there is no tokenizer.json; it holds a GGUF file: name that instead (", gguf.to_str().unwrap()],
    );
    folder.write("adapter_config.json", r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#);
    tokenize(&folder, &["it is a LoRA adapter (adapter_config.json), a change of org/base and no model"]);
    let cache = TempFolder::new();
    fs::create_dir_all(cache.path().join("models--org--a")).unwrap();
    fs::create_dir_all(cache.path().join("models--org--b")).unwrap();
    tokenize(&cache, &["it is the hub's cache of 2 models: name one, such as ", "models--org--a"]);
    let file = folder.write("config.json", "{}");
    let from = fusec(&["new", "--from", file.to_str().unwrap()]);
    refused(&from, &["config.json is no folder", "it is one file of a model: name the folder that holds it ("]);
    refused(&fusec(&["check", "--checkpoint", gguf.to_str().unwrap()]), &["fuserun runs GGUF files"]);
    let of_file = fuserun(&["tokenize", "-m", file.to_str().unwrap(), "hi"], "");
    refused(&of_file, &["config.json: not a GGUF file; it is one file of a model: name the folder that holds it ("]);
    let described = fuserun(&["generate", "-m", "models/llama.toml", "hi"], "");
    refused(&described, &["models/llama.toml has no weights of its own: add --checkpoint DIR"]);
}

/// Both programs refuse a folder with these files with these words.
fn refuses_folder(files: &[(&str, &str)], parts: &[&str]) {
    let folder = TempFolder::new();
    for (name, contents) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    refused(&logits(folder.path(), &[]), parts);
    let checked = fusec(&["check", "--checkpoint", text(folder.path())]);
    // The compiler takes a folder with only a config.json.
    if !files.iter().any(|(name, _)| *name == "config.json") {
        refused(&checked, parts);
    }
}

#[test]
fn folders_that_hold_no_checkpoint() {
    let config = fs::read_to_string(root().join("tests/goldens/llama-tied/config.json")).unwrap();
    let config = config.as_str();
    let instead = "get the model as .safetensors files with config.json and tokenizer.json, or as a .gguf file";
    refuses_folder(&[], &["there is no config.json: the folder is empty", instead]);
    refuses_folder(
        &[("notes.txt", "")],
        &["there is no config.json; give a Hugging Face model directory or a .gguf file"],
    );
    refuses_folder(&[("model.safetensors", "")], &["there is no config.json beside model.safetensors: download it"]);
    refuses_folder(
        &[("model-Q8_0.gguf", ""), ("mmproj.gguf", "")],
        &["it holds a GGUF file: name that instead", "model-Q8_0.gguf)"],
    );
    refuses_folder(&[("inner/config.json", "{}")], &["inner has one: name that folder"]);
    refuses_folder(&[("model_index.json", "{}"), ("unet/config.json", "{}")], &["it is a diffusers pipeline"]);
    refuses_folder(&[("model.onnx", "")], &["it is an ONNX export (model.onnx)", instead]);
    refuses_folder(&[("weights.npz", "")], &["it is in an older format of MLX (weights.npz)", instead]);
    refuses_folder(&[("tf_model.h5", "")], &["it is in TensorFlow's format (tf_model.h5)", instead]);
    refuses_folder(
        &[("params.json", "{}"), ("consolidated.safetensors", "")],
        &["it is in its makers' own format (consolidated.safetensors)", "config.json and model*.safetensors"],
    );
    refuses_folder(
        &[("model.safetensors.incomplete", "")],
        &["its download is not complete (model.safetensors.incomplete is there)"],
    );
    let pickles = [
        "there is no .safetensors file beside config.json",
        "PyTorch's pickles (pytorch_model.bin)",
        "save_pretrained",
    ];
    refuses_folder(&[("config.json", config), ("pytorch_model.bin", "PK")], &pickles);
    let hidden = ".cache/huggingface/download/model.safetensors.4d7a.incomplete";
    let unfinished =
        ["no .safetensors file", "its download is not complete (model.safetensors.4d7a.incomplete is there)"];
    refuses_folder(&[("config.json", config), (hidden, "")], &unfinished);
    refuses_folder(&[("config.json", config), ("onnx.onnx", "")], &["it is an ONNX export (onnx.onnx)"]);
    refuses_folder(&[("config.json", config), ("consolidated.safetensors", "")], &["its makers' own format"]);
    refuses_folder(&[("config.json", config)], &["no .safetensors file beside config.json; download the weights"]);
    let unet = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"}"#;
    let folder = golden();
    folder.write("config.json", unet);
    let said = ["config.json is a diffusers model's (UNet2DConditionModel), which writes no text"];
    refused(&logits(folder.path(), &[]), &said);
    refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &said);
}

#[test]
fn an_adapter_names_its_model_and_how_to_merge() {
    let adapter = r#"{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 8}"#;
    let parts = [
        "it is a LoRA adapter (adapter_config.json), a change of Qwen/Qwen3-0.6B and no model: merge the two first",
        "merge_and_unload().save_pretrained(",
    ];
    let files = [("adapter_config.json", adapter), ("adapter_model.safetensors", "")];
    refuses_folder(&files, &parts);
    // A training run may leave a configuration beside it.
    let config = fs::read_to_string(root().join("tests/goldens/llama-tied/config.json")).unwrap();
    refuses_folder(&[&files[..], &[("config.json", config.as_str())]].concat(), &parts);
    refuses_folder(&[("adapter_model.bin", "")], &["it is a LoRA adapter (adapter_model.bin), a change of a model"]);
    let prompt = r#"{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "a/b"}"#;
    refuses_folder(
        &[("adapter_config.json", prompt)],
        &["it is a PROMPT_TUNING adapter", "of a/b, which nothing here applies"],
    );
}

#[test]
fn a_model_in_the_hubs_cache_runs() {
    let cache = TempFolder::new();
    let root_of = cache.path().join("models--owner--tiny");
    let snapshot = root_of.join("snapshots/4d7a");
    let blobs = root_of.join("blobs");
    for folder in [&snapshot, &blobs, &root_of.join("refs"), &root_of.join("snapshots/0000")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(root_of.join("refs/main"), "4d7a").unwrap();
    let demo = fs::read_dir(root().join("models/demo")).unwrap();
    for file in demo.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let name = file.file_name().unwrap();
        fs::copy(&file, blobs.join(name)).unwrap();
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    let expected = fuserun(&["generate", "--device", "cpu", "Call me", "-n", "8"], "").stdout;
    for named in [&root_of, &root_of.join("snapshots"), &snapshot] {
        let done = fuserun(&["generate", "--device", "cpu", "Call me", "-n", "8", "-m", text(named)], "");
        assert_eq!((done.code, done.stdout.as_str()), (0, expected.as_str()), "{}", done.stderr);
        assert_eq!(fuserun(&["tokenize", "-m", text(named), "Call me"], "").code, 0);
        let done = fusec(&["check", "--checkpoint", text(named)]);
        assert!(done.code == 0 && done.stdout.contains("tensors of the checkpoint"), "{}", done.stderr);
    }
    let several = format!("it is the hub's cache of one model: name one, such as {}", root_of.display());
    refused(&logits(cache.path(), &[]), &[&several]);
    // A download that was not completed, or whose files were removed.
    fs::remove_file(blobs.join("model.safetensors")).unwrap();
    refused(
        &logits(&root_of, &[]),
        &["model.safetensors is a link to ../../blobs/model.safetensors, which is not there"],
    );
    fs::remove_file(blobs.join("config.json")).unwrap();
    refused(&logits(&root_of, &[]), &["config.json is a link to ../../blobs/config.json, which is not there"]);
    fs::remove_file(root_of.join("refs/main")).unwrap();
    refused(&logits(&root_of, &[]), &["it has 2 snapshots, and refs/main names none of them: name one, such as "]);
    fs::remove_dir_all(root_of.join("snapshots")).unwrap();
    fs::create_dir(root_of.join("snapshots")).unwrap();
    refused(&logits(&root_of, &[]), &["it is in the hub's cache and has no snapshot: download the model again"]);
}

#[test]
fn quantised_checkpoints() {
    let instead = "help: get the model in bf16, or as a GGUF file";
    for (key, value, said) in [
        ("quantization_config", json!({"quant_method": "gptq", "bits": 3}), "quantised by gptq to 3 bits"),
        ("quantization_config", json!({"quant_method": "hqq"}), "quantised by hqq,"),
        ("quantization_config", json!({"load_in_8bit": true}), "the weights are quantised, which nothing here reads"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "quantised by MLX to 4 bits"),
        ("compression_config", json!({"format": "pack-quantized"}), "the weights are quantised,"),
    ] {
        let folder = golden();
        edit(&folder, json!({key: value}));
        let parts = ["error[F0403]", &format!("`{key}` in config.json"), said, instead];
        let error = refused(&logits(folder.path(), &[]), &parts);
        assert!(!error.contains("[expect]"), "{error}");
        refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &parts);
    }
    // MLX writes both keys, and says it once.
    let folder = golden();
    edit(&folder, json!({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}));
    refused(&logits(folder.path(), &[]), &["quantised", instead]);
    edit(&folder, json!({"quantization": null, "quantization_config": null}));
    assert_eq!(logits(folder.path(), &[]).code, 0);
}

/// A header of one tensor besides those of a checkpoint.
fn with_tensor(folder: &TempFolder, name: &str) {
    let header = json!({name: {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("a.safetensors")).unwrap();
    folder.write("b.safetensors", bytes);
}

#[test]
fn quantised_checkpoints_are_told_by_their_tensors_too() {
    for (name, how) in [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.self_attn.q_proj.scales", "MLX"),
    ] {
        let folder = golden();
        with_tensor(&folder, name);
        let said = format!("holds quantised weights ({how}: `{name}`), which nothing here reads");
        let parts = ["error[F0603]", said.as_str(), "help: get the model in bf16, or as a GGUF file"];
        refused(&logits(folder.path(), &[]), &parts);
        refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &parts);
    }
}

#[test]
fn architectures_that_no_description_can_serve() {
    for (name, said) in [
        ("BloomForCausalLM", "BloomForCausalLM needs ALiBi (scores less the distance), which no operation computes: "),
        ("MambaForCausalLM", "needs a selective state space (Mamba), which no operation computes: "),
        ("ApertusForCausalLM", "needs the activation xIELU, which no operation computes: "),
        ("T5ForConditionalGeneration", "is an encoder with a decoder, and only decoders are run: "),
        ("BertForMaskedLM", "BertForMaskedLM is an encoder, which writes no text: "),
    ] {
        let folder = golden();
        edit(&folder, json!({"architectures": [name]}));
        let parts = [said, "no description can serve it; docs/models.md lists the families that run"];
        let error = refused(&logits(folder.path(), &[]), &parts);
        assert!(error.len() < 200 && !error.contains("fusec new"), "{error}");
        refused(&fusec(&["check", "--checkpoint", text(folder.path())]), &parts);
        let drafted = fusec(&["new", "--from", text(folder.path())]).stderr;
        assert!(drafted.contains(said.trim_end_matches(": ")), "{drafted}");
    }
    let folder = golden();
    edit(&folder, json!({"architectures": ["Qwen9ForCausalLM"]}));
    let error = refused(
        &logits(folder.path(), &[]),
        &["no description serves Qwen9ForCausalLM (served are Qwen2", "fusec new"],
    );
    assert!(!error.contains("LlamaForCausalLM"), "{error}");
}

/// Who runs a model by a shipped description did not write it.
#[test]
fn readers_of_a_shipped_description_are_told_what_they_can_do() {
    let author = ["[expect]", "[derive]", "let the description", "if = …", "??"];
    let judge = |folder: &TempFolder, code: &str, reader: &str| {
        let said = refused(&logits(folder.path(), &[]), &[code, reader]);
        assert!(!author.iter().any(|part| said.contains(part)), "{said}");
        // The same of a description that the user has changed.
        let llama = fs::read_to_string(root().join("models/llama.toml")).unwrap();
        let mine = folder.write("mine.toml", format!("{llama}\n# mine\n"));
        let said = refused(&logits(folder.path(), &["--description", text(&mine)]), &[code]);
        assert!(author.iter().any(|part| said.contains(part)) && !said.contains(reader), "{said}");
    };
    let folder = golden();
    edit(&folder, json!({"final_logit_softcapping": 30.0}));
    judge(&folder, "F0403", "help: use a checkpoint of the family that does without, or a later version");
    let folder = golden();
    edit(&folder, json!({"rms_norm_eps": null}));
    judge(&folder, "F0401", "help: use the config.json that the checkpoint was published with");
    let folder = golden();
    with_tensor(&folder, "model.layers.0.strange.weight");
    judge(&folder, "F0603", "help: get config.json and all weights from one place again");
}
