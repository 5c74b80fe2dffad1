//! GGUF: one file with metadata, the tokenizer and (quantised) tensors.
//!
//! The format, little-endian: magic `GGUF`, version u32, tensor count u64, metadata count u64; the metadata as (key, type u32, value); per tensor
//! its name, dimension count u32, dimensions u64 fastest first, type u32 and offset u64; padding to the alignment; the tensors' bytes, each offset
//! from there. A string is a length u64 and UTF-8 bytes.

mod contents;
mod families;
mod read;
mod split;
mod write;

pub(super) use contents::{MAGIC, Opened};
pub use contents::{Metadata, Value};
pub use families::{Described, Target, describe};
pub use write::{ALIGNMENT, Listed, header};

use crate::map::map_file;
use anyhow::{Context, Result};
use memmap2::Mmap;
use std::path::Path;

/// Reads the header of the GGUF file at `path`, whose bytes are `file`, and those of the other parts where it is one of several. Returns the bytes of
/// all parts, in the order that the tensors count them.
pub(super) fn open(path: &Path, file: Mmap) -> Result<(Opened, Vec<Mmap>)> {
    let contents = read::read(&file).with_context(|| format!("{}: not a usable GGUF file", path.display()))?;
    let count = contents.metadata.unsigned("split.count").filter(|count| *count > 1);
    let (contents, files) = match count {
        Some(count) => split::join(path, file, contents, count).with_context(|| path.display().to_string())?,
        None => (contents, vec![file]),
    };
    let bytes: Vec<&[u8]> = files.iter().map(|file| &file[..]).collect();
    let opened = families::adapt(contents, &bytes).with_context(|| path.display().to_string())?;
    Ok((opened, files))
}

impl Metadata {
    /// The metadata of a GGUF file, whatever its architecture and with or without tensors.
    ///
    /// # Errors
    /// One message that names the file where it cannot be read, is no GGUF file, or is truncated within its metadata.
    pub fn open(path: &Path) -> Result<Metadata> {
        let file = map_file(path)?;
        read::metadata(&file).with_context(|| format!("{}: not a usable GGUF file", path.display()))
    }
}

#[cfg(test)]
pub(crate) mod test_file;
