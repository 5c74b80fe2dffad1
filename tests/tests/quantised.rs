//! Quantised safetensors: the values of every weight to the bit, and how they reach graphs, plans and devices.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fuse_tests::{TempFolder, fusec, fuserun, nmse, root};
use fusec::ir::WeightRef;
use fusec::plan::PlanOptions;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::weights::{Checkpoint, decode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Each checkpoint, and the formats that its quantised weights have.
const CASES: &[(&str, &[&str])] = &[("fp8-blocks", &["fp8"]), ("fp8-tensors", &["fp8"])];

fn folder(case: &str) -> PathBuf {
    root().join("tests/quantised").join(case)
}

/// The SHA-256 of the values of each quantised weight.
fn digests(case: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder(case).join("values.json")).expect("it is committed");
    serde_json::from_str(&text).expect("names and digests")
}

fn digest(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_folder_is_a_case() {
    let entries = fs::read_dir(root().join("tests/quantised")).expect("it is there");
    let mut found: Vec<String> = entries
        .map(|entry| entry.expect("it is listed"))
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let mut cases: Vec<&str> = CASES.iter().map(|(case, _)| *case).collect();
    cases.sort_unstable();
    assert_eq!(found, cases);
}

#[test]
fn values_are_those_of_the_published_formulas_to_the_bit() {
    for (case, formats) in CASES {
        let checkpoint = Checkpoint::open(&folder(case)).expect("it opens");
        let found = checkpoint.formats();
        let mut seen: Vec<&str> = Vec::new();
        for (name, wanted) in digests(case) {
            let weight = WeightRef::whole(&name);
            let values = checkpoint.read_f32(&weight).expect("it is read");
            assert_eq!(digest(&values), wanted, "{case}: {name} begins with {:?}", &values[..4]);
            // The same by rows in blocks, from wherever a thread begins.
            let format = checkpoint.raw_format(&weight).expect("there is such a weight").expect("it has rows");
            assert_eq!(found.get(&name), Some(&format), "{case}: {name}");
            let (rows, mut blocks, mut decoded) =
                (checkpoint.shape(&weight).expect("a shape")[0], Vec::new(), Vec::new());
            for some in [0..3, 3..rows - 1, rows - 1..rows] {
                checkpoint.raw_rows(&weight, some, &mut blocks).expect("they are read");
                decode(format, &blocks, &mut decoded);
            }
            assert_eq!(digest(&decoded), wanted, "{case}: {name} by rows");
            if !seen.contains(&format.name()) {
                seen.push(format.name());
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, *formats, "{case}");
    }
}

fn logits(case: &str, device: &Device, by_step: bool) -> Vec<f32> {
    let model = ModelName { model: Some(folder(case)), ..ModelName::default() };
    let tokens = [3, 14, 15, 9, 2, 6, 5];
    let options = LoadOptions { context: tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    let mut backend = OpenModel::open(&model).and_then(|opened| opened.load(device, &options)).expect("it loads");
    backend.logits(&tokens, by_step).expect("it runs")
}

/// The CPU's products take integers with activations of 16 bits, and floats as they are.
#[test]
fn the_cpu_computes_with_every_method() {
    for (case, _) in CASES {
        let wanted = logits(case, &Device::Interpreter, false);
        for by_step in [false, true] {
            let error = nmse(&logits(case, &Device::Cpu, by_step), &wanted);
            println!("{case}: NMSE {error:.2e}");
            assert!(error < 1e-7, "{case}: NMSE {error:.2e}");
        }
    }
}

/// The compiler reads headers only, and comes to the same formats as the runtime that reads the files.
#[test]
fn the_compiler_and_the_runtime_agree() {
    for (case, formats) in CASES {
        let path = folder(case);
        let text = path.to_str().expect("plain");
        let checked = fusec(&["check", "--checkpoint", text]);
        assert_eq!(checked.code, 0, "{case}: {}", checked.stderr);
        let printed = fusec(&["print", "--checkpoint", text]);
        assert_eq!(printed.code, 0, "{case}: {}", printed.stderr);
        let opened =
            OpenModel::open(&ModelName { model: Some(path.clone()), ..ModelName::default() }).expect("it opens");
        let compiled = opened.compile(PlanOptions::default()).expect("it compiles");
        assert_eq!(printed.stdout.trim_end(), compiled.graph.to_string().trim_end(), "{case}");
        for format in *formats {
            assert!(printed.stdout.contains(&format!(" : {format}[")), "{case}: {format} in\n{}", printed.stdout);
        }
        let rounded = compiled.plan.rounding().unwrap_or_default();
        let unread = |format: &&&str| !["q4_0", "q8_0"].contains(*format);
        for format in formats.iter().filter(unread) {
            assert!(rounded.contains(&format!("{format} -> f16")), "{case}: {rounded}");
        }
    }
}

#[test]
fn drafts_name_weights_and_not_what_they_are_made_of() {
    for (case, _) in CASES {
        let drafted = fusec(&["new", "--from", folder(case).to_str().expect("plain")]);
        assert_eq!(drafted.code, 0, "{case}: {}", drafted.stderr);
        assert!(drafted.stderr.contains("0 tensors that nothing reads"), "{case}: {}", drafted.stderr);
        assert!(drafted.stdout.contains("q_proj.weight"), "{case}: {}", drafted.stdout);
    }
}

/// A copy of a case whose header and configuration were changed; tensors keep their bytes.
fn changed(case: &str, change: impl Fn(&mut Value, &mut Value)) -> TempFolder {
    let copy = TempFolder::copy_of(&folder(case));
    let read = |name: &str| fs::read(copy.path().join(name)).expect("it is there");
    let bytes = read("model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("a configuration");
    change(&mut config, &mut header);
    let text = header.to_string();
    let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + length..]].concat();
    copy.write("model.safetensors", file);
    copy.write("config.json", config.to_string());
    copy
}

/// Renames a tensor of a header.
fn rename(header: &mut Value, from: &str, to: &str) {
    let table = header.as_object_mut().expect("a table");
    let tensor = table.remove(from).expect("there is such a tensor");
    table.insert(to.to_owned(), tensor);
}

/// Both programs refuse it in one message that has these parts.
fn refused(folder: &TempFolder, parts: &[&str]) {
    let text = folder.path().to_str().expect("plain");
    let file = folder.path().join("logits.safetensors");
    let run = ["logits", "--device", "cpu", "--tokens", "1,2", "-m", text, "-o", file.to_str().expect("plain")];
    for done in [fusec(&["check", "--checkpoint", text]), fuserun(&run, "")] {
        assert_eq!(done.code, 1, "{}", done.stderr);
        for part in parts {
            assert!(done.stderr.contains(part), "{part} in {}", done.stderr);
        }
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    }
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn what_does_not_fit_is_named() {
    let lost = changed("fp8-blocks", |_, header| {
        rename(header, &format!("{Q}.weight_scale_inv"), &format!("{Q}.weight_scales"));
    });
    let said = format!("there is no {Q}.weight_scale_inv or {Q}.weight_scale");
    refused(
        &lost,
        &["it is quantised otherwise than its config.json says", &format!("{Q}.weight is quantised"), &said],
    );
    let other = changed("fp8-blocks", |config, _| {
        config["quantization_config"]["weight_block_size"] = json!([32, 16]);
    });
    refused(&other, &["weight_scale_inv is [2, 1], which does not fit [32, 32]"]);
}

#[test]
fn methods_and_options_that_are_not_read_are_named() {
    for (quantisation, said) in [
        (json!({"quant_method": "hqq", "bits": 4}), "the weights are quantised by hqq to 4 bits"),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "the weights are quantised by fp8 with `fmt` \"e5m2\""),
        (
            json!({"quant_method": "fp8", "weight_block_size": [128]}),
            "the weights are quantised by fp8 with `weight_block_size` [128]",
        ),
    ] {
        let folder = changed("fp8-blocks", |config, _| config["quantization_config"] = quantisation.clone());
        refused(&folder, &["error[F0403]", said, "which nothing here reads", "help: get the model in bf16"]);
    }
}
