//! File tests of the text form and the verifier: `tests/ir/*.ir`.
//!
//! A file is a graph whose wrong lines carry what is said about them: `; error: message`. `BLESS=1` rewrites the
//! messages in place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fusec::ir::{Graph, verify_all};

const MARK: &str = " ; error: ";

#[test]
fn errors_stand_on_the_lines_that_cause_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ir");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of cases is there")
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ir"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let expected = std::fs::read_to_string(&file).expect("the case can be read");
        let found = with_errors(&expected);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &found).expect("the case can be written");
        } else {
            assert_eq!(found, expected, "{}: BLESS=1 accepts the first", file.display());
        }
    }
}

/// The text with the errors it causes in the place of those it carries.
fn with_errors(text: &str) -> String {
    let bare: Vec<&str> = text.lines().map(|line| line.split_once(MARK).map_or(line, |(bare, _)| bare)).collect();
    let mut errors: BTreeMap<usize, String> = BTreeMap::new();
    match Graph::parse_with_lines(&bare.join("\n")) {
        Err(error) => {
            errors.insert(error.line, format!("column {}: {}", error.column, error.message));
        }
        Ok((graph, lines)) => {
            for error in verify_all(&graph) {
                let node = error.node.expect("a graph that was read has outputs and no cycle");
                errors.insert(lines[&node], error.message);
            }
        }
    }
    let mut marked = String::new();
    for (number, line) in (1..).zip(bare) {
        marked.push_str(line);
        if let Some(message) = errors.get(&number) {
            marked.push_str(MARK);
            marked.push_str(message);
        }
        marked.push('\n');
    }
    marked
}
