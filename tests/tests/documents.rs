//! README.md and docs/guide.md say what is.

use std::collections::BTreeSet;

use fuse_tests::{Finished, fusec, fuserun, goldens, root};
use fusec::compile::{CompileOptions, compile};
use fusec::description::{Description, architectures, shipped};
use fusec::plan::TuningSource;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_readme_lists_what_is_served() {
    let readme = read("README.md");
    let (before, rest) = readme.split_once("<!-- models").expect("a mark before the table");
    let (mark, rest) = rest.split_once("-->\n").expect("the mark ends");
    let (_, after) = rest.split_once("<!-- end of models").expect("a mark behind the table");
    let head = "| description | `architectures` in config.json | what it is | compiled alone | runs on |\n| --- | --- | --- | --- | --- |\n";
    let rows: String = shipped().iter().map(|(file, text)| row(file, text)).collect();
    let whole = format!("{before}<!-- models{mark}-->\n{head}{rows}<!-- end of models{after}");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(root().join("README.md"), whole).expect("the README can be written");
    } else {
        assert!(readme == whole, "the README's models are not those of models/; BLESS=1 writes them");
    }
    let files: BTreeSet<String> = std::fs::read_dir(root().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let inside: BTreeSet<String> = shipped().iter().map(|(file, _)| file.to_string()).collect();
    assert_eq!(inside, files, "each description is in the binary");
}

/// What `fusec compile` prints of Llama's plan, with the shipped record.
#[test]
fn the_readme_shows_the_plan_of_llama() {
    let (file, text) = shipped().iter().find(|(file, _)| *file == "llama.toml").expect("llama is shipped");
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    let tuning = TuningSource::Shipped.record("sm_90a").expect("a sound record");
    let arch = "sm_90a".parse().expect("it is supported");
    let model = compile(&description, None, &CompileOptions::default().on(arch, tuning)).expect("it compiles");
    let (summary, kernels) = (model.plan.summary(), model.plan.kernels.len());
    let shown = format!("\n{summary}\nwrote llama.fuse: {kernels} kernels, sm_90a\n");
    assert!(read("README.md").contains(&shown), "the README shows other than:{shown}");
}

/// A family's row: what its file says of itself, and whether it can be planned for a GPU.
fn row(file: &str, text: &str) -> String {
    let description = Description::parse(text, file).unwrap();
    let architectures: Vec<String> = description.serves.iter().map(|name| format!("`{name}`")).collect();
    let what = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("the first line says what it is");
    let preset = text.lines().find_map(|line| line.strip_prefix("[config] # ")).expect("a preset has a name");
    let runs_on = match compile(&description, None, &CompileOptions::default()) {
        Ok(_) => "GPU, CPU",
        Err(error) if format!("{error:#}").contains("run on the CPU") => "CPU",
        Err(error) => panic!("{file}: {error:#}"),
    };
    format!("| [`models/{file}`](models/{file}) | {} | {what} | {preset} | {runs_on} |\n", architectures.join(", "))
}

/// A family is one short file, and each is checked against logits.
#[test]
fn every_family_is_short_and_has_a_golden() {
    let mut served: BTreeSet<String> = BTreeSet::new();
    for golden in goldens().iter().filter(|golden| golden.name != "demo") {
        for file in ["config.json", "config-v4.json"] {
            let Ok(config) = std::fs::read_to_string(golden.folder.join(file)) else { continue };
            let config = serde_json::from_str(&config).expect("it is JSON");
            served.extend(architectures(&config));
        }
    }
    for (file, text) in shipped() {
        let description = Description::parse(text, file).unwrap();
        let preset = text.lines().skip_while(|line| !line.starts_with("[config]")).take_while(|line| !line.is_empty());
        let lines = text.lines().count() - preset.count();
        assert!(lines <= LONGEST, "{file} has {lines} lines without its preset");
        for name in &description.serves {
            assert!(served.contains(name), "{file} serves {name}, which no golden has");
        }
    }
}

/// Lines of a description without its preset.
const LONGEST: usize = 60;

#[test]
fn the_guide_names_every_flag_and_variable() {
    let guide = read("docs/guide.md");
    let mut missing = BTreeSet::new();
    for (program, run) in [("fuserun", run_fuserun as fn(&[&str]) -> Finished), ("fusec", run_fusec)] {
        let commands = commands(&run(&["--help"]).stdout);
        assert!(commands.len() >= 4, "{program} has commands: {commands:?}");
        for command in commands {
            if !guide.contains(&format!("`{program} {command}")) {
                missing.insert(format!("`{program} {command}"));
            }
            let help = run(&[&command, "--help"]).stdout;
            let flags = help.split(|letter: char| !(letter.is_alphanumeric() || letter == '-' || letter == '_'));
            let named = |word: &&str| (word.starts_with("--") && word.len() > 3) || word.starts_with("FUSE_");
            let known = |word: &&str| *word == "--help" || guide.contains(&format!("`{word}"));
            missing.extend(
                flags.filter(named).filter(|word| !known(word)).map(|word| format!("{program} {command}: {word}")),
            );
        }
    }
    assert!(missing.is_empty(), "docs/guide.md does not say: {missing:#?}");
}

fn run_fuserun(arguments: &[&str]) -> Finished {
    fuserun(arguments, "")
}

fn run_fusec(arguments: &[&str]) -> Finished {
    fusec(arguments)
}

/// The commands that a program's help lists.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = lines.take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn what_the_documents_link_to_is_there() {
    for document in ["README.md", "docs/guide.md", "docs/add-a-model.md", "CONTRIBUTING.md"] {
        let text = read(document);
        let folder = root().join(document).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.contains("://") && !path.is_empty() {
                assert!(folder.join(path).exists(), "{document} links to {link}");
            }
        }
    }
}
