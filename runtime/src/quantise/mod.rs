//! Writes a checkpoint with quantised weights that other programs read: safetensors in compressed-tensors' form.

mod compressed;
mod job;
mod partial;

use anyhow::Result;

pub use job::{Cost, Job, Written};

/// Writes the checkpoint; where that fails nothing is left behind, and what was there stays.
///
/// # Errors
/// A checkpoint that cannot be written so, something that is there already, no room on the disk, weights that are not finite.
pub fn write(job: &Job<'_>) -> Result<Written> {
    compressed::write(job)
}
