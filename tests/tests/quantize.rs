//! `fuserun quantize`: what it writes has the values that its codes and scales say, runs, and is there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuse_tests::{Finished, TempFolder, fuserun, nmse, root};
use fusec::ir::WeightRef;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::weights::Checkpoint;
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn golden() -> PathBuf {
    root().join("tests/goldens/llama-tied")
}

fn quantise(model: &Path, to: &str, out: &Path, more: &[&str]) -> Finished {
    let (model, out) = (model.to_str().expect("plain"), out.to_str().expect("plain"));
    fuserun(&[&["quantize", "-m", model, "--to", to, "-o", out], more].concat(), "")
}

fn logits(path: &Path) -> Vec<f32> {
    let model = ModelName { model: Some(path.to_owned()), ..ModelName::default() };
    let tokens = [3, 14, 15, 9, 2, 6, 5];
    let options = LoadOptions { context: tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    let opened = OpenModel::open(&model).expect("it opens");
    opened.load(&Device::Cpu, &options).expect("it loads").logits(&tokens, false).expect("it runs")
}

/// The values of a weight by the definition of its scheme, from the file's bytes.
fn by_definition(file: &SafeTensors<'_>, weight: &str) -> Option<Vec<f32>> {
    let scales = file.tensor(&format!("{weight}_scale")).ok()?;
    assert_eq!(scales.dtype(), Dtype::BF16);
    let number = |pair: &[u8; 2]| bf16::from_le_bytes(*pair).to_f32();
    let numbers: Vec<f32> = scales.data().as_chunks().0.iter().map(number).collect();
    let (codes, columns): (Vec<f32>, usize) = match file.tensor(&format!("{weight}_packed")) {
        Ok(packed) => {
            let shape = file.tensor(&format!("{weight}_shape")).expect("packed weights have one");
            let sizes: Vec<u64> = shape.data().as_chunks().0.iter().map(|size| u64::from_le_bytes(*size)).collect();
            let per_word = sizes[1] as usize / packed.shape()[1];
            let (bits, middle) = (32 / per_word, (1 << (32 / per_word - 1)) as f32);
            let words = packed.data().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            let code = move |word: u32, at: usize| (word >> (bits * at) & ((1 << bits) - 1)) as f32 - middle;
            (words.flat_map(|word| (0..per_word).map(move |at| code(word, at))).collect(), sizes[1] as usize)
        }
        Err(_) => {
            let codes = file.tensor(weight).ok()?;
            let float = |code: u8| {
                let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
                let size = if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
                if code & 0x80 == 0 { size } else { -size }
            };
            (codes.data().iter().map(|code| float(*code)).collect(), codes.shape()[1])
        }
    };
    let group = columns / scales.shape()[1];
    Some(codes.iter().enumerate().map(|(at, code)| code * numbers[at / group]).collect())
}

#[test]
fn what_is_written_has_the_values_of_its_codes_and_runs() {
    let folder = TempFolder::new();
    let (plain, wanted) = (Checkpoint::open(&golden()).expect("it opens"), logits(&golden()));
    // The golden has rows of 96 values too, which are groups of 32.
    for (to, schemes, least, most) in [
        ("fp8", &["fp8, a scale per row"][..], 1e-4, 1e-3),
        ("int8", &["int8, a scale per row"][..], 1e-5, 2e-4),
        ("int4", &["int4, a scale per 128 columns", "int4, a scale per 32 columns"][..], 3e-3, 1.5e-2),
    ] {
        let out = folder.path().join(to);
        let done = quantise(&golden(), to, &out, &["--json"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let report: Value = serde_json::from_str(&done.stdout).expect("one object");
        let costs = report["written"]["quantised"].as_array().expect("a list").clone();
        let bytes = fs::read(out.join("model.safetensors")).expect("it was written");
        assert_eq!(report["written"]["bytes"], bytes.len(), "{to}");
        let file = SafeTensors::deserialize(&bytes).expect("it is whole");
        let quantised = Checkpoint::open(&out).expect("it opens");
        let mut found = BTreeMap::new();
        for name in plain.names() {
            let weight = WeightRef::whole(name);
            let (values, before) = (quantised.read_f32(&weight).expect("it is read"), plain.read_f32(&weight).unwrap());
            let Some(by_definition) = by_definition(&file, name) else {
                assert_eq!(values, before, "{name}");
                continue;
            };
            assert_eq!(values, by_definition, "{to}: {name}");
            found.insert(name.to_owned(), nmse(&values, &before));
        }
        assert!(!found.is_empty() && found.keys().all(|name| name.contains("_proj")), "{to}: {found:?}");
        assert_eq!(costs.len(), found.len(), "{to}");
        for cost in &costs {
            let (name, told) = (cost["tensor"].as_str().unwrap(), cost["nmse"].as_f64().unwrap());
            assert!((told / found[name] - 1.0).abs() < 1e-3, "{name}: {told:.3e} and {:.3e}", found[name]);
            assert!((least..most).contains(&told), "{to}: {name} {told:.1e}");
            assert!(schemes.contains(&cost["format"].as_str().unwrap()), "{cost}");
        }
        for scheme in schemes {
            assert!(costs.iter().any(|cost| cost["format"] == *scheme), "{scheme}");
        }
        let error = nmse(&logits(&out), &wanted);
        assert!((1e-7..0.1).contains(&error), "{to}: {error:.1e}");
    }
}

#[test]
fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let folder = TempFolder::new();
    let out = folder.path().join("small");
    let done = quantise(&golden(), "fp8", &out, &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("tensors quantised, mean NMSE "), "{}", done.stdout);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["format"], "float-quantized");
    assert_eq!(config["quantization_config"]["ignore"], json!(["lm_head", "model.embed_tokens"]));
    let again = quantise(&golden(), "int8", &out, &[]);
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("small is there already: name another, or give --force to replace it"),
        "{}",
        again.stderr
    );
    let unchanged: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(unchanged, config);
    let forced = quantise(&golden(), "int8", &out, &["--force"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["format"], "pack-quantized");
    let twice = quantise(&out, "fp8", &folder.path().join("twice"), &[]);
    assert!(twice.stderr.contains("its weights are quantised already (int8"), "{}", twice.stderr);
    // Neither the checkpoint itself nor what is none is lost.
    let own = in_two_files("none", 0.0);
    let itself = quantise(own.path(), "fp8", own.path(), &["--force"]);
    assert!(
        itself.code == 1 && itself.stderr.contains(" is the checkpoint itself: write another"),
        "{}",
        itself.stderr
    );
    assert!(own.path().join("model-1-of-2.safetensors").exists());
    let other = TempFolder::new();
    other.write("letter.txt", "dear");
    let refused = quantise(&golden(), "fp8", other.path(), &["--force"]);
    assert!(refused.stderr.contains(" is a folder, and no checkpoint: it is not replaced"), "{}", refused.stderr);
    assert!(other.path().join("letter.txt").exists());
    let left: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, ["small"], "nothing else is left");
}

/// A copy of the golden in two files, with a tokenizer beside them and one weight of another value.
fn in_two_files(weight: &str, value: f32) -> TempFolder {
    let folder = TempFolder::new();
    let bytes = fs::read(golden().join("model.safetensors")).expect("it is there");
    let file = SafeTensors::deserialize(&bytes).expect("it is whole");
    let mut map = BTreeMap::new();
    for half in 0..2 {
        let name = format!("model-{}-of-2.safetensors", half + 1);
        let some: Vec<(String, Vec<u8>, Vec<usize>)> = file
            .tensors()
            .into_iter()
            .enumerate()
            .filter(|(at, _)| at % 2 == half)
            .map(|(_, (name, view))| {
                let mut data = view.data().to_vec();
                if name == weight {
                    data[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
                (name, data, view.shape().to_vec())
            })
            .collect();
        map.extend(some.iter().map(|(tensor, ..)| (tensor.clone(), name.clone())));
        let views = some.iter().map(|(tensor, data, shape)| {
            (tensor, TensorView::new(Dtype::BF16, shape.clone(), data).expect("the values fill it"))
        });
        folder.write(&name, safetensors::serialize(views, None).expect("plain"));
    }
    folder.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    folder.write("config.json", fs::read(golden().join("config.json")).unwrap());
    folder.write("tokenizer_config.json", "{}");
    folder
}

#[test]
fn several_files_stay_several_and_others_are_copied() {
    let (from, folder) = (in_two_files("none", 0.0), TempFolder::new());
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    for (from, to) in [(golden(), &one), (from.path().to_path_buf(), &two)] {
        let done = quantise(&from, "int4", to, &[]);
        assert_eq!(done.code, 0, "{}", done.stderr);
    }
    assert_eq!(fs::read_to_string(two.join("tokenizer_config.json")).unwrap(), "{}");
    assert!(!two.join("model.safetensors").exists());
    let (one, two) = (Checkpoint::open(&one).expect("it opens"), Checkpoint::open(&two).expect("it opens"));
    assert!(one.names().eq(two.names()));
    for name in one.names() {
        let weight = WeightRef::whole(name);
        assert_eq!(one.read_f32(&weight).unwrap(), two.read_f32(&weight).unwrap(), "{name}");
    }
}

#[test]
fn a_failure_leaves_nothing() {
    let (from, folder) = (in_two_files("model.layers.1.mlp.up_proj.weight", f32::INFINITY), TempFolder::new());
    let out = folder.path().join("out");
    let done = quantise(from.path(), "fp8", &out, &[]);
    assert_eq!(done.code, 1);
    let said = "model.layers.1.mlp.up_proj.weight: a weight is inf, which no quantised format holds";
    assert!(done.stderr.contains(said), "{}", done.stderr);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let done = quantise(&golden(), "fp8", &folder.path().join("none/out"), &[]);
    assert!(done.code == 1 && done.stderr.contains("cannot make "), "{}", done.stderr);
    let gguf = root().join("tests/goldens/gpt2");
    let done = quantise(&gguf, "fp8", &out, &[]);
    assert!(done.stderr.contains("no tensor of it can be stored so"), "{}", done.stderr);
}

/// A file has the values of the checkpoint's tensors, in blocks or as they were, under GGUF's names and in its order; and it is the same model.
#[test]
fn a_gguf_file_has_the_values_of_its_blocks_and_is_the_same_model() {
    let folder = TempFolder::new();
    let cases = [
        ("tests/goldens/llama-tied", "q4_0"),
        ("tests/goldens/llama-untied", "q5_0"),
        ("tests/goldens/mistral", "q4_1"),
        ("tests/goldens/mixtral", "q8_0"),
        ("tests/goldens/qwen2", "q5_1"),
        ("tests/goldens/qwen2_moe", "q8_0"),
        ("tests/goldens/qwen3", "q8_0"),
        ("tests/goldens/qwen3_moe", "q8_0"),
        ("tests/goldens/olmo2", "q4_0"),
        ("tests/goldens/smollm3", "mxfp4"),
        ("tests/goldens/granite", "q8_0"),
        ("models/demo", "q4_k"),
    ];
    for (model, to) in cases {
        let (model, out) = (root().join(model), folder.path().join("out.gguf"));
        let done = quantise(&model, to, &out, &["--force", "--json"]);
        assert_eq!(done.code, 0, "{}: {}", model.display(), done.stderr);
        let report: Value = serde_json::from_str(&done.stdout).expect("one object");
        let name = |weights: &str, path: &Path| ModelName {
            model: Some(path.to_owned()),
            weights: weights.parse().expect("a format"),
            ..ModelName::default()
        };
        let direct = OpenModel::open(&name(to, &model)).expect("it opens");
        let written = OpenModel::open(&name("auto", &out)).expect("it opens");
        let (direct, written) = (direct.checkpoint().unwrap(), written.checkpoint().unwrap());
        let mut blocks = 0;
        for tensor in direct.names().filter(|name| *name != "lm_head.weight" || written.contains(name)) {
            let weight = WeightRef::whole(tensor);
            let (found, wanted) = (written.read_f32(&weight).unwrap(), direct.read_f32(&weight).unwrap());
            assert!(found == wanted, "{}: {tensor} as {to}", model.display());
            blocks +=
                usize::from(direct.dtype(tensor).unwrap().to_string() == written.dtype(tensor).unwrap().to_string());
        }
        assert!(blocks > 0, "{}", model.display());
        let quantised = report["written"]["quantised"].as_array().expect("a list").len();
        let of_blocks = ["llama-tied", "llama-untied", "mistral", "qwen3", "demo"];
        let whole_rows = of_blocks.iter().any(|family| model.ends_with(family));
        assert!(quantised > 0 || !whole_rows, "{}: {report}", model.display());
    }
    // The last one has a tokenizer, and runs.
    let out = folder.path().join("out.gguf");
    assert!(nmse(&logits(&out), &logits(&root().join("models/demo"))) < 0.05);
    let (out, demo) = (out.to_str().unwrap(), root().join("models/demo"));
    let ids = |model: &str| fuserun(&["tokenize", "-m", model, "Call me Ishmael.\n\n  12 whales' tails"], "").stdout;
    assert_eq!(ids(out), ids(demo.to_str().unwrap()));
    assert!(!ids(out).is_empty());
}

#[test]
fn what_a_gguf_file_cannot_say_is_refused() {
    let folder = TempFolder::new();
    let out = folder.path().join("out.gguf");
    for (model, said) in [
        ("tests/goldens/gpt2", "GGUF files of GPT2LMHeadModel are not written (written: llama, mistral, "),
        ("tests/goldens/qwen3_next", "GGUF files of Qwen3NextForCausalLM are not written"),
        // Another scaling of RoPE than the published one.
        ("tests/goldens/llama-rope3", "a GGUF file cannot say all of its configuration"),
        ("tests/goldens/llama-sharded-f32", ""),
    ] {
        let done = quantise(&root().join(model), "q8_0", &out, &[]);
        if said.is_empty() {
            assert_eq!(done.code, 0, "{}", done.stderr);
            fs::remove_file(&out).expect("it was written");
        } else {
            assert!(done.code == 1 && done.stderr.contains(said), "{}", done.stderr);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{model}");
    }
    // Llama 3.2's is known by what it comes to.
    let scaled = TempFolder::new();
    let mut config: Value = serde_json::from_slice(&fs::read(golden().join("config.json")).unwrap()).unwrap();
    config["rope_parameters"] = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    scaled.write("config.json", config.to_string());
    scaled.write("model.safetensors", fs::read(golden().join("model.safetensors")).unwrap());
    let done = quantise(scaled.path(), "q8_0", &out, &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    fs::remove_file(&out).expect("it was written");
    let misnamed = quantise(&golden(), "q8_0", &folder.path().join("out"), &[]);
    assert!(misnamed.stderr.contains("q8_0 is written as a GGUF file: name -o a file whose name ends in .gguf"));
    let misnamed = quantise(&golden(), "fp8", &out, &[]);
    assert!(misnamed.stderr.contains("fp8 is written as a folder: name -o a folder, without .gguf"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
