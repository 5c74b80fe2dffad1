//! SmolLM2-135M-Instruct as its GGUF file: configuration, every tensor, tokenizer and chat template.
//!
//! The checksums come from the `gguf` package's dequantisation in numpy, with llama's q and k rows un-permuted there; the ids from a BPE written in a
//! few lines of Python over the file's merges, and those of the chat from the model's published tokenizer.

use fuse_tests::smollm2_gguf;
use fusec::description::Spare;
use fusec::ir::{Format, WeightRef};
use fuserun::generate::chat::{ChatTemplate, Message};
use fuserun::generate::tokenizer::Tokenizer;
use fuserun::weights::{Checkpoint, Dtype};
use serde_json::json;

const CHAT: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
const CHAT_IDS: [u32; 37] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
];

const TEXTS: [(&str, &[u32]); 4] = [
    ("Hello, world!", &[19556, 28, 905, 17]),
    ("Gravity is", &[22007, 6463, 314]),
    ("  def f(x):\n\treturn x\n\n", &[216, 753, 275, 24, 104, 727, 198, 197, 5406, 1792, 1116]),
    (
        "In 2026 it's 3.14 – naïve 🦀 日本",
        &[
            788, 216, 34, 32, 34, 38, 357, 506, 216, 35, 30, 33, 36, 816, 15486, 46494, 15107, 116, 218, 17097, 241,
            115, 40993,
        ],
    ),
];

/// Each value's bits times its place, from 1, summed modulo 2^64: sees a changed value and a changed order.
fn checksum(values: &[f32]) -> u64 {
    let weighted = values.iter().zip(1u64..).map(|(value, place)| u64::from(value.to_bits()).wrapping_mul(place));
    weighted.fold(0, u64::wrapping_add)
}

#[test]
fn configuration_is_transformers() {
    let checkpoint = Checkpoint::open(&smollm2_gguf()).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": null, "attention_bias": false, "mlp_bias": false,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    });
    assert_eq!(*checkpoint.config(), expected);
}

#[test]
fn every_tensor_reads_to_the_bit() {
    let checkpoint = Checkpoint::open(&smollm2_gguf()).unwrap();
    let mut required = vec![
        (WeightRef::whole("model.embed_tokens.weight"), vec![49152, 576]),
        (WeightRef::whole("model.norm.weight"), vec![576]),
    ];
    for layer in 0..30 {
        let shapes: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[576]),
            ("self_attn.q_proj", &[576, 576]),
            ("self_attn.k_proj", &[192, 576]),
            ("self_attn.v_proj", &[192, 576]),
            ("self_attn.o_proj", &[576, 576]),
            ("post_attention_layernorm", &[576]),
            ("mlp.gate_proj", &[1536, 576]),
            ("mlp.up_proj", &[1536, 576]),
            ("mlp.down_proj", &[576, 1536]),
        ];
        required
            .extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight").into(), shape.to_vec())));
    }
    checkpoint.account(&required, &Spare { tied_head: true, ..Spare::default() }).unwrap();

    let sums: Vec<(String, u64)> = required
        .iter()
        .map(|(weight, _)| (weight.to_string(), checksum(&checkpoint.read_f32(weight).unwrap())))
        .collect();
    let sum_of = |wanted: &str| sums.iter().find(|(name, _)| name == wanted).map(|(_, sum)| *sum);
    assert_eq!(sum_of("model.embed_tokens.weight"), Some(0x779fe7cb39c5bf80));
    assert_eq!(sum_of("model.layers.0.self_attn.q_proj.weight"), Some(0x498bfdc8aef21a00));
    assert_eq!(sum_of("model.layers.29.self_attn.k_proj.weight"), Some(0xb1e4e2e851895000));
    assert_eq!(sum_of("model.layers.29.self_attn.v_proj.weight"), Some(0xb2ddbb74d4210a00));
    assert_eq!(sum_of("model.layers.7.mlp.down_proj.weight"), Some(0xba70288630f65a00));
    assert_eq!(sum_of("model.norm.weight"), Some(0xa28ba9da0000));
    assert_eq!(
        sums.iter().fold(0u64, |total, (_, sum)| total.wrapping_add(*sum)),
        0x885aa0a7c41bf580,
        "the sum over all tensors"
    );

    let q = WeightRef::whole("model.layers.3.self_attn.q_proj.weight");
    let (whole, mut rows) = (checkpoint.read_f32(&q).unwrap(), Vec::new());
    checkpoint.read_rows_f32(&q, 33..97, &mut rows).unwrap();
    assert_eq!(rows, whole[33 * 576..97 * 576]);
    assert_eq!(
        (checkpoint.dtype(&q.to_string()).unwrap(), checkpoint.dtype("model.embed_tokens.weight").unwrap()),
        (Dtype::Of(Format::Q4_1), Dtype::Of(Format::Q8_0))
    );
}

#[test]
fn texts_become_the_models_ids_and_come_back() {
    let tokenizer = Tokenizer::open(&smollm2_gguf()).unwrap();
    for (text, ids) in TEXTS {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}; no bos is added");
        assert_eq!(tokenizer.decode(ids, true).unwrap(), text);
        let mut stream = tokenizer.decode_stream(true);
        let mut streamed: String = ids.iter().map(|&id| stream.step(id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, text);
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos().collect::<Vec<_>>()), (Some(1), vec![0, 2]));
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.token_to_id("<|im_end|>")), (49152, Some(2)));
}

#[test]
fn a_question_renders_as_the_model_was_trained() {
    let checkpoint = Checkpoint::open(&smollm2_gguf()).unwrap();
    let chat = ChatTemplate::from_checkpoint(&checkpoint).unwrap().expect("the file has a template");
    let text = chat.render(&[Message::new("user", "What is the capital of France?")], true).unwrap();
    assert_eq!(text, CHAT);
    assert_eq!(Tokenizer::from_checkpoint(&checkpoint).unwrap().encode(&text, false).unwrap(), CHAT_IDS);
}

#[test]
fn a_truncated_copy_says_so() {
    let whole = std::fs::read(smollm2_gguf()).unwrap();
    let path = std::env::temp_dir().join(format!("fuse-tests-truncated-{}.gguf", std::process::id()));
    let message = |length: usize| {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(&path).expect_err("the file is cut");
        std::fs::remove_file(&path).unwrap();
        format!("{error:#}").replace(path.to_str().unwrap(), "FILE")
    };
    let tail = message(whole.len() - 1000);
    assert!(
        tail.starts_with("FILE: not a usable GGUF file: tensor ") && tail.contains("it is truncated, get it again"),
        "{tail}"
    );
    let header = message(500_000);
    assert!(
        header.starts_with("FILE: not a usable GGUF file: ") && header.contains("truncated or corrupt, get it again"),
        "{header}"
    );
}
