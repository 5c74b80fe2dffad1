//! Writes a checkpoint with quantised weights that other programs read: safetensors in compressed-tensors' form, or a GGUF file.

mod compressed;
mod gguf;
mod job;
mod partial;

use std::path::Path;

use anyhow::{Result, ensure};

pub use job::{Cost, Job, Written};

/// Writes the checkpoint; where that fails nothing is left behind, and what was there stays.
///
/// # Errors
/// A checkpoint that cannot be written so, something that is there already, no room on the disk, weights that are not finite.
pub fn write(job: &Job<'_>) -> Result<Written> {
    let (from, into) = (job.checkpoint.path().map(Path::canonicalize), job.out.canonicalize());
    if let (Some(Ok(from)), Ok(into)) = (from, into) {
        ensure!(from != into, "{} is the checkpoint itself: write another", job.out.display());
    }
    if is_gguf(job.out) { gguf::write(job) } else { compressed::write(job) }
}

/// Whether what is to be written is a GGUF file.
pub fn is_gguf(out: &Path) -> bool {
    out.extension().is_some_and(|extension| extension == "gguf")
}
