//! docs/diagnostics.md is made from the codes and from the rendered cases of the tests: `BLESS=1` writes it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use fusec::description::Code;

const FOLDERS: &[&str] = &["description", "lower", "tensors", "../../tests/verify"];

const HEAD: &str = "# Diagnostics

What `fusec` and `fuserun` say about a description, a configuration and a checkpoint, by code. A code is stable: it is never given another meaning.
The first digits tell the kind: F00 the file, F01 its keys and types, F02 values, F03 expressions, F04 the configuration, F05 shapes, F06 tensors of a
checkpoint, F07 what another implementation computes. Each example is one of the tests' cases.

<!-- made by BLESS=1 cargo test -p fusec --test diagnostics -->
";

#[test]
fn the_index_has_every_code_with_an_example() {
    let cases = cases();
    let mut text = HEAD.to_owned();
    for code in Code::ALL {
        let example = example(*code, &cases).unwrap_or_else(|| panic!("no case of the tests shows {}", code.id()));
        write!(text, "\n## {}\n{}\n```text\n{}\n```\n", code.id(), code.title(), example.trim_end()).expect("a string");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/diagnostics.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).expect("the index can be written");
    } else {
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "docs/diagnostics.md is not what the codes and cases say; BLESS=1 writes it");
    }
}

#[test]
fn every_code_that_is_shown_or_documented_exists() {
    let known: Vec<&str> = Code::ALL.iter().map(|code| code.id()).collect();
    let mut texts = cases();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let documents = files(&docs).into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    texts.extend(documents.map(|path| fs::read_to_string(path).expect("a document can be read")));
    let mut shown = 0;
    for text in texts {
        for part in text.split("error[").skip(1) {
            let code = part.split(']').next().unwrap_or_default();
            assert!(known.contains(&code), "{code} is no code");
            shown += 1;
        }
    }
    assert!(shown > 40, "{shown} codes are shown");
}

/// The first error of that code in the cases, the shortest first.
fn example(code: Code, cases: &[String]) -> Option<String> {
    let start = format!("error[{}]", code.id());
    let blocks = cases.iter().flat_map(|text| text.split("\n\n")).filter(|block| block.starts_with(&start));
    blocks.min_by_key(|block| (block.matches("help:").count() == 0, block.len())).map(str::to_owned)
}

/// The expected texts of the rendered cases, by path.
fn cases() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let paths = FOLDERS.iter().flat_map(|folder| files(&root.join(folder)));
    let texts = paths.filter(|path| path.extension().is_some_and(|extension| extension == "txt"));
    texts.map(|path| fs::read_to_string(&path).unwrap_or_default()).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> =
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths
}
