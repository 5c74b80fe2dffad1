//! A checkpoint's tensors against a description: whole rendered results, one file per case in `tensors/`; `BLESS=1` rewrites them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fusec::compile::{CompileOptions, compile};
use fusec::description::Description;
use fusec::tensors::{reconcile, required};

type Tensors = BTreeMap<String, Vec<usize>>;

/// What the tiny description and its checkpoint give once both are changed.
fn reconciled(change: (&str, &str), edit: impl Fn(&mut Tensors)) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/description");
    let good = fs::read_to_string(folder.join("good.toml")).expect("the case is there");
    let options = CompileOptions::default();
    let model = |text: &str| {
        let description = Description::parse(text, "tiny.toml").unwrap_or_else(|errors| panic!("{errors}"));
        compile(&description, None, &options).unwrap_or_else(|error| panic!("{error:#}"))
    };
    let mut tensors: Tensors =
        required(&model(&good).described).into_iter().map(|(weight, shape)| (weight.to_string(), shape)).collect();
    edit(&mut tensors);
    assert!(good.contains(change.0));
    let model = model(&good.replacen(change.0, change.1, 1));
    let found = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    match reconcile("tiny-checkpoint", &found, &model.resolved, &model.described) {
        Ok(accounting) => format!("{accounting:#?}"),
        Err(diagnostics) => diagnostics.to_string(),
    }
}

fn rename(tensors: &mut Tensors, to: impl Fn(&str) -> String) {
    *tensors = std::mem::take(tensors).into_iter().map(|(name, shape)| (to(&name), shape)).collect();
}

#[test]
fn checkpoints_give_these_results() {
    let same = ("", "");
    let cases: Vec<(&str, String)> = vec![
        ("whole", reconciled(same, |_| ())),
        (
            "harmless_extras",
            reconciled(same, |tensors| {
                tensors.insert("lm_head.weight".into(), vec![100, 64]);
                tensors.insert("layers.0.attn.bias".into(), vec![1, 1, 32, 32]);
                tensors.insert("layers.0.rotary_emb.inv_freq".into(), vec![8]);
            }),
        ),
        ("slip_in_a_name", reconciled(("\"q.weight\"", "\"qq.weight\""), |_| ())),
        ("under_a_prefix", reconciled(same, |tensors| rename(tensors, |name| format!("model.{name}")))),
        ("lost", reconciled(same, |tensors| tensors.retain(|name, _| !name.ends_with("o.weight")))),
        (
            "another_shape",
            reconciled(same, |tensors| {
                tensors.insert("layers.1.norm.weight".into(), vec![32]);
            }),
        ),
        (
            "stored_transposed",
            reconciled(("heads = \"num_attention_heads\"", "heads = 8, head_dim = 16"), |tensors| {
                for layer in 0..2 {
                    tensors.insert(format!("layers.{layer}.q.weight"), vec![64, 128]);
                    tensors.insert(format!("layers.{layer}.o.weight"), vec![64, 128]);
                }
            }),
        ),
        (
            "left_over",
            reconciled(same, |tensors| {
                for layer in 0..2 {
                    tensors.insert(format!("layers.{layer}.q_norm.weight"), vec![16]);
                }
                tensors.insert("visual.patch_embed.proj.weight".into(), vec![64, 3, 14, 14]);
            }),
        ),
        (
            "copied_line",
            reconciled(
                (
                    "{ out = \"a\", op = \"attention\"",
                    "{ out = \"g\", op = \"linear\", x = \"h\", weight = \"q.weight\", heads = \"num_attention_heads\" },\n  \
                     { out = \"q\", op = \"add\", a = \"q\", b = \"g\" },\n  { out = \"a\", op = \"attention\"",
                ),
                |tensors| {
                    for layer in 0..2 {
                        tensors.insert(format!("layers.{layer}.gate.weight"), vec![64, 64]);
                    }
                },
            ),
        ),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensors");
    let mut wrong = Vec::new();
    for (name, found) in &cases {
        let (path, found) = (folder.join(name).with_extension("txt"), format!("{}\n", found.trim_end()));
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &found).expect("an expected text can be written");
        } else if fs::read_to_string(&path).unwrap_or_default() != found {
            wrong.push(format!("== {name} gives\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
    let files = fs::read_dir(&folder).expect("the folder of cases").count();
    assert_eq!(files, cases.len(), "a file per case");
}
