//! `fuserun verify --against`: what agrees passes, and a wrong guess is found on its line. Messages are whole snapshots; `BLESS=1` rewrites them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fuse_tests::{Finished, TempFolder, command, finish, root};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn expected() -> PathBuf {
    root().join("tests/verify/qwen3.safetensors")
}

/// Verifies the qwen3 golden on the interpreter, with a description in place of the shipped one where one is given.
fn verify(against: &PathBuf, description: Option<&str>, more: &[&str]) -> Finished {
    let folder = TempFolder::new();
    let mut verify = command("fuserun");
    verify.current_dir(folder.path()).args(["verify", "-m"]).arg(root().join("tests/goldens/qwen3"));
    verify.arg("--against").arg(against).args(more);
    if let Some(text) = description {
        folder.write("guess.toml", text);
        verify.args(["--description", "guess.toml"]);
    }
    let mut done = finish(&mut verify, "");
    done.stderr = done.stderr.replace(&format!("{}/", root().display()), "");
    done
}

fn qwen3() -> String {
    fs::read_to_string(root().join("models/qwen3.toml")).expect("it is shipped")
}

fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(qwen3(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

#[test]
fn a_right_description_agrees() {
    let done = verify(&expected(), None, &["--device", "interpreter"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{}", done.stderr);
    assert!(done.stdout.starts_with("interpreter: 54 values agree, largest NMSE "), "{}", done.stdout);
    let on_cpu = verify(&expected(), None, &["--device", "cpu"]);
    assert_eq!(on_cpu.code, 0, "{}", on_cpu.stderr);
    for path in ["prompt path", "decode path"] {
        assert!(on_cpu.stdout.contains(path) && on_cpu.stdout.contains("at 5 of 5 positions"), "{}", on_cpu.stdout);
    }
    let golden = root().join("tests/goldens/qwen3/expected.safetensors");
    let logits_alone = verify(&golden, None, &["--device", "cpu"]);
    assert_eq!(logits_alone.code, 0, "{}", logits_alone.stderr);
    assert!(!logits_alone.stdout.contains("interpreter"), "{}", logits_alone.stdout);
}

/// With quantised weights it states what they cost, and holds the device to the interpreter with the same.
#[test]
fn what_a_format_costs_is_told() {
    let done = verify(&expected(), None, &["--device", "cpu", "--weights", "q4_0"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let lines: Vec<&str> = done.stdout.lines().collect();
    let [cost, prompt, decode] = lines[..] else { panic!("{}", done.stdout) };
    assert!(cost.starts_with("quantising costs: logits NMSE ") && cost.contains(", KL "), "{cost}");
    for line in [prompt, decode] {
        assert!(line.contains(" path, against the interpreter with the same weights: logits NMSE "), "{line}");
        assert!(line.ends_with("the same best token at 5 of 5 positions"), "{line}");
    }
    let beyond = verify(&expected(), None, &["--device", "cpu", "--weights", "q4_0", "--bound", "1e-9"]);
    assert!(beyond.code == 1 && beyond.stderr.contains("; the bound is 1e-9"), "{}", beyond.stderr);
}

#[test]
fn wrong_guesses_are_found_on_their_lines() {
    let rope = "{ out = \"q\", op = \"rope\", x = \"q\", theta = \"rope_theta\", scaling = \"rope_scaling\" }";
    let norm =
        "{ out = \"q\", op = \"rms_norm\", x = \"q\", weight = \"self_attn.q_norm.weight\", eps = \"rms_norm_eps\" }";
    let neighbours = rope.replace(" }", ", interleaved = true }");
    let cases: Vec<(&str, String)> = vec![
        ("pairs_of_rope", changed(&[(rope, &neighbours)])),
        ("epsilon", changed(&[("eps = \"rms_norm_eps\"", "eps = 1e-3")])),
        ("scale_of_scores", changed(&[("head_dim ** -0.5", "hidden_size ** -0.5")])),
        ("norm_after_rope", changed(&[(norm, "@"), (rope, norm), ("@", rope)])),
        (
            "gate_and_up_swapped",
            changed(&[("mlp.gate_proj", "mlp.@"), ("mlp.up_proj", "mlp.gate_proj"), ("mlp.@", "mlp.up_proj")]),
        ),
        (
            "no_residual",
            changed(&[(
                "{ out = \"x\", op = \"add\", a = \"x\", b = \"m\" }",
                "{ out = \"x\", op = \"scale\", x = \"m\", factor = 1.0 }",
            )]),
        ),
        (
            "last_norm",
            changed(&[("weight = \"model.norm.weight\", eps", "weight = \"model.norm.weight\", offset = 0.01, eps")]),
        ),
    ];
    let mut wrong = Vec::new();
    for (name, description) in &cases {
        let done = verify(&expected(), Some(description), &["--device", "interpreter"]);
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{name}: {}", done.stderr);
        let path = root().join("tests/verify").join(name).with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &done.stderr).expect("an expected text can be written");
        } else if fs::read_to_string(&path).unwrap_or_default() != done.stderr {
            wrong.push(format!("== {name} gives\n{}", done.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
}

#[test]
fn logits_alone_tell_that_and_not_where() {
    let golden = root().join("tests/goldens/qwen3/expected.safetensors");
    let done = verify(&golden, Some(&changed(&[("eps = \"rms_norm_eps\"", "eps = 1e-2")])), &["--device", "cpu"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("error[F0701]") && done.stderr.contains("docs/expected.py"), "{}", done.stderr);
    assert!(done.stderr.contains("CPU, ") && done.stderr.contains("logits NMSE"), "{}", done.stderr);
}

/// A file with some of the expected tensors under other names.
fn renamed(folder: &TempFolder, names: &[(&str, &str)]) -> PathBuf {
    let bytes = fs::read(expected()).expect("the file is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
    let chosen: BTreeMap<&str, TensorView<'_>> =
        names.iter().map(|(from, to)| (*to, tensors.tensor(from).expect("the file has it"))).collect();
    let path = folder.path().join("renamed.safetensors");
    safetensors::serialize_to_file(chosen, None, &path).expect("a scratch file");
    path
}

#[test]
fn values_are_found_under_the_descriptions_names_too() {
    let folder = TempFolder::new();
    let path = renamed(
        &folder,
        &[
            ("tokens", "tokens"),
            ("model.embed_tokens", "embed.x"),
            ("attention.1.q", "layers.1.q"),
            ("model.layers.0.mlp.down_proj", "layers.0.m"),
            ("model.layers.1.self_attn.o_proj.input", "attention.1.output"),
            ("hidden_states.1", "model.layers.0"),
            ("model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.v_proj.output"),
            ("model.norm", "head.h"),
            ("model.norm.input", "layers.0.gate"),
            ("attention.1.k", "nothing.like.this"),
        ],
    );
    let done = verify(&path, None, &["--device", "interpreter"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.starts_with("interpreter: 7 values agree"), "{}", done.stdout);
    let said =
        "not compared, as the description has no such value: nothing.like.this, layers.0.gate [5, 64], here [5, 128]\n";
    assert_eq!(done.stderr, said);
}

#[test]
fn what_cannot_be_compared_is_one_clear_message() {
    let folder = TempFolder::new();
    let refused = |path: &PathBuf, more: &[&str], part: &str| {
        let done = verify(path, None, &[&["--device", "interpreter"], more].concat());
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{}", done.stderr);
        assert!(done.stderr.starts_with("error: ") && done.stderr.contains(part), "{part}: {}", done.stderr);
    };
    refused(&folder.path().join("none.safetensors"), &[], "cannot read");
    refused(&folder.write("odd.safetensors", "odd"), &[], "no safetensors file");
    refused(&renamed(&folder, &[("logits", "logits")]), &[], "has no tensor `tokens`");
    refused(&renamed(&folder, &[("tokens", "tokens")]), &[], "holds nothing to compare");
    refused(
        &renamed(&folder, &[("tokens", "tokens"), ("model.norm", "logits")]),
        &[],
        "64 values per token, the model 320",
    );
    refused(&renamed(&folder, &[("logits", "tokens"), ("model.norm", "logits")]), &[], "they are F32");
    refused(&expected(), &["--bound", "0"], "--bound 0");
}

/// The module of an embedding may scale what it returns, as that of Gemma 3 does, or leave that to what follows.
#[test]
fn an_embedding_agrees_scaled_or_not() {
    let gemma = root().join("tests/goldens/gemma");
    let [weights, golden] =
        ["model.safetensors", "expected.safetensors"].map(|name| fs::read(gemma.join(name)).unwrap());
    let [weights, golden] =
        [&weights, &golden].map(|bytes| SafeTensors::deserialize(bytes).expect("a safetensors file"));
    let table = weights.tensor("model.embed_tokens.weight").expect("the golden has it");
    let tokens = golden.tensor("tokens").expect("the golden has it");
    let hidden = table.shape()[1];
    let rows = tokens.data().chunks(4).map(|id| i32::from_le_bytes(id.try_into().unwrap()) as usize);
    let values: Vec<f32> = rows
        .flat_map(|row| table.data()[row * hidden * 2..][..hidden * 2].chunks(2))
        .map(|half| f32::from_bits(u32::from(u16::from_le_bytes([half[0], half[1]])) << 16))
        .collect();
    let folder = TempFolder::new();
    for (factor, right) in [(1.0, true), ((hidden as f32).sqrt(), true), (2.0, false)] {
        let bytes: Vec<u8> = values.iter().flat_map(|value| (value * factor).to_le_bytes()).collect();
        let shape = vec![values.len() / hidden, hidden];
        let scaled = TensorView::new(safetensors::Dtype::F32, shape, &bytes).expect("they fill it");
        let path = folder.path().join("scaled.safetensors");
        let file = BTreeMap::from([("tokens", tokens.clone()), ("model.embed_tokens", scaled)]);
        safetensors::serialize_to_file(file, None, &path).expect("a scratch file");
        let mut verify = command("fuserun");
        verify.args(["verify", "--device", "interpreter", "-m"]).arg(&gemma).arg("--against").arg(&path);
        let done = finish(&mut verify, "");
        assert_eq!(done.code == 0, right, "{factor}: {}{}", done.stdout, done.stderr);
        assert_eq!(
            done.stderr.contains("error[F0701]: `x` differs from `model.embed_tokens`"),
            !right,
            "{}",
            done.stderr
        );
    }
}
