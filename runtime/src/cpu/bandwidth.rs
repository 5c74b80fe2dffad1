//! What memory gives: the ceiling that a decode step is held against.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use memmap2::MmapMut;

use super::math::{Isa, for_each_isa};
use super::pack::huge_pages;
use super::pool::{Pool, share};

/// A buffer far larger than any cache, and threads that read it.
pub struct ReadBandwidth {
    pool: Pool,
    buffer: MmapMut,
    isa: Isa,
}

/// Twice the largest last-level cache in common use, and some.
const BUFFER_BYTES: usize = 512 << 20;
/// Parts of it that threads claim, as those of a step are.
const CHUNKS: usize = 512;

/// The read bandwidth of memory in GB/s (10⁹ bytes): the best of five passes over 512 MiB, each of `threads` threads reading one part.
///
/// # Errors
/// No memory.
pub fn measure_read_bandwidth(threads: usize) -> Result<f64> {
    let mut bandwidth = ReadBandwidth::new(threads)?;
    Ok((0..5).map(|_| bandwidth.measure()).fold(0.0, f64::max))
}

impl ReadBandwidth {
    /// Reserves and fills the buffer.
    ///
    /// # Errors
    /// No memory.
    pub fn new(threads: usize) -> Result<ReadBandwidth> {
        let mut buffer = huge_pages(BUFFER_BYTES)?;
        let pool = Pool::new(threads, 1);
        buffer.fill(1);
        Ok(ReadBandwidth { pool, buffer, isa: Isa::detect() })
    }

    /// One pass over the buffer, in GB/s.
    pub fn measure(&mut self) -> f64 {
        let words: &[u32] = bytemuck::cast_slice(&self.buffer);
        let isa = self.isa;
        let start = Instant::now();
        self.pool.run(&|worker| {
            worker.for_each_chunk(0, CHUNKS, |chunk| {
                black_box(read(isa, &words[share(words.len(), chunk, CHUNKS)]));
            });
            worker.wait_for(0, CHUNKS);
        });
        BUFFER_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

for_each_isa! {
    /// Reads every word.
    pub(crate) fn read(words: &[u32]) -> u32 {
        let mut lanes = [0u32; 64];
        for chunk in words.as_chunks::<64>().0 {
            for lane in 0..64 {
                lanes[lane] ^= chunk[lane];
            }
        }
        lanes.into_iter().fold(0, |a, b| a ^ b)
    }
}
