//! Rewrites, one file per case: the passes that run, a graph, `----`, the graph that must come out of it and what did not
//! fuse. `BLESS=1` writes what comes out into the files. The interpreter runs both graphs on random data.

mod model;
mod rules;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use fusec::ir::{Graph, nmse, random_run};
use fusec::passes::{PIPELINE, Selection, explain, run};

use model::{Family, decoder};

const DIVIDER: &str = "----\n";

#[test]
fn every_case_comes_out_as_its_file_says() {
    let bless = env::var_os("BLESS").is_some_and(|value| value != "0");
    let cases = cases();
    assert!(cases.len() > PIPELINE.len(), "cases are missing");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|path| check(path, bless).err().map(|error| format!("{}: {error:#}", short(path))))
        .collect();
    assert!(
        failures.is_empty(),
        "{} cases failed (BLESS=1 rewrites them):\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

#[test]
fn every_pass_has_cases_that_fire_and_cases_that_do_not() {
    let names: Vec<String> = cases().iter().map(|path| short(path)).collect();
    for rewrite in PIPELINE {
        for kind in ["fires", "not-"] {
            let prefix = format!("{}/{kind}", rewrite.name);
            assert!(names.iter().any(|name| name.starts_with(&prefix)), "there is no case {prefix}*.ir");
        }
    }
}

/// The files of whole models are what the generator makes, so that the large graphs of other tests are like them.
#[test]
fn model_files_are_generated() {
    let families = [
        ("llama", Family::default()),
        ("qwen2", Family { qkv_bias: true, ..Family::default() }),
        ("qwen3", Family { qk_norm: true, ..Family::default() }),
    ];
    for (name, family) in families {
        let path = folder().join(format!("pipeline/fires-{name}.ir"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let input = format!("; passes: all\n; two layers as lowering makes them\n{}", decoder(name, 2, family));
        if env::var_os("BLESS").is_some_and(|value| value != "0") && !text.starts_with(&input) {
            fs::write(&path, format!("{input}{DIVIDER}")).expect("the file can be written");
            panic!("{} is made anew: bless once more", path.display());
        }
        assert!(text.starts_with(&input), "{} does not begin with what the generator makes (BLESS=1)", path.display());
    }
}

#[test]
fn eighty_layers_take_little_time() {
    let mut graph = Graph::parse(&decoder("llama", 80, Family::default())).expect("the text is a graph");
    let nodes = graph.ordered().len();
    let started = std::time::Instant::now();
    let report = run(&mut graph, &Selection::all(), &mut |_, _, _| {}).expect("the passes run");
    let time = started.elapsed();
    for pass in &report.passes {
        eprintln!("{:20} {:4} times, {:?}", pass.name, pass.stats.fired, pass.stats.time);
    }
    // Per layer: two packs, two norms, MLP, two residuals, append, rope, projection; then the head's norm and sample.
    assert_eq!(report.fired(), 80 * 10 + 2);
    assert!(explain(&graph).is_empty(), "{:?}", explain(&graph));
    // Far above what it takes (a warning against work that grows with the square of the layers, on a busy machine too).
    assert!(time.as_secs() < 10, "{nodes} nodes took {time:?}");
}

#[test]
fn passes_are_counted_observed_and_limited() {
    let text = decoder("llama", 2, Family::default());
    let run_with = |selection: Selection| {
        let mut graph = Graph::parse(&text).expect("the text is a graph");
        let mut seen = Vec::new();
        let report = run(&mut graph, &selection, &mut |name, graph, stats| {
            assert_eq!(graph.node_ids().len(), stats.nodes_after);
            seen.push((name.to_string(), stats.fired));
        });
        let report = report.expect("the passes run");
        assert_eq!(report.passes.iter().map(|p| (p.name.to_string(), p.stats.fired)).collect::<Vec<_>>(), seen);
        (graph.to_string(), seen)
    };
    let fired = |list: &[(&str, usize)]| list.iter().map(|(name, n)| (name.to_string(), *n)).collect::<Vec<_>>();

    let (plain, seen) = run_with(Selection::none());
    assert_eq!(plain, Graph::parse(&text).expect("the text is a graph").to_string());
    assert!(seen.is_empty());
    let stopped = Selection::all().stop_after("fuse-mlp").expect("the pass exists");
    let (_, seen) = run_with(stopped);
    assert_eq!(seen, fired(&[("pack-projections", 4), ("fuse-norm-matmul", 5), ("fuse-mlp", 2)]));
    let (limited, seen) = run_with(Selection::all().limit_patches(6));
    assert_eq!(seen[..3], fired(&[("pack-projections", 4), ("fuse-norm-matmul", 2), ("fuse-mlp", 0)]));
    assert_ne!(limited, plain);
}

#[test]
fn explain_tells_equal_reasons_once() {
    let text = decoder("qwen3", 3, Family { qk_norm: true, ..Family::default() });
    let mut graph = Graph::parse(&text.replace("%x3 %norm", "%x2 %norm")).expect("the text is a graph");
    let selection = Selection::parse("-fuse-mlp,-fuse-sample").expect("the passes exist");
    run(&mut graph, &selection, &mut |_, _, _| {}).expect("the passes run");
    let lines: Vec<String> = explain(&graph).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "fuse-mlp: layers 0-1: mul: the pass did not run",
            "fuse-activation: layers 0-1: silu: the product is packed with others",
            "fuse-sample: outside the layers: sample: the pass did not run",
        ]
    );
}

fn check(path: &Path, bless: bool) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let list = text.strip_prefix("; passes: ").and_then(|rest| rest.lines().next());
    let selection = Selection::parse(list.context("the first line must be `; passes: …`")?)?;
    let (input, expected) = text.split_once(DIVIDER).unwrap_or((&text, ""));
    let before = Graph::parse(input)?;
    let mut after = before.clone();
    let report = run(&mut after, &selection, &mut |_, _, _| {})?;

    let mut found = after.to_string();
    for missed in explain(&after).iter().filter(|missed| selection.has(missed.rewrite)) {
        found.push_str(&format!("; {missed}\n"));
    }
    same_values(&before, &after)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    ensure!((report.fired() > 0) == name.starts_with("fires"), "it fired {} times, unlike its name", report.fired());
    let again = Graph::parse(&after.to_string())?.to_string();
    ensure!(again == after.to_string(), "the output reads back as another graph:\n{again}");
    if found != expected {
        if !bless {
            bail!("came out as\n{found}and not as\n{expected}");
        }
        fs::write(path, format!("{}{DIVIDER}{found}", ensure_line_end(input)))?;
    }
    Ok(())
}

/// Runs both graphs on the same random data and compares what they return.
fn same_values(before: &Graph, after: &Graph) -> Result<()> {
    for (seed, tokens, context) in [(1, 3, 7), (2, 1, 4)] {
        let expected = random_run(before, seed, tokens, context).context("running the graph as given")?;
        let found = random_run(after, seed, tokens, context).context("running the rewritten graph")?;
        ensure!(expected.len() == found.len(), "{} outputs became {}", expected.len(), found.len());
        for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
            ensure!(
                expected.data.iter().any(|value| *value != 0.0) || i > 0,
                "output {i} is all zeros: it shows nothing"
            );
            let error = nmse(&found.data, &expected.data);
            let fine = expected.shape == found.shape && error < 1e-12;
            ensure!(fine, "output {i} of {tokens} tokens is off by a normalised mean squared error of {error:.1e}");
        }
    }
    Ok(())
}

fn ensure_line_end(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes")
}

fn short(path: &Path) -> String {
    path.strip_prefix(folder()).unwrap_or(path).display().to_string()
}

/// Every `.ir` file below the folder, sorted.
fn cases() -> Vec<PathBuf> {
    let mut cases = Vec::new();
    let mut folders = vec![folder()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ir") {
                cases.push(path);
            }
        }
    }
    cases.sort();
    cases
}
