//! What memory gives: the ceiling that a decode step is held against.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;
use memmap2::MmapMut;

use super::math::{Isa, for_each_isa};
use super::pack::huge_pages;
use super::pool::Pool;

/// A buffer far larger than any cache, and threads that read it.
pub struct ReadBandwidth {
    pool: Pool,
    buffer: MmapMut,
    isa: Isa,
}

/// Twice the largest last-level cache in common use, and some.
const BUFFER_BYTES: usize = 512 << 20;

/// The read bandwidth of memory in GB/s (10⁹ bytes): the best of five passes over 512 MiB, each of `threads` threads reading one part.
///
/// # Errors
/// No memory, or no threads.
pub fn measure_read_bandwidth(threads: usize) -> Result<f64> {
    let mut bandwidth = ReadBandwidth::new(threads)?;
    Ok((0..5).map(|_| bandwidth.measure()).fold(0.0, f64::max))
}

impl ReadBandwidth {
    /// Reserves and fills the buffer.
    ///
    /// # Errors
    /// No memory, or no threads.
    pub fn new(threads: usize) -> Result<ReadBandwidth> {
        let mut buffer = huge_pages(BUFFER_BYTES)?;
        let mut pool = Pool::new(threads)?;
        let parts: Vec<Mutex<&mut [u8]>> =
            buffer.chunks_mut(BUFFER_BYTES.div_ceil(pool.threads())).map(Mutex::new).collect();
        pool.run(&|worker| {
            if let Some(part) = parts.get(worker.index) {
                part.lock().expect("one thread a part").fill(1);
            }
        });
        drop(parts);
        Ok(ReadBandwidth { pool, buffer, isa: Isa::detect() })
    }

    /// One pass over the buffer, in GB/s.
    pub fn measure(&mut self) -> f64 {
        let words: &[u32] = bytemuck::cast_slice(&self.buffer);
        let isa = self.isa;
        let start = Instant::now();
        self.pool.run(&|worker| {
            black_box(read(isa, &words[worker.share(words.len())]));
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
