//! What passed before, on what has not changed since, and may be left out: `tests/checked/SUITE.txt` has a line for each such check, with the digest of
//! what it depends on. A digest that is another one makes the check run. `FUSE_ALL=1`, which `tests/run all` sets, makes all of them run; `BLESS=1`
//! records those that run and pass.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::host_build::hash;
use crate::root;

/// The recorded checks of one suite.
pub struct Checked {
    suite: &'static str,
    digests: BTreeMap<String, String>,
}

impl Checked {
    /// What `tests/checked` says of a suite; nothing where it has no file.
    ///
    /// # Panics
    /// When the file cannot be read, or has a line without a name and a digest.
    pub fn of(suite: &'static str) -> Checked {
        Checked { suite, digests: recorded(suite) }
    }

    /// Runs a check unless it is recorded with these parts, which are all that it depends on. Returns whether it ran.
    ///
    /// # Errors
    /// What the check says.
    pub fn run<P: AsRef<[u8]>, E>(
        &self,
        name: &str,
        parts: &[P],
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let digest = hash(parts);
        let known = self.knows(name, &digest);
        if known && !runs_all() {
            count("unchanged", self.suite, name);
            return Ok(false);
        }
        check()?;
        if is_set("BLESS") {
            record(self.suite, name, &digest);
        } else if !known {
            count("unrecorded", self.suite, name);
        }
        Ok(true)
    }

    fn knows(&self, name: &str, digest: &str) -> bool {
        self.digests.get(name).is_some_and(|recorded| recorded == digest)
    }
}

/// Whether everything runs, whatever is recorded.
pub fn runs_all() -> bool {
    is_set("FUSE_ALL")
}

/// Says that something was left out. `tests/run` names in FUSE_LEFT_OUT a file of such lines, which it counts by their first two words.
///
/// # Panics
/// When that file cannot be written.
pub fn count(why: &str, suite: &str, what: &str) {
    println!("{why}: {suite}, {what}");
    if let Some(path) = std::env::var_os("FUSE_LEFT_OUT") {
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(format!("{why} {suite} {what}\n").as_bytes()));
        written.unwrap_or_else(|error| panic!("FUSE_LEFT_OUT={}: {error}", path.display()));
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}

fn file_of(suite: &str) -> PathBuf {
    root().join("tests/checked").join(format!("{suite}.txt"))
}

fn recorded(suite: &str) -> BTreeMap<String, String> {
    let path = file_of(suite);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    let lines = text.lines().map(|line| {
        let (name, digest) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{}: {line:?}", path.display()));
        (name.to_owned(), digest.to_owned())
    });
    lines.collect()
}

/// Puts a line into a suite's file. Tests are processes of their own, which take turns.
fn record(suite: &str, name: &str, digest: &str) {
    let path = file_of(suite);
    let folder = path.parent().expect("it has a folder");
    fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let lock = path.with_extension("lock");
    let taken = (0..600).any(|_| match fs::OpenOptions::new().write(true).create_new(true).open(&lock) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            std::thread::sleep(Duration::from_millis(20));
            false
        }
        opened => opened.map(|_| true).unwrap_or_else(|error| panic!("{}: {error}", lock.display())),
    });
    assert!(taken, "{} stays: delete it, unless another run of the tests records as well", lock.display());
    let mut digests = recorded(suite);
    digests.insert(name.to_owned(), digest.to_owned());
    let text: String = digests.iter().flat_map(|(name, digest)| [name, " ", digest, "\n"]).collect();
    let written = fs::write(&path, text);
    fs::remove_file(&lock).unwrap_or_else(|error| panic!("{}: {error}", lock.display()));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[test]
fn a_check_is_known_by_all_that_it_depends_on() {
    let checked = Checked { suite: "checked", digests: BTreeMap::from([("one".to_owned(), hash(&["a", "b"]))]) };
    assert!(checked.knows("one", &hash(&["a", "b"])));
    assert!(!checked.knows("one", &hash(&["ab", ""])));
    assert!(!checked.knows("two", &hash(&["a", "b"])));
}
