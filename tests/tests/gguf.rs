//! Golden checkpoints as GGUF files of each architecture: the logits are those of the folder they come from.

use std::collections::BTreeSet;

use fuse_tests::gguf::{Meta, empty_gguf, gguf_of};
use fuse_tests::{Golden, TempFolder, argmax_disagreement, goldens, nmse};
use fusec::plan::PlanOptions;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};

const INTERPRETER_BOUND: f64 = 1e-8;
const CPU_BOUND: f64 = 1e-4;
/// Where the reference's top two differ by more than this, the best token must be the reference's.
const CLEAR: f32 = 0.1;

#[test]
fn every_architecture_gives_its_golden_logits() {
    let (mut failures, mut architectures) = (Vec::new(), BTreeSet::new());
    for golden in checkpoints() {
        let (folder, model) = written(&golden);
        let opened = match OpenModel::open(&model) {
            Ok(opened) => opened,
            Err(error) => {
                failures.push(format!("{}: {error:#}", golden.name));
                continue;
            }
        };
        let metadata =
            opened.checkpoint().and_then(|checkpoint| checkpoint.gguf_metadata()).expect("it is a GGUF file");
        architectures.insert(metadata.text("general.architecture").expect("it is written").to_owned());
        for (device, by_step, bound) in
            [(Device::Interpreter, false, INTERPRETER_BOUND), (Device::Cpu, true, CPU_BOUND)]
        {
            let case = format!("{} {device:?}", golden.name);
            match logits(&model, &device, &golden, by_step) {
                Err(error) => failures.push(format!("{case}: {error:#}")),
                Ok(found) => {
                    let error = nmse(&found, &golden.logits);
                    println!("{case}: NMSE {error:.2e}");
                    if error.is_nan() || error > bound {
                        failures.push(format!("{case}: NMSE {error:.2e} is above {bound:.0e}"));
                    }
                    if let Some(position) = argmax_disagreement(&found, &golden.logits, golden.vocabulary(), CLEAR) {
                        failures.push(format!("{case}: another best token at position {position}"));
                    }
                }
            }
        }
        drop(folder);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let architectures: Vec<String> = architectures.into_iter().collect();
    assert_eq!(architectures, known(), "each architecture that is read has a golden");
}

/// The architectures that a file of another one is told of, in order.
fn known() -> Vec<String> {
    let folder = TempFolder::new();
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, empty_gguf("none-such")).expect("the file is written");
    let name = ModelName { model: Some(file), ..ModelName::default() };
    let said = format!("{:#}", OpenModel::open(&name).err().expect("it is refused"));
    let (_, known) = said.split_once("'none-such' are not read (known: ").expect("it is named");
    let listed = known.split_once(')').expect("the list ends").0;
    let mut known: Vec<String> = listed.split(", ").map(str::to_owned).collect();
    known.sort_unstable();
    known
}

/// Goldens of families that are read only from folders.
const FOLDERS_ALONE: &[&str] = &[
    "arcee",
    "bamba",
    "cohere",
    "cohere-windows",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5",
    "exaone4",
    "exaone4-full",
    "falcon",
    "falcon-new",
    "falcon_h1",
    "gemma3-vision",
    "gemma4",
    "gemma4-moe",
    "gemma4-vision",
    "glm4",
    "glm4-plain",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "gpt_oss-mxfp4",
    "granitemoe",
    "granitemoehybrid",
    "granitemoehybrid-dense",
    "hunyuan",
    "lfm2",
    "lfm2-bias",
    "mistral3",
    "nemotron",
    "nemotron_h",
    "olmo3",
    "olmoe",
    "opt",
    "phi",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_5-text",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3_vl",
    "seed_oss",
    "smolvlm",
];

/// The goldens that come with a checkpoint of a family that GGUF files are read of.
fn checkpoints() -> Vec<Golden> {
    let mut all = goldens();
    all.retain(|golden| golden.folder.join("config.json").exists() && !FOLDERS_ALONE.contains(&&*golden.name));
    all
}

/// A golden's GGUF file, and the folder that it lies in.
fn written(golden: &Golden) -> (TempFolder, ModelName) {
    // The converter writes no window for these two; a file that has one is honoured.
    let more: &[(&str, Meta)] = match &*golden.name {
        "mistral" => &[("attention.sliding_window", Meta::U32(12))],
        "starcoder2" => &[("attention.sliding_window", Meta::U32(11))],
        // As later files say it; earlier ones leave it to the architecture, as gemma3's here.
        "gemma2" => &[("attention.sliding_window_pattern", Meta::Bools(vec![true, false, true]))],
        _ => &[],
    };
    let folder = TempFolder::new();
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, gguf_of(&golden.folder, more)).expect("the file is written");
    (folder, ModelName { model: Some(file), ..ModelName::default() })
}

fn logits(model: &ModelName, device: &Device, golden: &Golden, by_step: bool) -> anyhow::Result<Vec<f32>> {
    let options = LoadOptions { context: golden.tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    OpenModel::open(model)?.load(device, &options)?.logits(&golden.tokens, by_step)
}

/// Each number under the architecture's prefix, one after the other, as a broken or hostile file has it.
#[test]
fn no_number_of_the_metadata_ends_in_a_panic() {
    let (mut seen, mut refused, mut tried) = (BTreeSet::new(), 0, 0);
    for golden in checkpoints() {
        let (folder, model) = written(&golden);
        let path = folder.path().join("model.gguf");
        let bytes = std::fs::read(&path).expect("it is written");
        for (key, at) in numbers(&bytes) {
            if !seen.insert(key.clone()) {
                continue;
            }
            for value in [0u32, 1, 3, 1 << 31, u32::MAX, f32::INFINITY.to_bits()] {
                let mut broken = bytes.clone();
                broken[at..at + 4].copy_from_slice(&value.to_le_bytes());
                std::fs::write(&path, broken).expect("it is written");
                tried += 1;
                let opened = OpenModel::open(&model).and_then(|opened| opened.compile(PlanOptions::none()));
                refused += usize::from(opened.is_err());
            }
            // As a 64-bit number: the type, the value, and what follows.
            let mut wide = bytes[..at - 4].to_vec();
            wide.extend([&10u32.to_le_bytes()[..], &(1u64 << 63).to_le_bytes()].concat());
            wide.extend(&bytes[at + 4..]);
            std::fs::write(&path, wide).expect("it is written");
            let opened = OpenModel::open(&model).and_then(|opened| opened.compile(PlanOptions::none()));
            refused += usize::from(opened.is_err());
        }
    }
    assert!(seen.len() > 150 && refused > tried / 4, "{} keys, {refused} of {tried} refused", seen.len());
}

/// The keys with a 32-bit number under a GGUF file's architecture, and where their values stand.
fn numbers(bytes: &[u8]) -> Vec<(String, usize)> {
    let word = |at: usize| bytes.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    let named = |at: usize| {
        let length = usize::try_from(word(at)?).ok().filter(|length| (3..80).contains(length))?;
        let key = std::str::from_utf8(bytes.get(at + 8..at + 8 + length)?).ok()?;
        let value = at + 8 + length + 4;
        let is_key =
            key.contains('.') && key.bytes().all(|byte| byte.is_ascii_lowercase() || b"._0123456789".contains(&byte));
        let number = matches!(bytes.get(value - 4..value)?, [4 | 6, 0, 0, 0]);
        (is_key && number && !key.starts_with("general.")).then(|| (key.to_owned(), value))
    };
    (0..bytes.len().min(1 << 14)).filter_map(named).collect()
}
