//! Quantised safetensors: the values of every weight to the bit, and how they reach graphs, plans and devices.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fuse_tests::{TempFolder, fusec, fuserun, nmse, root};
use fusec::ir::{Format, WeightRef};
use fusec::plan::PlanOptions;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::weights::{Checkpoint, decode};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Each checkpoint, and the formats that its quantised weights have.
const CASES: &[(&str, &[&str])] = &[
    ("awq", &["int4_128", "int4_32"]),
    ("fp8-blocks", &["fp8"]),
    ("fp8-blocks-text", &["fp8"]),
    ("fp8-groups", &["fp8"]),
    ("fp8-modelopt", &["fp8"]),
    ("fp8-rows", &["fp8"]),
    ("fp8-tensors", &["fp8"]),
    // Zero points in the middle and scales in half precision: GGUF's blocks.
    ("gptq", &["q4_0"]),
    ("gptq-bytes", &["q8_0"]),
    ("gptq-reordered", &["f32"]),
    ("gptq-v2", &["int4_32"]),
    ("gptq-zeros", &["int4_32"]),
    ("int4-groups", &["q4_0"]),
    ("int4-reordered", &["f32"]),
    ("int4-rows", &["int4_128", "int4_32"]),
    ("int4-zeros", &["int4_32"]),
    ("int8-packed", &["q8_0"]),
    ("int8-rows", &["int8"]),
    ("int8-zeros", &["f32"]),
    ("mxfp4", &["mxfp4"]),
    ("nvfp4", &["nvfp4"]),
    ("nvfp4-modelopt", &["nvfp4"]),
];

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
    logits_of(folder(case), device, by_step)
}

fn logits_of(path: PathBuf, device: &Device, by_step: bool) -> Vec<f32> {
    let model = ModelName { model: Some(path), ..ModelName::default() };
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
        // Kernels read all blocks as they are.
        let rounding = compiled.plan.rounding();
        assert_eq!(rounding.is_some(), formats.contains(&"f32"), "{case}: {rounding:?}");
        assert!(rounding.iter().all(|said| said.ends_with(" weights are rounded: f32 -> f16")), "{case}: {rounding:?}");
    }
}

/// What no packed form has is not widened in silence.
#[test]
fn what_is_widened_is_said() {
    let opened = |case: &str| {
        OpenModel::open(&ModelName { model: Some(folder(case)), ..ModelName::default() }).expect("it opens")
    };
    let said =
        "7 weights are held as f32, in 0.02 MB: no packed form has their order of columns, groups or zero points";
    for (case, said) in
        [("gptq-reordered", Some(said)), ("int8-zeros", Some(said)), ("gptq-zeros", None), ("fp8-rows", None)]
    {
        assert_eq!(opened(case).widened().as_deref(), said, "{case}");
    }
    let said = "7 weights are stored as codes that no format has: a GPU takes them in 16 bits";
    assert_eq!(opened("gptq-reordered").rounded().as_deref(), Some(said));
    assert_eq!(opened("gptq").rounded(), None);
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

/// Values tell it, which only the runtime reads.
fn not_run(folder: &TempFolder, part: &str) {
    let model = ModelName { model: Some(folder.path().to_owned()), ..ModelName::default() };
    let options = LoadOptions { context: 8, sequences: 1, batches: vec![1], threads: Some(1) };
    let loaded = OpenModel::open(&model).and_then(|opened| opened.load(&Device::Cpu, &options).map(drop));
    let said = format!("{:#}", loaded.expect_err("it is not what it says"));
    assert!(said.contains(part), "{part} in {said}");
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
    for (case, end, said) in [
        ("awq", "qzeros", "there is no"),
        ("gptq", "scales", "there is no"),
        ("int4-zeros", "weight_scale", "there is no"),
        ("nvfp4", "weight_global_scale", "there is no scale for all that goes with it"),
    ] {
        let lost = changed(case, |_, header| rename(header, &format!("{Q}.{end}"), &format!("{Q}.lost")));
        refused(&lost, &["it is quantised otherwise than its config.json says", said]);
    }
    let groups = changed("gptq", |config, _| config["quantization_config"]["group_size"] = json!(16));
    refused(&groups, &["scales is [2, 32], and should be [4, 32]"]);
    let bits = changed("int4-zeros", |config, _| {
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(8);
    });
    refused(&bits, &["weight_scale is [32, 2], which does not fit [32, 32]"]);
}

#[test]
fn what_only_values_tell_is_checked() {
    let ordered = changed("gptq-reordered", |config, _| config["quantization_config"]["desc_act"] = json!(false));
    not_run(&ordered, "has columns in another order, and its config.json says that they are in theirs (`desc_act`)");
    let symmetric = changed("gptq-zeros", |config, _| config["quantization_config"]["sym"] = json!(true));
    not_run(&symmetric, "where the configuration says that all are 8");
    let padded = changed("int4-rows", |_, header| {
        let (own, other) = (format!("{Q}.weight_shape"), "model.layers.0.mlp.down_proj.weight_shape");
        let swapped = [header[&own].clone(), header[other].clone()];
        let [first, second] = swapped;
        header[other] = first;
        header[&own] = second;
    });
    not_run(&padded, "padded columns are not read");
}

#[test]
fn files_beside_the_configuration_are_read() {
    for (case, file, inner) in [
        ("fp8-modelopt", "hf_quant_config.json", Some("quantization")),
        ("gptq-zeros", "quantize_config.json", None),
        ("awq", "quant_config.json", None),
    ] {
        let beside = changed(case, |_, _| {});
        let config = fs::read(beside.path().join("config.json")).expect("it is there");
        let mut config: Value = serde_json::from_slice(&config).expect("a configuration");
        let mut said = config["quantization_config"].take();
        let (config, said) = (config.as_object_mut().expect("a table"), said.as_object_mut().expect("a table"));
        config.remove("quantization_config");
        said.remove("quant_method");
        let said = inner.map_or(json!(said), |inner| json!({ inner: said }));
        beside.write("config.json", json!(config).to_string());
        beside.write(file, said.to_string());
        let checked = fusec(&["check", "--checkpoint", beside.path().to_str().expect("plain")]);
        assert_eq!(checked.code, 0, "{case}: {}", checked.stderr);
        let checkpoint = Checkpoint::open(beside.path()).expect("it opens");
        for (name, wanted) in digests(case) {
            let values = checkpoint.read_f32(&WeightRef::whole(&name)).expect("it is read");
            assert_eq!(digest(&values), wanted, "{case}: {name}");
        }
    }
}

#[test]
fn biases_that_are_no_zeros_are_missed() {
    let swapped = changed("gptq-v2", |_, header| {
        let [bias, scales] = ["bias", "scales"].map(|end| format!("{Q}.{end}"));
        let places = [&bias, &scales].map(|name| header[name]["data_offsets"].clone());
        let [first, second] = places;
        header[&bias]["data_offsets"] = second;
        header[&scales]["data_offsets"] = first;
    });
    not_run(&swapped, "nothing reads 1 tensor");
    not_run(&swapped, "q_proj.bias");
}

/// gpt-oss has the matrices of all experts in one tensor.
#[test]
fn experts_in_blocks_are_read() {
    let folder = TempFolder::new();
    folder.write("config.json", json!({"quantization_config": {"quant_method": "mxfp4"}}).to_string());
    let (count, rows, blocks) = (2, 3, 2);
    let codes: Vec<u8> = (0..count * rows * blocks * 16).map(|at| (at * 37 % 251) as u8).collect();
    let exponents: Vec<u8> = (0..count * rows * blocks).map(|at| 120 + at as u8).collect();
    let views = [
        ("mlp.w_blocks", TensorView::new(Dtype::U8, vec![count, rows, blocks, 16], &codes).expect("it fits")),
        ("mlp.w_scales", TensorView::new(Dtype::U8, vec![count, rows, blocks], &exponents).expect("it fits")),
    ];
    folder.write("model.safetensors", safetensors::serialize(views, None).expect("plain"));
    let checkpoint = Checkpoint::open(folder.path()).expect("it opens");
    const FLOATS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |at: usize| {
        let nibble = codes[at / 2] >> (4 * (at % 2)) & 15;
        let size = FLOATS[usize::from(nibble & 7)] * 2f32.powi(i32::from(exponents[at / 32]) - 127);
        if nibble & 8 == 0 { size } else { 0.0 - size }
    };
    let columns = 32 * blocks;
    let wanted: Vec<f32> = (0..count * rows * columns).map(value).collect();
    assert_eq!(checkpoint.shape(&"mlp.w".into()).expect("a shape"), [count, rows, columns]);
    assert_eq!(checkpoint.read_f32(&"mlp.w".into()).expect("it is read"), wanted);
    let second: WeightRef = "mlp.w[1]".into();
    assert_eq!(checkpoint.read_f32(&second).expect("it is read"), wanted[rows * columns..]);
    let (mut raw, mut decoded) = (Vec::new(), Vec::new());
    checkpoint.raw_rows(&second, 1..3, &mut raw).expect("they are read");
    decode(Format::Mxfp4, &raw, &mut decoded);
    assert_eq!(decoded, wanted[(rows + 1) * columns..]);
}

/// A model of random codes with one scale per row, of long rows, in the method of a case.
fn of_long_rows(case: &str, dtype: Dtype) -> TempFolder {
    let text = fs::read(folder(case).join("config.json")).expect("it is there");
    let mut config: Value = serde_json::from_slice(&text).expect("a configuration");
    for (key, size) in [("hidden_size", 128), ("intermediate_size", 256), ("head_dim", 64)] {
        config[key] = json!(size);
    }
    let (file, text) =
        fusec::description::shipped().iter().find(|(name, _)| *name == "llama.toml").expect("it is shipped");
    let description = fusec::description::Description::parse(text, file).expect("it is right");
    let options = fusec::compile::CompileOptions { plan: PlanOptions::none(), ..Default::default() };
    let model = fusec::compile::compile(&description, Some(&config), &options).expect("it compiles");
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (weight, shape) in fusec::tensors::required(&model.described) {
        let name = weight.to_string();
        let values = fusec::ir::random_tensor(&name, &shape, 7).data;
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        if !name.contains("_proj") {
            tensors.insert(name, (Dtype::F32, shape, floats(&values)));
            continue;
        }
        // Exponents of floats that are neither small nor not a number; of integers they are large numbers.
        let codes = values.iter().map(|value| value.to_bits() as u8 & 0xBF | 0x20).collect();
        let scales: Vec<f32> = values[..shape[0]].iter().map(|value| value.abs() / 64.0 + 1e-3).collect();
        tensors.insert(format!("{name}_scale"), (Dtype::F32, vec![shape[0], 1], floats(&scales)));
        tensors.insert(name, (dtype, shape, codes));
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("the values fill it"))
    });
    let folder = TempFolder::new();
    folder.write("model.safetensors", safetensors::serialize(views, None).expect("plain"));
    folder.write("config.json", config.to_string());
    folder
}

#[test]
fn the_cpu_computes_with_long_rows() {
    for (case, dtype, format) in
        [("fp8-rows", Dtype::F8_E4M3, Format::Fp8x128), ("int8-rows", Dtype::I8, Format::Int8x128)]
    {
        let folder = of_long_rows(case, dtype);
        let path = folder.path().to_path_buf();
        let formats = Checkpoint::open(&path).expect("it opens").formats();
        assert_eq!(formats.values().filter(|found| **found == format).count(), 7, "{case}: {formats:?}");
        let wanted = logits_of(path.clone(), &Device::Interpreter, false);
        for by_step in [false, true] {
            let error = nmse(&logits_of(path.clone(), &Device::Cpu, by_step), &wanted);
            assert!(error < 1e-7, "{case}: NMSE {error:.2e}");
        }
    }
}

/// Codes of 8 bits whose rows are whole runs of 128 columns have one scale for each.
#[test]
fn long_rows_of_bytes_have_few_scales() {
    let (rows, columns) = (2, 256);
    // None is the code of what is not a number.
    let codes: Vec<u8> = (0..rows * columns).map(|at| (at * 7 % 127) as u8 | (at as u8 & 1) << 7).collect();
    let scales: Vec<u8> = [0.375f32, -2.5, 0.5, 3.0].iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let float = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
        if code & 0x80 == 0 { size } else { -size }
    };
    let of_floats = |block: Value| json!({"quant_method": "fp8", "weight_block_size": block});
    let int8: Value = serde_json::from_slice(&fs::read(folder("int8-rows").join("config.json")).expect("it is there"))
        .expect("a configuration");
    let cases = [
        (of_floats(Value::Null), Dtype::F8_E4M3, Format::Fp8x128, 1),
        (of_floats(json!([1, 128])), Dtype::F8_E4M3, Format::Fp8x128, 2),
        (int8["quantization_config"].clone(), Dtype::I8, Format::Int8x128, 1),
    ];
    for (config, dtype, format, across) in cases {
        let value_of = |code: u8| if dtype == Dtype::I8 { f32::from(code as i8) } else { float(code) };
        let folder = TempFolder::new();
        folder.write("config.json", json!({"quantization_config": config}).to_string());
        let used = &scales[..4 * rows * across];
        let views = [
            ("w.weight", TensorView::new(dtype, vec![rows, columns], &codes).expect("it fits")),
            ("w.weight_scale", TensorView::new(Dtype::F32, vec![rows, across], used).expect("it fits")),
        ];
        folder.write("model.safetensors", safetensors::serialize(views, None).expect("plain"));
        let checkpoint = Checkpoint::open(folder.path()).expect("it opens");
        let value = |at: usize| {
            let run = at / columns * across + at % columns * across / columns;
            f32::from_le_bytes(scales[4 * run..][..4].try_into().expect("four")) * value_of(codes[at])
        };
        let wanted: Vec<f32> = (0..rows * columns).map(value).collect();
        let weight = WeightRef::whole("w.weight");
        assert_eq!(checkpoint.read_f32(&weight).expect("it is read"), wanted);
        assert_eq!(checkpoint.raw_format(&weight).expect("there is such a weight"), Some(format));
        let (mut raw, mut decoded) = (Vec::new(), Vec::new());
        checkpoint.raw_rows(&weight, 0..rows, &mut raw).expect("they are read");
        decode(format, &raw, &mut decoded);
        assert_eq!(decoded, wanted);
    }
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
        (json!({"quant_method": "gptq", "bits": 3}), "by gptq to 3 bits"),
        (
            json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
            "with `checkpoint_format` \"marlin\"",
        ),
        (json!({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}}), "with `dynamic` "),
        (json!({"quant_method": "awq", "bits": 3}), "by awq to 3 bits"),
        (json!({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}), "by awq with `backend` \"llm-awq\""),
        (json!({"quant_method": "gptq", "bits": 4, "format": "gptq_v3"}), "by gptq with `format` \"gptq_v3\""),
        (json!({"quant_method": "fp8", "weight_block_size": "0x8"}), "by fp8 with `weight_block_size` \"0x8\""),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "by awq with `version` \"gemv\""),
        (json!({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}), "by modelopt with `quant_algo` \"W4A16_AWQ\""),
        (json!({"quant_method": "compressed-tensors"}), "by compressed-tensors with `config_groups` null"),
        (
            json!({"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {}}),
            "by compressed-tensors with `format` \"marlin-24\"",
        ),
        (
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 3}}}}),
            "by compressed-tensors to 3 bits",
        ),
        (
            json!({"quant_method": "compressed-tensors", "config_groups": {}, "transform_config": {"config_groups": {}}}),
            "with `transform_config` ",
        ),
    ] {
        let folder = changed("fp8-blocks", |config, _| config["quantization_config"] = quantisation.clone());
        refused(&folder, &["error[F0403]", said, "which nothing here reads", "help: get the model in bf16"]);
    }
}
