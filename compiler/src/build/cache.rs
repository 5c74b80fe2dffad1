//! Compiled kernels kept by content, so that what did not change is not compiled again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// One folder of `KEY.cubin` and `KEY.log` files. Several processes may share it.
pub(super) struct Cache<'a> {
    folder: &'a Path,
}

impl<'a> Cache<'a> {
    /// Opens the cache in `folder`, which is made where it is absent.
    pub(super) fn open(folder: &'a Path) -> Result<Cache<'a>> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
        Ok(Cache { folder })
    }

    /// The device code and log under `key`, where both are there and whole.
    pub(super) fn get(&self, key: &str) -> Option<(Vec<u8>, String)> {
        let cubin = read(&self.file(key, "cubin")).filter(|bytes| is_whole_elf(bytes))?;
        let log = String::from_utf8(read(&self.file(key, "log"))?).ok()?;
        Some((cubin, log))
    }

    /// Keeps a compilation. The log comes first: a reader that sees the device code sees its log.
    pub(super) fn put(&self, key: &str, cubin: &[u8], log: &str) -> Result<()> {
        crate::output::write(&self.file(key, "log"), log.as_bytes())?;
        crate::output::write(&self.file(key, "cubin"), cubin)
    }

    fn file(&self, key: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{key}.{extension}"))
    }
}

/// What a regular file holds: a pipe would be waited for.
fn read(path: &Path) -> Option<Vec<u8>> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    fs::read(path).ok()
}

/// SHA-256 over the parts, each with its length before it, in hexadecimal.
pub(super) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An ELF file whose section table, at its end, is there.
fn is_whole_elf(bytes: &[u8]) -> bool {
    let number = |at: usize, width: usize| {
        bytes.get(at..at + width).map(|field| field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let end = || number(0x28, 8)?.checked_add(number(0x3a, 2)? * number(0x3c, 2)?);
    bytes.starts_with(b"\x7fELF") && end().is_some_and(|end| end <= bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_table_beyond_all_bytes_is_not_whole() {
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        assert!(is_whole_elf(&elf) && !is_whole_elf(&elf[..61]));
        elf[0x3a..0x3e].fill(1);
        assert!(!is_whole_elf(&elf));
        elf[0x28..0x30].fill(0xff);
        assert!(!is_whole_elf(&elf));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_not_there() {
        let folder = std::env::temp_dir();
        assert_eq!((read(&folder), read(Path::new("/dev/zero"))), (None, None));
    }

    #[test]
    fn the_key_tells_parts_apart() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
        assert_eq!(key(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
