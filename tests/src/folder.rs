//! Folders that last as long as a test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An empty folder of this test's own; removed when it is dropped.
#[derive(Debug)]
pub struct TempFolder(PathBuf);

impl TempFolder {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "making a folder is no default")]
    pub fn new() -> TempFolder {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("fuse-tests-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        TempFolder(path)
    }

    /// One with a copy of each file of `folder`.
    pub fn copy_of(folder: &Path) -> TempFolder {
        let copy = TempFolder::new();
        for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder lists its files").path();
            let name = path.file_name().expect("a file has a name");
            if path.is_file() {
                std::fs::copy(&path, copy.path().join(name))
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
        copy
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it and gives its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
