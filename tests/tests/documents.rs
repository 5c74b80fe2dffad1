//! README.md and docs/guide.md say what is.

use std::collections::BTreeSet;

use fuse_tests::{Finished, fusec, fuserun, root};
use fusec::description::{Description, shipped};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_readme_lists_what_is_served() {
    let readme = read("README.md");
    let row = |(file, text): &(&str, &str)| {
        let description = Description::parse(text, file).unwrap();
        let architectures: Vec<String> = description.serves.iter().map(|name| format!("`{name}`")).collect();
        format!("| [`models/{file}`](models/{file}) | {} |", architectures.join(", "))
    };
    let expected: BTreeSet<String> = shipped().iter().map(row).collect();
    let found: BTreeSet<String> = readme
        .lines()
        .filter(|line| line.starts_with("| [`models/"))
        .map(|line| line.splitn(4, '|').take(3).map(|cell| format!("{cell}|")).collect())
        .collect();
    assert_eq!(found, expected);
    let files: BTreeSet<String> = std::fs::read_dir(root().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let inside: BTreeSet<String> = shipped().iter().map(|(file, _)| file.to_string()).collect();
    assert_eq!(inside, files, "each description is in the binary");
}

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
