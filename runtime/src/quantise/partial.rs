//! A file or a folder that is there whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What is written under another name beside its own, and removed unless it is finished.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    into: PathBuf,
    replace: bool,
    finished: bool,
}

impl Partial {
    /// Begins what is to be `into`.
    ///
    /// # Errors
    /// Where something is there already, and is not to be replaced, or is a folder of something else than a checkpoint; a path that has no name.
    pub fn new(into: &Path, replace: bool) -> Result<Partial> {
        let name = into.file_name().with_context(|| format!("{} is no name for what is written", into.display()))?;
        ensure!(
            replace || fs::symlink_metadata(into).is_err(),
            "{} is there already: name another, or give --force to replace it",
            into.display()
        );
        ensure!(
            !into.is_dir() || into.join("config.json").exists(),
            "{} is a folder, and no checkpoint: it is not replaced",
            into.display()
        );
        let mut beside = name.to_owned();
        beside.push(format!(".{}.partial", std::process::id()));
        let path = into.with_file_name(beside);
        Ok(Partial { path, into: into.to_owned(), replace, finished: false })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(mut self) -> Result<()> {
        let said = || format!("cannot write {}", self.into.display());
        if self.replace && self.into.is_dir() {
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            fs::rename(&self.into, &old).with_context(said)?;
            if let Err(error) = fs::rename(&self.path, &self.into) {
                // What was there comes back.
                fs::rename(&old, &self.into).with_context(said)?;
                return Err(error).with_context(said);
            }
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", Path::new(&old).display()))?;
        } else {
            fs::rename(&self.path, &self.into).with_context(said)?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // What cannot be removed was not written, or is no more of ours.
        let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
    }
}
