//! Golden logits through the runtime: interpreter, CPU and GPU, prompt path and decode path, fused and unfused, both forms of config.json.

use std::path::PathBuf;

use fuse_tests::{Golden, TempFolder, argmax_disagreement, fusec, goldens, gpu, nmse, root};
use fusec::passes::Selection;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// In fp32 throughout: what is left is the order of sums.
const INTERPRETER_BOUND: f64 = 1e-8;
/// With bf16 weights and activations; transformers in bf16 has 2e-5 to 1.5e-4 on such checkpoints.
const DEVICE_BOUND: f64 = 1e-4;
/// On the GPU with routed experts: attention rounds to bf16, and an expert whose logit is near another's may give way to it. Transformers in bf16 has
/// 1e-3 to 8e-3.
const ROUTED_BOUND: f64 = 2e-3;
/// Goldens of families with routed experts.
const ROUTED: [&str; 17] = [
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "gemma4-moe",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "gpt_oss-mxfp4",
    "granitemoe",
    "granitemoehybrid",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
];
/// Where the reference's top two differ by more than this, the best token must be the reference's.
const CLEAR: f32 = 0.1;

#[test]
fn interpreter_agrees() {
    check(&Device::Interpreter, &Selection::all());
}

#[test]
fn interpreter_agrees_unfused() {
    check(&Device::Interpreter, &Selection::none());
}

#[test]
fn cpu_agrees() {
    check(&Device::Cpu, &Selection::all());
}

#[test]
fn cpu_agrees_unfused() {
    check(&Device::Cpu, &Selection::none());
}

#[test]
fn gpu_agrees() {
    if let Some(device) = gpu() {
        check(&device, &Selection::all());
    }
}

#[test]
fn gpu_agrees_unfused() {
    if let Some(device) = gpu() {
        check(&device, &Selection::none());
    }
}

#[test]
fn an_artifact_gives_the_same_logits() {
    let (folder, checkpoint) = (TempFolder::new(), root().join("tests/goldens/llama-odd"));
    let file = folder.path().join("odd.fuse");
    let (from, to) = (checkpoint.to_str().unwrap(), file.to_str().unwrap());
    let done = fusec(&["compile", "llama", "--checkpoint", from, "--arch", "sm_90a", "-o", to]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let golden = goldens().into_iter().find(|golden| golden.name == "llama-odd").expect("the golden is there");
    let name = ModelName { model: Some(file), checkpoint: Some(checkpoint), ..ModelName::default() };
    let options = LoadOptions { context: 64, sequences: 1, batches: vec![1], threads: Some(2) };
    for (device, bound) in [(Device::Interpreter, INTERPRETER_BOUND), (Device::Cpu, DEVICE_BOUND)] {
        let mut backend = OpenModel::open(&name).unwrap().load(&device, &options).unwrap();
        let error = nmse(&backend.logits(&golden.tokens, true).unwrap(), &golden.logits);
        assert!(error <= bound, "{device:?}: NMSE {error:.2e}");
    }
    let more = LoadOptions { batches: vec![8], sequences: 8, ..options };
    let refused = OpenModel::open(&name).unwrap().load(&Device::Cpu, &more).err().expect("batch 8 was not compiled");
    assert!(refused.to_string().ends_with("was not compiled for batch 8: compile it with --batch 8"), "{refused:#}");
}

/// Values that bfloat16 does not hold: rounded to it, these logits would be off by 1e-5.
#[test]
fn f16_weights_run_unrounded_on_the_cpu() {
    let folder = TempFolder::copy_of(&root().join("tests/goldens/llama-odd"));
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).expect("the golden has weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("they are safetensors");
    let halves = tensors.tensors().into_iter().map(|(name, tensor)| {
        let values: Vec<u8> = match tensor.dtype() {
            Dtype::F32 => tensor
                .data()
                .chunks_exact(4)
                .flat_map(|value| {
                    f16::from_f32(f32::from_le_bytes([value[0], value[1], value[2], value[3]]) * 1.01).to_le_bytes()
                })
                .collect(),
            Dtype::BF16 => tensor
                .data()
                .chunks_exact(2)
                .flat_map(|value| {
                    f16::from_f32(bf16::from_le_bytes([value[0], value[1]]).to_f32() * 1.01).to_le_bytes()
                })
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        (name, tensor.shape().to_vec(), values)
    });
    let halves: Vec<(String, Vec<usize>, Vec<u8>)> = halves.collect();
    let views = halves.iter().map(|(name, shape, values)| {
        (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), values).expect("as many values"))
    });
    std::fs::write(&file, safetensors::serialize(views, None).expect("a file")).expect("it is written");
    let golden = goldens().into_iter().find(|golden| golden.name == "llama-odd").expect("the golden is there");
    let model = Some(folder.path().to_path_buf());
    let of = |device| logits(&device, &Selection::all(), model.clone(), &golden.tokens, false).expect("it runs");
    let (cpu, exact) = (of(Device::Cpu), of(Device::Interpreter));
    let error = nmse(&cpu, &exact);
    assert!(error <= 1e-9, "NMSE {error:.2e}");
}

/// Each golden on a device, by both paths and both forms of its configuration; every failure is named, not only the first.
fn check(device: &Device, passes: &Selection) {
    let bound = if *device == Device::Interpreter { INTERPRETER_BOUND } else { DEVICE_BOUND };
    let (mut cases, mut worst, mut failures) = (0, (0.0, String::new()), Vec::new());
    for golden in goldens() {
        let routed = ROUTED.contains(&golden.name.as_str()) && matches!(device, Device::Cuda(_));
        let bound = if routed { ROUTED_BOUND } else { bound };
        for (form, model, _kept) in forms(&golden) {
            for (path, by_step) in [("prompt", false), ("step", true)] {
                let case = format!("{} {form} {path}", golden.name);
                cases += 1;
                let found = match logits(device, passes, model.clone(), &golden.tokens, by_step) {
                    Ok(found) => found,
                    Err(error) => {
                        failures.push(format!("{case}: {error:#}"));
                        continue;
                    }
                };
                let error = nmse(&found, &golden.logits);
                println!("{case}: NMSE {error:.2e}");
                if error.is_nan() || error > worst.0 {
                    worst = (error, case.clone());
                }
                if error.is_nan() || error > bound {
                    failures.push(format!("{case}: NMSE {error:.2e} is above {bound:.0e}"));
                }
                if let Some(position) = argmax_disagreement(&found, &golden.logits, golden.vocabulary(), CLEAR) {
                    failures.push(format!("{case}: another best token at position {position}"));
                }
            }
        }
    }
    assert!(cases >= 40, "{cases} cases: goldens are missing");
    println!(
        "{device:?}, passes {passes}: {cases} cases, largest NMSE {:.2e} ({}), bound {bound:.0e}",
        worst.0, worst.1
    );
    assert!(failures.is_empty(), "{device:?}, passes {passes}:\n{}", failures.join("\n"));
}

/// The forms that a golden's model has, each with its name, what to open, and a folder that must live as long.
fn forms(golden: &Golden) -> Vec<(&'static str, Option<PathBuf>, Option<TempFolder>)> {
    if golden.name == "demo" {
        return vec![("embedded", None, None), ("folder", Some(root().join("models/demo")), None)];
    }
    let v4 = TempFolder::copy_of(&golden.folder);
    std::fs::rename(v4.path().join("config-v4.json"), v4.path().join("config.json"))
        .expect("each golden has both forms");
    vec![("v5", Some(golden.folder.clone()), None), ("v4", Some(v4.path().to_path_buf()), Some(v4))]
}

fn logits(
    device: &Device,
    passes: &Selection,
    model: Option<PathBuf>,
    tokens: &[u32],
    by_step: bool,
) -> anyhow::Result<Vec<f32>> {
    let model = OpenModel::open(&ModelName { model, passes: Some(passes.clone()), ..ModelName::default() })?;
    let options = LoadOptions { context: tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    model.load(device, &options)?.logits(tokens, by_step)
}
