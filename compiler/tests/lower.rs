//! Descriptions to graphs, one file per case; `BLESS=1` rewrites the expected texts. `lower/*.toml` is a description with a preset; beside it in a
//! `.txt` stands its graph, or the errors.

use std::fs;
use std::path::{Path, PathBuf};

use fusec::description::{Description, Diagnostics, shipped};
use fusec::ir::{Format, Graph, Op, RopeScaling, verify_all};
use fusec::lower::lower;

#[test]
fn descriptions_become_these_graphs() {
    let mut wrong = Vec::new();
    let mut cases = 0;
    for path in files() {
        cases += 1;
        let text = fs::read_to_string(&path).expect("a case can be read");
        let name = path.file_name().expect("a file").to_string_lossy();
        let got = match graph(&text, &name) {
            Ok(graph) => {
                assert_eq!(verify_all(&graph), [], "{name}");
                graph.to_string()
            }
            Err(errors) => errors.to_string(),
        };
        let got = format!("{}\n", got.trim_end());
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &got).expect("an expected text can be written");
        } else if fs::read_to_string(&expected).unwrap_or_default() != got {
            wrong.push(format!("== {name} gives\n{got}"));
        }
    }
    assert!(cases >= 10, "the cases are there");
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
}

#[test]
fn shipped_descriptions_become_sound_graphs() {
    for (name, text) in shipped() {
        let graph = graph(text, name).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(verify_all(&graph), [], "{name}");
        let states = graph.node_ids().into_iter().filter(|node| matches!(graph.op(*node), Op::State(_))).count();
        assert_eq!(graph.outputs.len(), 2 + states, "{name}: logits, the token, and each state");
        let unused = graph.node_ids().len() - graph.ordered().len();
        assert_eq!(unused, 0, "{name}: every node is needed");
    }
}

#[test]
fn a_tied_head_is_one_weight() {
    let (name, text) = *shipped().iter().find(|(name, _)| *name == "cohere.toml").expect("it is shipped");
    let graph = graph(text, name).unwrap_or_else(|errors| panic!("{errors}"));
    let tables = graph.node_ids().into_iter().filter(|node| {
        matches!(graph.op(*node), Op::Weight(weight) if ["model.embed_tokens.weight", "lm_head.weight"].contains(&weight.to_string().as_str()))
    });
    assert_eq!(tables.count(), 1);
}

/// `longrope` takes its long list, and `dynamic` a larger base, where the context is beyond the trained one.
#[test]
fn rope_follows_the_context() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lower/parts_and_experts.toml"))
        .expect("the case is there");
    let dynamic = text.replace("rope_type = \"longrope\"", "rope_type = \"dynamic\"");
    let dynamic = dynamic.replace("original_max_position_embeddings = 64, ", "");
    let from = dynamic.find("short_factor").expect("two lists");
    let to = dynamic[from..].find("factor = 1.0").expect("a factor") + from;
    let dynamic = format!("{}{}", &dynamic[..from], dynamic[to..].replacen("factor = 1.0", "factor = 4.0", 1));
    let ropes = |text: &str, context: Option<usize>| {
        let resolved = Description::parse(text, "tiny.toml").and_then(|description| description.resolve(None));
        let graph = resolved.and_then(|resolved| lower(&resolved, &|_| Format::F32, context));
        let graph = graph.unwrap_or_else(|errors| panic!("{errors}"));
        let rope = graph.ordered().into_iter().find_map(|node| match graph.op(node) {
            Op::Rope(rope) => Some(rope.clone()),
            _ => None,
        });
        rope.expect("q is rotated")
    };
    let factors = |context| match ropes(&text, context).scaling {
        RopeScaling::LongRope { factors, .. } => factors[0],
        other => panic!("{other:?}"),
    };
    assert_eq!([Some(64), Some(65), None].map(factors), [1.0, 5.0, 5.0]);
    let base = |context| ropes(&dynamic, context).theta;
    // 10000 · (4 · 256 / 128 - 3) ^ (8 / 6)
    assert_eq!([Some(20), Some(128), None].map(base), [10000.0; 3]);
    assert!((base(Some(256)) - 10000.0 * 5f64.powf(8.0 / 6.0)).abs() < 1e-6);
}

fn graph(text: &str, name: &str) -> Result<Graph, Diagnostics> {
    lower(&Description::parse(text, name)?.resolve(None)?, &|_| Format::F32, None)
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lower");
    let entries = fs::read_dir(folder).expect("the folder of cases");
    let paths = entries.map(|entry| entry.expect("an entry of the folder").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == "toml")).collect();
    paths.sort();
    paths
}
