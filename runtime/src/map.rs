//! Files mapped into the host's memory.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a whole file read-only; an empty file maps to an empty slice. Fails where the file cannot be opened or is no regular file.
pub fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    anyhow::ensure!(file.metadata()?.is_file(), "{} is not a file", path.display());
    // SAFETY: the mapping is read-only and private to readers of plain bytes and floats, for which every bit pattern is valid. As with every
    // program that maps model files, a file that another process truncates while it is mapped ends this process with SIGBUS; it cannot
    // make the slice dangle.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {} into memory", path.display()))
}

/// Lets the system take back the memory of what was read of a map. Reading it again brings it back from the file.
pub(crate) fn release(map: &Mmap) {
    #[cfg(unix)]
    {
        // SAFETY: the map is of a file, shared or not, and nothing was ever written to it: its pages come back with the same bytes.
        let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
    #[cfg(not(unix))]
    let _ = map;
}
