//! The machine's read ceiling: how fast a kernel that only reads gets through memory.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use fusec::build::{Arch, Nvrtc, Options, compile_all};
use fusec::emit::{READ_SHAPE, read_kernel};

use crate::cache;
use crate::device::{Gpu, LaunchOptions, Module};

/// Bytes read in one run at most; far more than any cache holds.
const MOST_BYTES: usize = 8 << 30;

/// Runs that are timed; the median counts.
const RUNS: usize = 15;

/// Bytes a second that 16-byte loads reach.
///
/// # Errors
/// No NVRTC, or no memory to read.
pub fn read_ceiling(gpu: &Gpu) -> Result<f64> {
    let (threads, unroll) = READ_SHAPE;
    let (major, minor) = gpu.compute_capability()?;
    let nvrtc = Nvrtc::find().map_err(|missing| anyhow!("{missing}"))?;
    let sources = BTreeMap::from([("read".to_string(), read_kernel()?)]);
    let options = Options { cache: cache::folder("kernels"), ..Options::default() };
    let compiled = compile_all(nvrtc, &sources, Arch::for_device(major, minor)?, &options)?;
    let cubin = &compiled.get("read").context("the read kernel was compiled")?.cubin;
    let kernel = Module::load(gpu, cubin)?.kernel("read", 0)?;

    let tile = threads * unroll * 16;
    let (free, _) = gpu.memory()?;
    let bytes = (free / 2).min(MOST_BYTES) / tile * tile;
    let (data, sink) = (gpu.alloc_zeroed(bytes, "the read test")?, gpu.alloc_zeroed(4, "the read test")?);
    let (stream, begin, end) = (gpu.stream()?, gpu.event()?, gpu.event()?);
    let grid = [gpu.multiprocessors()? as u32 * (2048 / threads) as u32, 1, 1];
    let args = [data.pointer(), (bytes / 16) as u64, sink.pointer()];
    let mut rates = Vec::with_capacity(RUNS);
    for run in 0..RUNS + 2 {
        stream.record(&begin)?;
        stream.launch(&kernel, grid, [threads as u32, 1, 1], 0, &args, LaunchOptions::default())?;
        stream.record(&end)?;
        end.synchronize()?;
        if run >= 2 {
            rates.push(bytes as f64 / (f64::from(end.elapsed_ms_since(&begin)?) * 1e-3));
        }
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[RUNS / 2])
}
