//! What a test of kernels depends on beside their sources: the texts of the modules that it uses.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use fuse_tests::root;

/// The texts that a test in `file` depends on: the file's own, and those of the modules that it uses, and these use.
pub fn tests_of(file: &str) -> Vec<String> {
    let texts = modules();
    let mut used = vec![module_of(file)];
    let mut next = 0;
    while next < used.len() {
        let more: Vec<&str> =
            uses(&texts[used[next]]).filter(|name| texts.contains_key(*name) && !used.contains(name)).collect();
        used.extend(more);
        next += 1;
    }
    used.sort_unstable();
    used.dedup();
    used.iter().map(|name| texts[*name].clone()).collect()
}

/// The texts of what packs the weights of a case.
pub fn packing() -> [String; 2] {
    ["weights/row_tiles.rs", "blocks.rs"].map(|file| {
        let path = root().join("runtime/src").join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

/// The name of the module that a file has.
fn module_of(file: &str) -> &str {
    file.rsplit(['/', '\\']).next().and_then(|name| name.strip_suffix(".rs")).unwrap_or(file)
}

/// The texts of the modules of these tests, by name.
fn modules() -> BTreeMap<String, String> {
    let folder = root().join("tests/tests/kernels");
    let read = || -> Result<BTreeMap<String, String>> {
        fs::read_dir(&folder)?
            .map(|file| {
                let path = file?.path();
                Ok((module_of(&path.to_string_lossy()).to_owned(), fs::read_to_string(&path)?))
            })
            .collect()
    };
    read().unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The words of a text that stand after `crate::`, up to the end of the statement or of the line: modules, and what is theirs.
fn uses(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("crate::").skip(1).map(|after| after.split([';', '(']).next().unwrap_or(after));
    after.flat_map(|names| names.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'))
}

#[test]
fn a_test_depends_on_the_modules_that_it_uses() {
    // In words that this file itself does not use.
    let text = "use CRATE::support::*;\nuse CRATE::{experts, matmul};\nlet x = CRATE::router::of(matvec); // CRATE\n"
        .replace("CRATE", "crate");
    let text = text.as_str();
    let words: Vec<&str> = uses(text).filter(|word| !word.is_empty()).collect();
    assert_eq!(words, ["support", "experts", "matmul", "router", "of"]);
    let texts = modules();
    let of = |file: &str| tests_of(file);
    assert!(of("tests/tests/kernels/append.rs").contains(&texts["attention"]), "append uses attention");
    assert!(of("tests/tests/kernels/formats.rs").contains(&texts["router"]), "formats uses matvec, which uses router");
    assert!(!of("tests/tests/kernels/attention.rs").contains(&texts["experts"]), "attention does not use experts");
}
