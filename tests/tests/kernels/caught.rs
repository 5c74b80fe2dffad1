//! Planted mistakes: each is caught, or was caught in the same source by the same tests.

use std::panic::Location;

use anyhow::Result;
use fuse_tests::checked::Checked;
use fuse_tests::host_build::HARNESS;

use crate::support::{Mutation, SUBJECTS};
use crate::texts::tests_of;

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
