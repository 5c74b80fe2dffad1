//! A model's folder in the hub's cache.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fusec::output;

/// Where one model's files are.
pub(super) struct Store {
    root: PathBuf,
    locks: PathBuf,
}

impl Store {
    /// That of `OWNER/NAME` in a cache.
    pub(super) fn of(cache: &Path, repository: &str) -> Store {
        let folder = format!("models--{}", repository.replace('/', "--"));
        Store { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// The commit of a revision, as far as it is known here.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let named = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(named.trim().to_owned()).filter(|commit| is_commit(commit) && self.snapshot(commit).is_dir())
    }

    /// The folder with a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The files of a commit that are there, by their paths with slashes.
    pub(super) fn files(&self, commit: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        gather(&self.snapshot(commit), "", &mut found)?;
        found.sort();
        Ok(found)
    }

    /// The file with the contents of a checksum.
    pub(super) fn blob(&self, checksum: &str) -> PathBuf {
        self.root.join("blobs").join(checksum)
    }

    /// The same while it is on its way.
    pub(super) fn incomplete(&self, checksum: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{checksum}.incomplete"))
    }

    /// Waits until nobody else fetches the contents of a checksum. The system takes the lock back from a process that ends, however it ends.
    pub(super) fn lock(&self, checksum: &str) -> Result<File> {
        let path = self.locks.join(format!("{checksum}.lock"));
        make_folder_of(&path)?;
        make_folder_of(&self.blob(checksum))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Lets a commit have the contents of a checksum as its file `name`, by a relative link; by a second name of the same file, or a copy, where the
    /// folder takes no links.
    pub(super) fn link(&self, commit: &str, name: &str, checksum: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        make_folder_of(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{checksum}"));
        if fs::read_link(&path).is_ok_and(|known| known == target) {
            return Ok(());
        }
        let fresh = path.with_file_name(format!(".partial-{}-{checksum}", std::process::id()));
        let blob = self.blob(checksum);
        let made = symlink(&target, &fresh)
            .or_else(|_| fs::hard_link(&blob, &fresh))
            .or_else(|_| fs::copy(&blob, &fresh).map(drop));
        let linked = made.and_then(|()| fs::rename(&fresh, &path));
        linked.with_context(|| format!("cannot make {}", path.display()))
    }

    /// Lets a branch or a tag name a commit.
    pub(super) fn point(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        make_folder_of(&path)?;
        output::write(&path, commit.as_bytes())
    }
}

/// Whether a text is a commit's whole name.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|letter| matches!(letter, '0'..='9' | 'a'..='f'))
}

fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| {
        format!("cannot make the folder {} of the hub's cache: HF_HUB_CACHE or HF_HOME names another", folder.display())
    })
}

/// Adds the files below a folder, each with the path before it; links that lead nowhere are left out.
fn gather(folder: &Path, before: &str, found: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        // Of folders, real ones only: no link leads out of the snapshot and round.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            gather(&entry.path(), &format!("{name}/"), found)?;
        } else if entry.path().is_file() {
            found.push(name);
        }
    }
    Ok(())
}
