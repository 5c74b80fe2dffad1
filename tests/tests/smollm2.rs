//! SmolLM2-135M-Instruct, the real model, against fp32 logits and greedy continuations of Hugging Face transformers.
//!
//! `smollm2` is computed with the file's weights as they are, `smollm2-bf16` with the same rounded to bf16, as a device holds them.

use fuse_tests::{gpu, nmse, root, smollm2_gguf};
use fuserun::backend::{Backend, Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::SamplingParameters;
use safetensors::SafeTensors;
use serde_json::Value;

/// Where the reference's top two differ by more than this, the best token must be the reference's.
const CLEAR: f32 = 0.1;

#[test]
fn interpreter_gives_the_logits() {
    check_logits(&mut load(&Device::Interpreter), "smollm2", 1e-8);
}

#[test]
fn interpreter_continues_as_the_reference() {
    let mut interpreter = load(&Device::Interpreter);
    let greedy = &continuations("smollm2")[0];
    let fed = [&greedy.prompt[..], &greedy.tokens[..greedy.tokens.len() - 1]].concat();
    let logits = interpreter.logits(&fed, false).unwrap();
    let rows = logits.chunks(logits.len() / fed.len()).skip(greedy.prompt.len() - 1);
    let clear = |step: &usize| greedy.gaps[*step] > CLEAR;
    let best: Vec<u32> = rows.map(argmax).collect();
    let compared: Vec<usize> = (0..greedy.tokens.len()).filter(clear).collect();
    assert!(compared.len() > 32, "{} steps compared: the golden is too unsure", compared.len());
    for step in compared {
        assert_eq!(best[step], greedy.tokens[step], "step {step} of {:?}", greedy.text);
    }
}

#[test]
fn cpu_gives_the_logits() {
    let mut cpu = load(&Device::Cpu);
    check_logits(&mut cpu, "smollm2", 3e-6);
    check_logits(&mut cpu, "smollm2-bf16", 1e-4);
}

#[test]
fn cpu_continues_as_the_reference() {
    check_continuations(&Device::Cpu);
}

#[test]
fn gpu_gives_the_logits() {
    if let Some(device) = gpu() {
        let mut gpu = load(&device);
        check_logits(&mut gpu, "smollm2", 1e-4);
        check_logits(&mut gpu, "smollm2-bf16", 1e-4);
    }
}

#[test]
fn gpu_continues_as_the_reference() {
    if let Some(device) = gpu() {
        check_continuations(&device);
    }
}

fn load(device: &Device) -> Backend {
    let name = ModelName { model: Some(smollm2_gguf()), ..ModelName::default() };
    let options = LoadOptions { context: 160, sequences: 1, batches: vec![1], threads: Some(2) };
    OpenModel::open(&name).and_then(|model| model.load(device, &options)).unwrap_or_else(|error| panic!("{error:#}"))
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, token| if row[token] > row[best] { token } else { best }) as u32
}

/// The paragraph's logits by both paths: every 128th at all positions, all at some, the best token at each.
fn check_logits(backend: &mut Backend, golden: &str, bound: f64) {
    let bytes = std::fs::read(root().join("tests/goldens").join(golden).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        file.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let integers = |name: &str| -> Vec<u32> { words(name).into_iter().map(u32::from_le_bytes).collect() };
    let floats = |name: &str| -> Vec<f32> { words(name).into_iter().map(f32::from_le_bytes).collect() };
    let (tokens, best, gaps) = (integers("tokens"), integers("argmax"), floats("gap"));
    for (path, by_step) in [("prompt", false), ("step", true)] {
        let logits = backend.logits(&tokens, by_step).unwrap();
        let rows: Vec<&[f32]> = logits.chunks(logits.len() / tokens.len()).collect();
        let columns: Vec<f32> = rows.iter().flat_map(|row| row.iter().step_by(128).copied()).collect();
        let whole: Vec<f32> =
            integers("positions").iter().flat_map(|&position| rows[position as usize].to_vec()).collect();
        let errors = [nmse(&columns, &floats("columns")), nmse(&whole, &floats("logits"))];
        println!("{} against {golden}, {path}: NMSE {:.2e} and {:.2e}", backend.describe(), errors[0], errors[1]);
        assert!(errors.iter().all(|error| *error <= bound), "{golden}, {path}: NMSE {errors:.2?} above {bound:.0e}");
        for (position, row) in rows.iter().enumerate().filter(|(position, _)| gaps[*position] > CLEAR) {
            assert_eq!(argmax(row), best[position], "{golden}, {path}: the best token at position {position}");
        }
    }
}

struct Continuation {
    text: String,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f32>,
}

fn continuations(golden: &str) -> Vec<Continuation> {
    let text = std::fs::read_to_string(root().join("tests/goldens").join(golden).join("greedy.json")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let ids = |value: &Value| -> Vec<u32> { numbers(value).into_iter().map(|id| id as u32).collect() };
    let read = |entry: &Value| Continuation {
        text: entry["prompt"].as_str().unwrap().to_string(),
        prompt: ids(&entry["prompt_tokens"]),
        tokens: ids(&entry["tokens"]),
        gaps: numbers(&entry["gaps"]).into_iter().map(|gap| gap as f32).collect(),
    };
    let list: Vec<Continuation> = list.iter().map(read).collect();
    assert_eq!(list.len(), 8, "eight prompts");
    list
}

/// 64 greedy tokens after each prompt, equal until the first place where the reference is not sure.
fn check_continuations(device: &Device) {
    let mut backend = load(device);
    let mut compared = Vec::new();
    for greedy in continuations("smollm2") {
        let mut found = Vec::new();
        let mut take = |_, token| {
            found.push(token);
            true
        };
        let sampling = SamplingParameters::default();
        backend.generate(std::slice::from_ref(&greedy.prompt), &sampling, 64, &[], &mut take).unwrap();
        assert_eq!((found.len(), greedy.tokens.len()), (64, 64));
        let sure = greedy.gaps.iter().position(|gap| *gap <= CLEAR).unwrap_or(64);
        let same = found.iter().zip(&greedy.tokens).position(|(found, token)| found != token).unwrap_or(64);
        assert!(same >= sure, "{:?}: token {same} differs, and the reference is sure of {sure}", greedy.text);
        compared.push((sure, same));
    }
    println!("{}: tokens the reference is sure of, and equal ones: {compared:?}", backend.describe());
    assert!(
        compared.iter().map(|(sure, _)| sure).sum::<usize>() > 128,
        "the goldens are too unsure to judge: {compared:?}"
    );
}
