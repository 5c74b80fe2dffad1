//! README.md and docs/ say what holds.

use std::collections::BTreeSet;

use fuse_tests::reference::reference;
use fuse_tests::{Finished, fusec, fuserun, goldens, root};
use fusec::compile::{CompileOptions, compile};
use fusec::description::{Description, architectures, shipped};
use fusec::plan::TuningSource;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_models_page_lists_what_is_served() {
    let page = read("docs/models.md");
    let (before, rest) = page.split_once("<!-- models").expect("a mark before the table");
    let (mark, rest) = rest.split_once("-->\n").expect("the mark ends");
    let (_, after) = rest.split_once("<!-- end of models").expect("a mark after the table");
    let head = "| description | `architectures` in config.json | what it is | preset | runs on |\n| --- | --- | --- | --- | --- |\n";
    let rows: String = shipped().iter().map(|(file, text)| row(file, text)).collect();
    let whole = format!("{before}<!-- models{mark}-->\n{head}{rows}<!-- end of models{after}");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(root().join("docs/models.md"), whole).expect("the page can be written");
    } else {
        assert!(page == whole, "docs/models.md does not list the models of models/; BLESS=1 writes them");
    }
    let files: BTreeSet<String> = std::fs::read_dir(root().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let inside: BTreeSet<String> = shipped().iter().map(|(file, _)| file.to_string()).collect();
    assert_eq!(inside, files, "each description is in the binary");
}

#[test]
fn the_reference_has_every_flag() {
    let whole = reference(vec![fuserun::cli::command(), fusec::cli::command()]);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(root().join("docs/reference.md"), whole).expect("the page can be written");
    } else {
        assert!(
            read("docs/reference.md") == whole,
            "docs/reference.md is not what the programs take; BLESS=1 writes it"
        );
    }
}

/// Words of the README at most: what is longer belongs in docs/.
const README_WORDS: usize = 1200;

#[test]
fn the_readme_is_short_and_names_every_page() {
    let readme = read("README.md");
    let words = readme.split_whitespace().count();
    assert!(words <= README_WORDS, "README.md has {words} words, more than {README_WORDS}");
    for page in pages() {
        assert!(readme.contains(&format!("]({page})")), "README.md does not link to {page}");
    }
}

/// Each operation that the README shows is one of Llama's layer, with fields left out.
#[test]
fn the_readme_shows_operations_of_llama() {
    let (readme, llama) = (read("README.md"), read("models/llama.toml"));
    let shown: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("  { ")?.strip_suffix(" },")).collect();
    assert!(!shown.is_empty(), "README.md shows operations");
    for operation in shown {
        let holds = |line: &str| operation.split(", ").all(|field| line.contains(field));
        assert!(llama.lines().any(holds), "models/llama.toml has no operation {operation}");
    }
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
    format!("| [`models/{file}`](../models/{file}) | {} | {what} | {preset} | {runs_on} |\n", architectures.join(", "))
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
    let others = ["README.md", "CONTRIBUTING.md", "tests/goldens/README.md"].map(str::to_owned);
    for document in pages().into_iter().chain(others) {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.contains("://") && !path.is_empty() {
                assert!(folder.join(path).exists(), "{document} links to {link}");
            }
        }
    }
}

#[test]
fn the_page_of_kernels_names_every_family_and_shared_file() {
    let page = read("docs/kernels.md");
    let names = |folder: &str| {
        let entries = std::fs::read_dir(root().join(folder)).expect("a folder of the tree");
        let names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().into_string().unwrap()).collect();
        assert!(!names.is_empty(), "{folder} holds templates");
        names
    };
    let shared = names("templates/kernels/weights").into_iter().map(|name| format!("weights/{name}"));
    for name in names("templates/kernels").into_iter().chain(shared).filter(|name| name != "weights") {
        let named = format!("`{}`", name.strip_suffix(".cu").unwrap_or(&name));
        assert!(page.contains(&named), "docs/kernels.md does not name {named}");
    }
}

/// The worked examples name files: those that an edit would change are there, and those that it would add are not.
#[test]
fn the_worked_examples_name_files_that_are_there() {
    for (page, added) in [
        (
            "docs/add-an-op.md",
            &["templates/src/blend.rs", "templates/kernels/blend.cu", "compiler/tests/ir/blend.ir"][..],
        ),
        ("docs/add-a-format.md", &["templates/kernels/weights/scale_f16_256.cuh"]),
    ] {
        let text = read(page);
        let is_path = |quoted: &&str| {
            ["compiler/", "runtime/", "templates/", "tests/"].iter().any(|folder| quoted.starts_with(folder))
                && quoted.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter))
        };
        let paths: BTreeSet<&str> = text.split('`').filter(is_path).collect();
        assert!(added.iter().all(|path| paths.contains(path)), "{page} names what it adds");
        for path in paths {
            assert_eq!(root().join(path).exists(), !added.contains(&path), "{page} names {path}");
        }
    }
}

/// The pages of docs/, by name.
fn pages() -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join("docs")).expect("a folder of the tree");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let pages: BTreeSet<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    assert!(!pages.is_empty(), "docs/ has pages");
    pages
}
