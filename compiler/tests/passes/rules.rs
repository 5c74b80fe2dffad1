//! Rules, one file per case in `tests/rules`: the rules that decide, a graph, `----`, what they decide and what they leave in steps of few rows; and what plans make of
//! it, over the shipped descriptions.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use fusec::compile::{CompileOptions, compile};
use fusec::description::{Description, shipped};
use fusec::ir::{Graph, NodeId, Op};
use fusec::passes::{Miss, PIPELINE, Selection};
use fusec::plan::{Plan, PlanOptions, StepKind, plan};
use fusec::select::{Decision, Decisions, Goal, RULES, Rules};

#[test]
fn every_case_is_decided_as_its_file_says() {
    let bless = env::var_os("BLESS").is_some_and(|value| value != "0");
    let mut wrong = Vec::new();
    for rule in RULES {
        let cases = cases(rule.name);
        for kind in ["fires-", "not-"] {
            let has = cases.iter().any(|path| stem(path).starts_with(kind));
            assert!(has, "there is no case {}/{kind}*.ir", rule.name);
        }
        for path in cases {
            let said = check(rule.name, &path, bless);
            wrong.extend(said.err().map(|error| format!("{}: {error:#}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{} cases failed (BLESS=1 rewrites them):\n\n{}", wrong.len(), wrong.join("\n\n"));
}

fn check(rule: &str, path: &Path, bless: bool) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let list = text.strip_prefix("; rules: ").and_then(|rest| rest.lines().next());
    let rules: Rules = list.context("the first line must be `; rules: …`")?.parse()?;
    let (input, expected) = text.split_once("----\n").unwrap_or((&text, ""));
    let graph = Graph::parse(input)?;
    fusec::ir::verify(&graph)?;
    let decisions = Decisions::of(&graph, &Goal { few: true, rules: &rules });
    let numbers = graph.numbers();
    let name = |node: NodeId| format!("%{} {}", numbers[&node], graph.op(node).name());
    let mut found = String::new();
    for node in graph.ordered() {
        if let Some((by, decision)) = decisions.on(node) {
            let hosts: Vec<String> = decision.hosts().into_iter().map(name).collect();
            writeln!(found, "{}: {} into {}", by.name, name(node), hosts.join(", "))?;
        }
    }
    for (by, node, reason) in decisions.left().filter(|(by, ..)| rules.has(by.name)) {
        writeln!(found, "{}: {}: {reason}", by.name, name(node))?;
    }
    let fires = graph.ordered().into_iter().any(|node| decisions.on(node).is_some_and(|(by, _)| by.name == rule));
    ensure!(fires == stem(path).starts_with("fires-"), "it decides otherwise than its name says:\n{found}");
    if found != expected {
        if !bless {
            bail!("came out as\n{found}and not as\n{expected}");
        }
        fs::write(path, format!("{}\n----\n{found}", input.trim_end()))?;
    }
    Ok(())
}

/// Fused, unfused, and fused with each rule off: each node that computes is in a launch of each step, what is said to be apart is in none with another, and what a rule took is in
/// one with its host.
#[test]
fn what_is_said_of_a_node_is_what_runs() {
    let (mut took, mut left) = ([0; 3], 0);
    for &(file, text) in shipped() {
        let description = Description::parse(text, file).expect("a shipped description");
        for fused in [true, false] {
            let passes = if fused { Selection::all() } else { Selection::none() };
            let options = CompileOptions { passes, plan: PlanOptions::none(), ..CompileOptions::default() };
            let graph = compile(&description, None, &options).expect("it compiles").graph;
            let routes = graph.ordered().into_iter().any(|node| matches!(graph.op(node), Op::Experts(_)));
            let lists = RULES.iter().map(|rule| format!("-{}", rule.name)).chain(["none".into()]);
            // Without experts there is nothing to take in.
            let lists = lists.filter(|_| routes && fused).chain(["all".into()]);
            for list in lists {
                let rules: Rules = list.parse().expect("the rules exist");
                let batches = if list == "all" { vec![1, 16] } else { vec![1] };
                let options = PlanOptions { batches, prompts: vec![32], rules, ..PlanOptions::default() };
                let plan = plan(&graph, &options).expect("it can be planned");
                let counts = agrees(&graph, &plan, &options.rules);
                let (rules_took, rules_left) = counts.unwrap_or_else(|error| panic!("{file}, {list}: {error}"));
                took.iter_mut().zip(rules_took).for_each(|(all, more)| *all += more);
                left += rules_left;
            }
        }
    }
    assert!(took.iter().all(|count| *count > 0) && left > 0, "the rules decide: {took:?}, {left}");
}

/// How many nodes each rule took, and how many the rules left.
fn agrees(graph: &Graph, plan: &Plan, rules: &Rules) -> Result<([usize; 3], usize)> {
    let numbers = graph.numbers();
    let (mut took, mut left) = ([0; 3], 0);
    for step in &plan.steps {
        let (few, whole) = match step.kind {
            StepKind::Near { .. } => (true, true),
            StepKind::Decode { batch } => (batch <= 8, true),
            StepKind::Prompt { .. } => (false, false),
            _ => continue,
        };
        let mut covering: HashMap<usize, Vec<&[usize]>> = HashMap::new();
        for covers in step.launches.iter().map(|launch| &launch.covers[..]) {
            covers.iter().for_each(|&number| covering.entry(number).or_default().push(covers));
        }
        let sets = |node: NodeId| covering.get(&numbers[&node]).into_iter().flatten().copied();
        let says = |node: NodeId| format!("%{} {} of {:?}", numbers[&node], graph.op(node), step.kind);
        for node in graph.ordered() {
            let idle = matches!(graph.op(node), Op::Input(_) | Op::Weight(_) | Op::State(_) | Op::Reshape);
            let in_step = whole || graph.node(node).layer.is_some();
            ensure!(idle || !in_step || sets(node).next().is_some(), "no launch computes {}", says(node));
        }
        let decisions = Decisions::of(graph, &Goal { few, rules });
        for (rule, node, reason) in decisions.left() {
            left += 1;
            ensure!(sets(node).all(|set| set.len() == 1), "{}: {reason}, but {} is", rule.name, says(node));
        }
        for node in graph.ordered() {
            let Some((rule, decision)) = decisions.on(node) else { continue };
            ensure!(rules.has(rule.name), "{} is off, but took {}", rule.name, says(node));
            let beside = |host: NodeId| sets(node).any(|set| set.contains(&numbers[&host]));
            // A launch may lack room for a router, and many rows have the norm once for all experts.
            let must = match decision {
                Decision::Norm { .. } => few,
                Decision::Router { .. } => sets(node).any(|set| set.len() > 1),
                Decision::Residual { .. } => true,
            };
            let all = decision.hosts().into_iter().all(beside);
            ensure!(all || !must, "{} took {}, which is not with its host", rule.name, says(node));
            let slot = RULES.iter().position(|known| known.name == rule.name).context("a rule of the table")?;
            took[slot] += usize::from(all);
        }
        // `explain` says of a candidate of the passes that it is not fused unless each of its launches computes another node, too.
        for node in graph.ordered().into_iter().filter(|_| few) {
            let candidate = PIPELINE.iter().any(|pass| !matches!((pass.find)(graph, node), Err(Miss::NotThis)));
            let apart = !sets(node).all(|set| set.len() > 1);
            ensure!(!candidate || !apart || sets(node).all(|set| set.len() == 1), "half fused: {}", says(node));
        }
    }
    Ok((took, left))
}

fn cases(rule: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules").join(rule);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    cases.sort();
    cases
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
