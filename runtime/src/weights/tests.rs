use super::gguf::test_file::{Builder, text};
use super::*;
use fusec::description::Spare;
use fusec::ir::{Format, WeightRef};
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of its own that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fuserun-weights-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), r#"{"hidden_size": 2}"#).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.0.join(name)
    }

    fn error(&self) -> String {
        let error = Checkpoint::open(&self.0).expect_err("the directory is broken");
        format!("{error:#}").replace(self.0.to_str().unwrap(), "DIR")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One safetensors file of (name, dtype, shape, bytes).
fn safetensors(tensors: &[(&str, safetensors::Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn a_directory_reads_every_plain_type() {
    use safetensors::Dtype as Stored;
    let folder = Folder::new();
    let halves: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    let brains: Vec<u8> = [3.0f32, -0.25].iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    folder.write(
        "model.safetensors",
        safetensors(&[
            ("f32", Stored::F32, &[3, 2], floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
            ("f16", Stored::F16, &[2], halves),
            ("bf16", Stored::BF16, &[1, 1, 2], brains),
            ("ids", Stored::I64, &[1], vec![0; 8]),
        ]),
    );
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    assert_eq!(checkpoint.config()["hidden_size"], 2);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["bf16", "f16", "f32", "ids"]);
    assert_eq!(
        (checkpoint.shape(&"f32".into()).unwrap(), checkpoint.dtype("bf16").unwrap()),
        (vec![3, 2], Dtype::Of(Format::BF16))
    );
    assert_eq!(checkpoint.read_f32(&"f16".into()).unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.read_f32(&"bf16".into()).unwrap(), [3.0, -0.25]);
    let mut rows = vec![9.0; 5];
    checkpoint.read_rows_f32(&"f32".into(), 1..3, &mut rows).unwrap();
    assert_eq!(rows, [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(
        checkpoint.read_rows_f32(&"f32".into(), 2..4, &mut rows).unwrap_err().to_string(),
        "rows 2..4 of weight f32, which has 3"
    );
    let unread = format!("{:#}", checkpoint.read_f32(&"ids".into()).unwrap_err());
    assert!(
        unread.contains("tensor ids [1]: I64 is not read; convert the checkpoint to one of: F32, F16, BF16"),
        "{unread}"
    );
    assert!(
        checkpoint
            .read_f32(&"bf15".into())
            .unwrap_err()
            .to_string()
            .ends_with("there is no tensor bf15; did you mean bf16?")
    );
}

#[test]
fn shards_are_found_with_and_without_an_index() {
    let folder = Folder::new();
    let shard = |name| safetensors(&[(name, safetensors::Dtype::F32, &[1], floats(&[1.0]))]);
    folder.write("model-00001-of-00002.safetensors", shard("a"));
    folder.write("model-00002-of-00002.safetensors", shard("b"));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);

    let index = |a: &str, b: &str| json!({ "weight_map": { "a": a, "b": b } }).to_string();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    folder.write("model.safetensors.index.json", index(one, two));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().read_f32(&"b".into()).unwrap(), [1.0]);

    folder.write("model.safetensors.index.json", index(one, one));
    assert_eq!(
        folder.error(),
        "DIR/model.safetensors.index.json: tensor b is not in model-00001-of-00002.safetensors, where the index has it; download both again"
    );
    // What no model needs may be listed and absent: buffers, the copy of a tied head, layers after the last, parts beside the language model.
    let listed = |name: &str| json!({ "weight_map": { "a": one, "b": two, name: one } }).to_string();
    folder.write("config.json", r#"{"num_hidden_layers": 2}"#);
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "lm_head.weight",
        "model.layers.2.mlp.up_proj.weight",
        "h.0.attn.masked_bias",
    ] {
        folder.write("model.safetensors.index.json", listed(name));
        assert_eq!(Checkpoint::open(&folder.0).unwrap().names().collect::<Vec<_>>(), ["a", "b"], "{name}");
    }
    for name in ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        folder.write("model.safetensors.index.json", listed(name));
        assert!(folder.error().contains(&format!("tensor {name} is not in {one}")), "{name}");
    }
    folder.write("config.json", r#"{"text_config": {"num_hidden_layers": 2}, "vision_config": {}}"#);
    folder.write("model.safetensors.index.json", listed("vision_tower.norm.weight"));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    folder.write("config.json", r#"{"hidden_size": 2, "limit": [0.0, Infinity], "other": NaN}"#);

    folder.write("model.safetensors.index.json", index(one, "../b.safetensors"));
    assert!(folder.error().contains("'../b.safetensors', which is not the name of a file beside the index"));
    folder.write("model.safetensors.index.json", index(one, two));
    std::fs::remove_file(folder.0.join(two)).unwrap();
    assert_eq!(
        folder.error(),
        "DIR: 1 of 2 shards are missing, model-00002-of-00002.safetensors the first; download them"
    );
    folder.write("model.safetensors.index.json", "{}");
    assert_eq!(folder.error(), "DIR/model.safetensors.index.json: there is no object weight_map");
    std::fs::remove_file(folder.0.join("model.safetensors.index.json")).unwrap();
    folder.write("other.safetensors", shard("a"));
    assert_eq!(folder.error(), "DIR/other.safetensors: tensor a is in another file of the directory too");
}

#[test]
fn a_truncated_safetensors_says_what_it_should_have_had() {
    let folder = Folder::new();
    let whole = safetensors(&[("a", safetensors::Dtype::F32, &[4], floats(&[1.0; 4]))]);
    for length in 0..whole.len() {
        folder.write("model.safetensors", &whole[..length]);
        let message = folder.error();
        assert!(
            message.starts_with("DIR/model.safetensors: ")
                && message.ends_with("it is truncated or corrupt, download it again"),
            "{length}: {message}"
        );
    }
    let (found, expected) = (whole.len() - 1, whole.len());
    assert_eq!(
        folder.error(),
        format!(
            "DIR/model.safetensors: its header describes {expected} bytes and the file has {found}: it is truncated or corrupt, download it again"
        )
    );
    folder.write("model.safetensors", [&9u64.to_le_bytes()[..], b"not json!"].concat());
    assert!(folder.error().starts_with("DIR/model.safetensors: not a usable safetensors file: invalid JSON in header"));
}

#[test]
fn what_is_no_checkpoint_is_told_what_one_is() {
    let folder = Folder::new();
    assert_eq!(
        folder.error(),
        "DIR: there is no .safetensors file beside config.json; download the weights (not .bin or .pth files)"
    );
    folder.write("config.json", "[]");
    assert_eq!(folder.error(), "DIR/config.json: not a JSON object");
    folder.write("config.json", "{");
    assert!(folder.error().starts_with("DIR/config.json: not valid JSON: "));
    std::fs::remove_file(folder.0.join("config.json")).unwrap();
    assert_eq!(
        folder.error(),
        "DIR: there is no config.json: the folder is empty; get the model as .safetensors files with config.json and tokenizer.json, or as a .gguf file"
    );
    let notes = folder.write("notes.txt", "");
    assert_eq!(folder.error(), "DIR: there is no config.json; give a Hugging Face model directory or a .gguf file");
    std::fs::remove_file(notes).unwrap();
    let gguf = folder.write("model.gguf", "");
    assert_eq!(
        folder.error(),
        "DIR: there is no config.json; it holds a GGUF file: name that instead (DIR/model.gguf)"
    );
    let message = format!("{:#}", Checkpoint::open(&gguf).unwrap_err());
    assert!(
        message.contains("model.gguf: not a usable GGUF file: the magic needs 4 bytes at byte 0, but 0 are left"),
        "{message}"
    );
    assert!(Checkpoint::open(&folder.0.join("none")).unwrap_err().to_string().contains("no such file or directory"));
    let odd = folder.write("weights.safetensors", "12345678");
    assert!(
        Checkpoint::open(&odd)
            .unwrap_err()
            .to_string()
            .contains("not a GGUF file; it is one file of a model: name the folder that holds it")
    );
    let odd = folder.write("weights", "12345678");
    assert!(
        Checkpoint::open(&odd)
            .unwrap_err()
            .to_string()
            .contains("not a GGUF file; give a .gguf file, or the directory")
    );
}

/// A llama file of hidden 3, 2 query heads of 6 and 1 key head of 6; the value in row r, column c before permutation is 10 r + c, the bias is r.
fn llama_with_heads(architecture: &str) -> Vec<u8> {
    // The permutation as a converter does it: reshape to (heads, 2, half), swap the last two.
    let stored_order = |heads: usize| -> Vec<usize> {
        (0..heads).flat_map(|head| (0..3).flat_map(move |j| (0..2).map(move |c| head * 6 + c * 3 + j))).collect()
    };
    let matrix = |heads: usize| -> Vec<u8> {
        stored_order(heads)
            .iter()
            .flat_map(|row| floats(&[10.0 * *row as f32, 10.0 * *row as f32 + 1.0, 10.0 * *row as f32 + 2.0]))
            .collect()
    };
    let bias =
        |heads: usize| -> Vec<u8> { stored_order(heads).iter().flat_map(|row| floats(&[*row as f32])).collect() };
    let mut file = Builder::new(2).metadata("general.architecture", 8, &text(architecture));
    for (key, value) in [
        ("embedding_length", 3u32),
        ("block_count", 1),
        ("feed_forward_length", 4),
        ("context_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 6),
    ] {
        file = file.metadata(&format!("{architecture}.{key}"), 4, &value.to_le_bytes());
    }
    file.metadata(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6, &1e-6f32.to_le_bytes())
        .tensor("token_embd.weight", &[3, 2], 0, &floats(&[0.0; 6]))
        .tensor("blk.0.attn_q.weight", &[3, 12], 0, &matrix(2))
        .tensor("blk.0.attn_k.weight", &[3, 6], 0, &matrix(1))
        .tensor("blk.0.attn_q.bias", &[12], 0, &bias(2))
        .build()
}

#[test]
fn llamas_rotation_pairs_become_half_split_rows() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(&folder.write("a.gguf", llama_with_heads("llama"))).unwrap();
    let (q, k, bias) = (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    );
    let rows = |range: Range<usize>| -> Vec<f32> {
        range.flat_map(|row| [0.0, 1.0, 2.0].map(|column| 10.0 * row as f32 + column)).collect()
    };
    assert_eq!(checkpoint.shape(&q.into()).unwrap(), [12, 3]);
    assert_eq!(checkpoint.read_f32(&q.into()).unwrap(), rows(0..12));
    assert_eq!(checkpoint.read_f32(&k.into()).unwrap(), rows(0..6));
    assert_eq!(checkpoint.read_f32(&bias.into()).unwrap(), (0..12).map(|row| row as f32).collect::<Vec<_>>());
    let mut some = Vec::new();
    checkpoint.read_rows_f32(&q.into(), 4..9, &mut some).unwrap();
    assert_eq!(some, rows(4..9));

    let other = Checkpoint::open(&folder.write("b.gguf", llama_with_heads("qwen2"))).unwrap();
    assert_eq!(
        other.read_f32(&bias.into()).unwrap(),
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0],
        "qwen2 is stored as it is"
    );
}

/// The file of `llama_with_heads` in three parts: the metadata with the embedding, the matrices, the bias.
fn parts() -> [Builder; 3] {
    let part = |number: u16| {
        let file = Builder::new(3).metadata("split.no", 2, &number.to_le_bytes());
        file.metadata("split.count", 2, &3u16.to_le_bytes()).metadata("split.tensors.count", 5, &4i32.to_le_bytes())
    };
    let mut first = part(0).metadata("general.architecture", 8, &text("llama"));
    for (key, value) in [
        ("embedding_length", 3u32),
        ("block_count", 1),
        ("feed_forward_length", 4),
        ("context_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 6),
    ] {
        first = first.metadata(&format!("llama.{key}"), 4, &value.to_le_bytes());
    }
    let first = first.metadata("llama.attention.layer_norm_rms_epsilon", 6, &1e-6f32.to_le_bytes());
    let rows =
        |from: usize, count: usize| floats(&(from..from + 3 * count).map(|value| value as f32).collect::<Vec<_>>());
    [
        first.tensor("token_embd.weight", &[3, 2], 0, &rows(100, 2)),
        part(1).tensor("blk.0.attn_k.weight", &[3, 6], 0, &rows(200, 6)).tensor(
            "blk.0.attn_v.weight",
            &[3, 6],
            0,
            &rows(300, 6),
        ),
        part(2).tensor("output_norm.weight", &[3], 0, &rows(400, 1)),
    ]
}

#[test]
fn a_model_in_several_gguf_files_is_read_from_any_of_them() {
    let folder = Folder::new();
    let names = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
    for (name, part) in names.iter().zip(parts()) {
        folder.write(name, part.build());
    }
    for name in names {
        let checkpoint = Checkpoint::open(&folder.0.join(name)).unwrap();
        assert_eq!(checkpoint.config()["hidden_size"], 3);
        let read = |name: &str| checkpoint.read_f32(&name.into()).unwrap();
        assert_eq!(read("model.embed_tokens.weight"), [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]);
        assert_eq!(read("model.norm.weight"), [400.0, 401.0, 402.0]);
        assert_eq!(read("model.layers.0.self_attn.v_proj.weight")[..4], [300.0, 301.0, 302.0, 303.0]);
        // Rotation pairs are undone in a part like in a whole file.
        assert_eq!(read("model.layers.0.self_attn.k_proj.weight")[3..6], [206.0, 207.0, 208.0]);
    }
    let error = |name: &str| format!("{:#}", Checkpoint::open(&folder.0.join(name)).unwrap_err());
    let renamed = folder.write("other.gguf", parts()[0].clone().build());
    assert!(
        error(renamed.file_name().unwrap().to_str().unwrap()).contains("its name must end in -00001-of-00003.gguf")
    );
    folder.write(names[2], parts()[1].clone().build());
    assert!(
        error(names[0]).contains("m-00003-of-00003.gguf: it is not part 3 of 3 by its metadata"),
        "{}",
        error(names[0])
    );
    std::fs::remove_file(folder.0.join(names[2])).unwrap();
    assert!(
        error(names[0]).contains("1 of its 3 parts are missing, m-00003-of-00003.gguf the first"),
        "{}",
        error(names[0])
    );
    let short = parts()[2].clone().tensor("blk.0.attn_v.weight", &[3, 6], 0, &[0; 72]);
    folder.write(names[2], short.build());
    assert!(error(names[1]).contains("tensor blk.0.attn_v.weight is in an earlier part too"), "{}", error(names[1]));
    let more = parts()[2].clone().tensor("output.weight", &[3, 2], 0, &[0; 24]);
    folder.write(names[2], more.build());
    assert!(error(names[1]).contains("its parts hold 5 tensors and it should have 4"), "{}", error(names[1]));
}

#[test]
fn a_tied_head_has_no_other_values_of_its_own() {
    let table = |first: f32| (vec![300, 2], (0..600).map(|i| if i == 599 { first } else { i as f32 }).collect());
    let check = |head: f32, tied_head: bool| {
        let named = [("model.embed_tokens.weight", table(1.0)), ("lm_head.weight", table(head))];
        let tensors = named.map(|(name, tensor)| (name.to_owned(), tensor)).into_iter().collect();
        let checkpoint = Checkpoint::from_memory(json!({}), tensors).unwrap();
        let required = [(WeightRef::whole("model.embed_tokens.weight"), vec![300, 2])];
        let spare = Spare { tied_head, ..Spare::default() };
        checkpoint.check_tied_head(&required, &spare).map_err(|error| error.to_string())
    };
    assert_eq!(check(1.0, true), Ok(()));
    assert_eq!(check(2.0, false), Ok(()));
    let said = check(2.0, true).unwrap_err();
    assert!(
        said.contains("ties the head to model.embed_tokens.weight") && said.contains("set tie_word_embeddings"),
        "{said}"
    );
}

#[test]
fn tensors_in_memory_read_like_others() {
    let tensors = BTreeMap::from([("w".to_owned(), (vec![2, 2, 2], (0..8).map(|value| value as f32).collect()))]);
    let checkpoint = Checkpoint::from_memory(json!({}), tensors).unwrap();
    let mut rows = Vec::new();
    checkpoint.read_rows_f32(&"w".into(), 1..2, &mut rows).unwrap();
    assert_eq!(rows, [4.0, 5.0, 6.0, 7.0]);
    let short = BTreeMap::from([("w".to_owned(), (vec![2, 3], vec![0.0; 5]))]);
    assert_eq!(
        Checkpoint::from_memory(json!({}), short).unwrap_err().to_string(),
        "tensor w of shape [2, 3] needs 6 values and has 5"
    );
}

#[test]
fn made_up_weights_are_the_same_each_time_and_by_row() {
    let shapes = [("w".into(), vec![100, 50]), ("norm.weight".into(), vec![3]), ("b".into(), vec![100, 50])];
    let checkpoint = Checkpoint::dummy(json!({}), &shapes, 7);
    let values = checkpoint.read_f32(&"w".into()).unwrap();
    assert_eq!(values, Checkpoint::dummy(json!({}), &shapes, 7).read_f32(&"w".into()).unwrap());
    assert_ne!(values, Checkpoint::dummy(json!({}), &shapes, 8).read_f32(&"w".into()).unwrap());
    assert_ne!(values, checkpoint.read_f32(&"b".into()).unwrap());
    let mut rows = Vec::new();
    checkpoint.read_rows_f32(&"w".into(), 10..12, &mut rows).unwrap();
    assert_eq!(rows, values[500..600]);
    assert_eq!(checkpoint.read_f32(&"norm.weight".into()).unwrap(), [1.0; 3]);
    let mean = values.iter().sum::<f32>() / 5000.0;
    let deviation = (values.iter().map(|value| value * value).sum::<f32>() / 5000.0).sqrt();
    assert!(mean.abs() < 0.001 && (deviation - 0.02).abs() < 0.001, "mean {mean}, deviation {deviation}");
}
