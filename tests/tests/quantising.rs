//! `--weights` with a checkpoint of 16 bits: what its weights become, on every path, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fuse_tests::{TempFolder, fusec, fuserun, nmse, root};
use fusec::ir::Format;
use fusec::plan::WeightFormat;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use serde_json::Value;

fn golden() -> PathBuf {
    root().join("tests/goldens/qwen3")
}

fn demo() -> PathBuf {
    root().join("models/demo")
}

fn opened(model: &Path, checkpoint: Option<&Path>, weights: &str) -> OpenModel {
    let (model, checkpoint) = (Some(model.to_owned()), checkpoint.map(Path::to_owned));
    let weights: WeightFormat = weights.parse().expect("a format");
    OpenModel::open(&ModelName { model, checkpoint, weights, ..ModelName::default() }).expect("it opens")
}

fn logits(model: &OpenModel, device: &Device, by_step: bool) -> Vec<f32> {
    let tokens = [3, 14, 15, 9, 2];
    let options = LoadOptions { context: tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    let mut backend = model.load(device, &options).expect("it loads");
    backend.logits(&tokens, by_step).expect("it runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain")
}

/// Formats, with the least and the most error of logits that they cost the golden, whose rows have 64 and 128 values.
const COSTS: [(&str, f64, f64); 9] = [
    ("q8_0", 1e-6, 1e-3),
    ("q6_k", 1e-6, 1e-3),
    ("q5_k", 1e-5, 2e-2),
    ("q4_k", 1e-4, 5e-2),
    ("q4_0", 1e-4, 5e-2),
    ("mxfp4", 1e-4, 1e-1),
    ("fp8", 1e-5, 1e-2),
    ("int8", 1e-7, 1e-3),
    ("int4", 1e-4, 5e-2),
];

#[test]
fn the_cpu_computes_with_what_weights_become() {
    let plain = logits(&opened(&golden(), None, "auto"), &Device::Interpreter, false);
    for (format, least, most) in COSTS {
        let model = opened(&golden(), None, format);
        let wanted = logits(&model, &Device::Interpreter, false);
        let cost = nmse(&wanted, &plain);
        println!("{format} costs {cost:.1e}: {:?}", model.quantised());
        assert!((least..most).contains(&cost), "{format} costs {cost:.1e}");
        for by_step in [false, true] {
            let error = nmse(&logits(&model, &Device::Cpu, by_step), &wanted);
            assert!(error < 1e-6, "{format}: NMSE {error:.2e}");
        }
    }
}

/// Blocks of 256 where rows are whole ones, blocks of 32 elsewhere; more bits for the table that is the head too.
#[test]
fn the_demo_model_has_formats_by_class() {
    let model = opened(&demo(), None, "q4_k");
    let said = "weights are quantised: 6 to q5_0, 36 to q4_k, 1 to q6_k tensors; others stay as they are stored";
    assert_eq!(model.quantised().as_deref(), Some(said));
    let formats = model.checkpoint().expect("it has one").formats();
    let of = |name: &str| formats.get(name).copied();
    assert_eq!(of("model.layers.0.self_attn.q_proj.weight"), Some(Format::Q4K));
    assert_eq!(of("model.layers.0.mlp.down_proj.weight"), Some(Format::Q5_0));
    assert_eq!(of("model.embed_tokens.weight"), Some(Format::Q6K));
    assert_eq!(of("model.norm.weight"), None);
}

/// What is compiled for a format runs with a checkpoint of 16 bits: its weights become what the artifact says.
#[test]
fn an_artifact_says_what_weights_become() {
    let folder = TempFolder::new();
    let (golden, file) = (golden(), folder.path().join("small.fuse"));
    let compile = ["compile", "--checkpoint", text(&golden), "--weights", "q4_0", "--batch", "1", "-o", text(&file)];
    let compiled = fusec(&compile);
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    let direct = opened(&golden, None, "q4_0");
    let said = direct.quantised().expect("weights are quantised");
    assert!(compiled.stderr.contains(&said), "{said} in {}", compiled.stderr);
    let by_artifact = opened(&file, Some(&golden), "auto");
    assert_eq!(by_artifact.quantised(), Some(said));
    for device in [Device::Interpreter, Device::Cpu] {
        assert_eq!(logits(&by_artifact, &device, true), logits(&direct, &device, true));
    }
    let both = fuserun(
        &["logits", "-m", text(&file), "--checkpoint", text(&golden), "--weights", "q8_0", "--tokens", "1", "-o", "-"],
        "",
    );
    assert_eq!(both.code, 1);
    let said = "small.fuse is compiled for the formats of its weights: give --weights to fusec compile";
    assert!(both.stderr.contains(said), "{}", both.stderr);
}

#[test]
fn the_compiler_and_the_runtime_choose_the_same_formats() {
    for (model, format) in [(golden(), "int4"), (golden(), "q4_k"), (demo(), "q4_k"), (demo(), "fp8")] {
        let folder = TempFolder::new();
        let file = folder.path().join("a.fuse");
        let compile = ["compile", "--checkpoint", text(&model), "--weights", format, "--batch", "1", "-o", text(&file)];
        let compiled = fusec(&compile);
        assert_eq!(compiled.code, 0, "{}", compiled.stderr);
        let artifact = fusec::artifact::Artifact::read(&file).expect("it was written");
        let graph = fusec::ir::Graph::parse(&artifact.graph_text).expect("it parses");
        let mut of_graph = BTreeMap::new();
        for node in graph.ordered() {
            if let fusec::ir::Op::Weight(weight) = graph.op(node) {
                use fusec::ir::Results;
                of_graph.insert(weight.to_string(), graph.type_of(node.result(0)).format);
            }
        }
        of_graph.retain(|_, format| format.is_read());
        let mut of_runtime = opened(&model, None, format).checkpoint().expect("it has one").formats();
        of_runtime.retain(|_, format| format.is_read());
        assert_eq!(of_graph, of_runtime, "{format}");
    }
}

/// What `bench` and `inspect` say of each class is all of the weights.
#[test]
fn weights_are_told_by_class_and_format() {
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"));
    let sum = |rows: &Value, key: &str| rows.as_array().expect("rows").iter().map(|row| number(row, key)).sum::<u64>();
    let kinds = |rows: &Value| -> Vec<(String, String)> {
        let text = |row: &Value, key: &str| row[key].as_str().expect("text").to_owned();
        rows.as_array().expect("rows").iter().map(|row| (text(row, "class"), text(row, "format"))).collect()
    };
    let few = ["--device", "cpu", "--runs", "1", "--tokens", "1", "--depths", "0", "--prompts", "12", "--json"];
    let demo = demo();
    let done = fuserun(&[&["bench", "-m", text(&demo), "--weights", "q4_k"], &few[..]].concat(), "");
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).expect("one object");
    let of = |class: &str, format: &str| (class.to_owned(), format.to_owned());
    let wanted = [of("embedding and head", "q6_k"), of("attention", "q4_k"), of("MLP", "q4_k"), of("MLP", "q5_0")];
    assert_eq!(kinds(&report["weights"]).into_iter().collect::<BTreeSet<_>>(), wanted.into_iter().collect());
    assert_eq!(sum(&report["weights"], "bytes_per_step"), number(&report, "weight_bytes_per_step"));
    let folder = TempFolder::new();
    let file = folder.path().join("a.fuse");
    let compile = ["compile", "--checkpoint", text(&demo), "--weights", "q4_k", "--batch", "1", "-o", text(&file)];
    let compiled = fusec(&compile);
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    let told: Value = serde_json::from_str(&fusec(&["inspect", text(&file), "--json"]).stdout).expect("one object");
    assert_eq!(sum(&told["weights"], "bytes"), number(&told["plan"], "weight_bytes"));
    let read = sum(&told["weights"], "bytes_per_step");
    assert!(read.abs_diff(number(&told["plan"], "decode_weight_bytes")) < 100, "{read} in {}", told["plan"]);
    let table = fusec(&["inspect", text(&file)]).stdout;
    for line in [
        "weights             format           MB  MB per step",
        "embedding and head  q6_k ",
        "MLP                 q5_0 ",
    ] {
        assert!(table.contains(line), "{line} in\n{table}");
    }
}

#[test]
fn what_is_quantised_already_is_refused() {
    let gptq = root().join("tests/quantised/gptq");
    let done = fuserun(&["logits", "-m", text(&gptq), "--weights", "q8_0", "--tokens", "1", "-o", "-"], "");
    assert_eq!(done.code, 1);
    let said = "its weights are quantised already (q4_0): leave `--weights q8_0` out to take them as stored, or give f16 or bf16";
    assert!(done.stderr.contains(said), "{}", done.stderr);
    let compiled = fusec(&["compile", "--checkpoint", text(&gptq), "--weights", "q4_0"]);
    assert!(compiled.stderr.contains("are quantised already (q4_0)"), "{}", compiled.stderr);
    let golden = golden();
    let done = fuserun(&["logits", "-m", text(&golden), "--weights", "nvfp4", "--tokens", "1", "-o", "-"], "");
    assert!(done.stderr.contains("nothing quantises weights to nvfp4: give one of q8_0, "), "{}", done.stderr);
}
