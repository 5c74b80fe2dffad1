//! Descriptions to graphs, one file a case; `BLESS=1` rewrites the expected texts. `lower/*.toml` is a description with a preset; beside it in a
//! `.txt` stands its graph, or the errors.

use std::fs;
use std::path::{Path, PathBuf};

use fusec::description::{Description, Diagnostics, shipped};
use fusec::ir::{DType, Graph, Op, verify_all};
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
        let layers = graph.node_ids().into_iter().filter_map(|node| graph.node(node).layer).max().expect("layers") + 1;
        assert_eq!(graph.outputs.len(), 2 + 2 * layers, "{name}: logits, the token, and each layer's caches");
        let unused = graph.node_ids().len() - graph.ordered().len();
        assert_eq!(unused, 0, "{name}: every node is needed");
    }
}

#[test]
fn a_tied_head_is_one_weight() {
    let (name, text) = shipped()[0];
    let graph = graph(text, name).unwrap_or_else(|errors| panic!("{errors}"));
    let tables = graph.node_ids().into_iter().filter(|node| {
        matches!(graph.op(*node), Op::Weight(weight) if weight == "model.embed_tokens.weight" || weight == "lm_head.weight")
    });
    assert_eq!(tables.count(), 1);
}

fn graph(text: &str, name: &str) -> Result<Graph, Diagnostics> {
    lower(&Description::parse(text, name)?.resolve(None)?, DType::F32, None)
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lower");
    let entries = fs::read_dir(folder).expect("the folder of cases");
    let paths = entries.map(|entry| entry.expect("an entry of the folder").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == "toml")).collect();
    paths.sort();
    paths
}
