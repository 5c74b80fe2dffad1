//! Quantised weights: their values, and how their formats reach graphs, plans and devices.

use std::collections::BTreeMap;
use std::path::Path;

use fuse_tests::gguf::gguf_of_blocks;
use fuse_tests::{TempFolder, nmse};
use fusec::compile::{CompileOptions, compile};
use fusec::description::{Description, shipped};
use fusec::ir::Format;
use fusec::plan::PlanOptions;
use fuserun::backend::{Device, LoadOptions};
use fuserun::model::{ModelName, OpenModel};
use fuserun::weights::decode;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

/// Every format of GGUF's blocks.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.is_of_gguf())
}

#[test]
fn every_block_type_has_the_values_of_the_reference_to_the_bit() {
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("blocks/gguf.safetensors")).expect("it is committed");
    let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
    for format in formats() {
        let tensor = |part: &str| file.tensor(&format!("{}.{part}", format.name())).expect("each format is there");
        let (blocks, wanted) = (tensor("blocks"), tensor("values"));
        let mut values = Vec::new();
        decode(format, blocks.data(), &mut values);
        let (found, wanted): (Vec<u32>, Vec<u32>) = (
            values.iter().map(|value| value.to_bits()).collect(),
            wanted.data().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect(),
        );
        assert!(!found.is_empty());
        assert_eq!(found, wanted, "{}", format.name());
    }
    assert_eq!(file.len(), 2 * formats().count());
}

/// A folder with a configuration and random weights of the shapes that it asks for.
fn folder_of(config: &Value) -> TempFolder {
    let folder = TempFolder::new();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("it is written");
    let file = format!("{}.toml", config["model_type"].as_str().expect("a model_type"));
    let (_, text) = shipped().iter().find(|(name, _)| *name == file).expect("a description is shipped");
    let description = Description::parse(text, &file).expect("it is right");
    let options = CompileOptions { plan: PlanOptions::none(), ..CompileOptions::default() };
    let model = compile(&description, Some(config), &options).expect("it compiles");
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (weight, shape) in fusec::tensors::required(&model.described) {
        let shape = weight.tensor_shape(&shape).expect("a shape");
        for tensor in weight.tensors() {
            let values = fusec::ir::random_tensor(&tensor, &shape, 7).data;
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(tensor, (shape.clone(), bytes));
        }
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the values fill it"))
    });
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).expect("plain"))
        .expect("it is written");
    folder
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 70,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": false,
    })
}

/// The GGUF file of a configuration, with blocks.
fn quantised(config: &Value, pick: &dyn Fn(&str) -> Format) -> (TempFolder, ModelName) {
    let folder = folder_of(config);
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, gguf_of_blocks(folder.path(), pick)).expect("it is written");
    (folder, ModelName { model: Some(path), ..ModelName::default() })
}

fn logits(model: &ModelName, device: &Device, tokens: &[u32]) -> Vec<f32> {
    let options = LoadOptions { context: tokens.len(), sequences: 1, batches: vec![1], threads: Some(2) };
    let mut backend = OpenModel::open(model).and_then(|opened| opened.load(device, &options)).expect("it loads");
    backend.logits(tokens, false).expect("it runs")
}

#[test]
fn formats_reach_graphs_plans_and_notes() {
    let pick = |name: &str| match name {
        _ if name.contains("attn_v") => Format::Q6K,
        _ if name.contains("attn_output") => Format::Q5K,
        "token_embd.weight" => Format::Q8_0,
        _ => Format::Q4K,
    };
    let (_folder, model) = quantised(&llama(), &pick);
    let opened = OpenModel::open(&model).expect("it opens");
    let compiled = opened.compile(PlanOptions::default()).expect("it compiles");
    let text = compiled.graph.to_string();
    for line in [
        "\"model.embed_tokens.weight\" : q8_0[70, 256]",
        "\"model.layers.0.self_attn.q_proj.weight\" : q4_k[256, 256]",
        "\"model.layers.1.self_attn.v_proj.weight\" : q6_k[128, 256]",
        "\"model.norm.weight\" : bf16[256]",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    // q and k share a buffer; v, of another format, has its own. Kernels read all of them as they are.
    let buffer = |tensor: &str| {
        let buffers = &compiled.plan.weights;
        buffers.iter().find(|weight| weight.name.contains(tensor)).expect("it is read").recipe.tensors().len()
    };
    assert_eq!([buffer("0.self_attn.q_proj"), buffer("0.self_attn.v_proj")], [2, 1]);
    assert_eq!(compiled.plan.rounding(), None);
    assert_eq!(opened.rounded(), None);
}

/// How far the CPU may be from the interpreter: its activations have 16 bits in products with blocks.
const BOUND: f64 = 1e-7;
const TOKENS: [u32; 7] = [3, 14, 15, 9, 26, 5, 35];

#[test]
fn the_cpu_computes_with_every_format() {
    for format in formats() {
        let (_folder, model) = quantised(&llama(), &|_| format);
        let error = nmse(&logits(&model, &Device::Cpu, &TOKENS), &logits(&model, &Device::Interpreter, &TOKENS));
        println!("{}: NMSE {error:.2e}", format.name());
        assert!(error < BOUND, "{}: NMSE {error:.2e}", format.name());
    }
}

#[test]
fn the_cpu_computes_with_several_formats_in_one_kernel_and_in_experts() {
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 70,
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
    });
    let pick = |name: &str| match name {
        _ if name.contains("attn_q") => Format::Q4K,
        _ if name.contains("attn_k") => Format::F32,
        _ if name.contains("attn_v") => Format::Q6K,
        _ if name.contains("gate_exps") => Format::Q4_1,
        _ if name.contains("up_exps") => Format::Q5_0,
        _ if name.contains("down_exps") => Format::Iq4Nl,
        _ => Format::Q8_0,
    };
    let (_folder, model) = quantised(&config, &pick);
    let error = nmse(&logits(&model, &Device::Cpu, &TOKENS), &logits(&model, &Device::Interpreter, &TOKENS));
    println!("NMSE {error:.2e}");
    // A weight in f32 is taken as bf16, and so is the result of no other.
    assert!(error < 1e-4, "NMSE {error:.2e}");
}
