//! Planted mistakes: each is caught, or was caught in the same source by the same tests.

use std::collections::BTreeMap;
use std::fs;
use std::panic::Location;

use anyhow::Result;
use fuse_tests::checked::Checked;
use fuse_tests::host_build::HARNESS;
use fuse_tests::root;

use crate::support::{Mutation, SUBJECTS};

/// Runs a case as it is, and with each mistake unless these were caught in the same sources by the same tests. The word that the error must hold says
/// how the mistake shows. `name`: the case's own in `tests/checked/mistakes.txt`.
#[track_caller]
pub fn caught(
    name: &str,
    check: impl Fn(Option<Mutation>) -> Result<()>,
    mistakes: &[(&'static str, &'static str, &str)],
) {
    SUBJECTS.with_borrow_mut(Vec::clear);
    check(None).expect("the kernel as it is passes");
    let (subjects, tests) = (SUBJECTS.take(), tests_of(Location::caller().file()));
    assert!(!subjects.is_empty(), "the case builds a kernel");
    let parts: Vec<&str> = HARNESS.into_iter().chain(subjects.iter().chain(&tests).map(String::as_str)).collect();
    let all_caught = || {
        let missed: Vec<String> = mistakes
            .iter()
            .filter_map(|&(from, to, shows)| match check(Some(Mutation { from, to })) {
                Ok(()) => Some(format!("`{from}` became `{to}`, and nobody noticed")),
                Err(error) if format!("{error:#}").contains(shows) => None,
                Err(error) => Some(format!("`{from}` became `{to}`; it should show as `{shows}`, not: {error:#}")),
            })
            .collect();
        if missed.is_empty() { Ok(()) } else { Err(missed.join("\n")) }
    };
    let result = Checked::of("mistakes").run(name, &parts, all_caught);
    result.unwrap_or_else(|missed| panic!("{missed}"));
}

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
    let text = "use crate::support::*;\nuse crate::{experts, matmul};\nlet x = crate::router::of(matvec); // crate\n";
    let words: Vec<&str> = uses(text).filter(|word| !word.is_empty()).collect();
    assert_eq!(words, ["support", "experts", "matmul", "router", "of"]);
    let texts = modules();
    let of = |file: &str| tests_of(file);
    assert!(of("tests/tests/kernels/append.rs").contains(&texts["attention"]), "append uses attention");
    assert!(of("tests/tests/kernels/formats.rs").contains(&texts["router"]), "formats uses matvec, which uses router");
    assert!(!of("tests/tests/kernels/attention.rs").contains(&texts["experts"]), "attention does not use experts");
}
