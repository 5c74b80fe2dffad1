//! How many rows a decode step may have.

use anyhow::{Result, ensure};

/// Rows up to which products stream their weights once and everything is fused: eight are a column each of one instruction. More rows are multiplied as a prompt's
/// are, though each is of a sequence of its own.
pub(super) const FEW: usize = 8;

/// Rows that a decode step may have.
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Whether a decode step can have so many rows.
///
/// # Errors
/// It cannot.
pub(super) fn check_batch(batch: usize) -> Result<()> {
    ensure!(BATCHES.contains(&batch), "batch {batch} is not one of 1, 2, 4, 8, 16 and 32");
    Ok(())
}
