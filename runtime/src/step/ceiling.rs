//! The machine's read ceiling: how fast a kernel that only reads gets through memory.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use fusec::build::{Arch, Nvrtc, Options, compile_all};
use fusec::plan::kernels::{Family, Read};

use crate::cache;
use crate::device::{DeviceBuffer, Gpu, Kernel, LaunchOptions, Module, Stream};

/// Bytes read in one run at most; far more than any cache holds.
const MOST_BYTES: usize = 8 << 30;

/// Runs that are timed; the median counts.
const RUNS: usize = 15;

/// Bytes a second that 16-byte loads reach.
///
/// # Errors
/// No NVRTC, or no memory to read.
pub fn read_ceiling(gpu: &Gpu) -> Result<f64> {
    MemoryReader::new(gpu)?.ceiling()
}

/// A kernel that only reads, and memory for it: half of what is free, up to 8 GiB.
pub struct MemoryReader {
    gpu: Gpu,
    kernel: Kernel,
    data: DeviceBuffer,
    sink: DeviceBuffer,
    bytes: usize,
    tile: usize,
    grid: [u32; 3],
}

impl MemoryReader {
    /// Compiles the kernel and allocates its memory.
    ///
    /// # Errors
    /// No NVRTC, or no memory to read.
    pub fn new(gpu: &Gpu) -> Result<MemoryReader> {
        let Read { threads, unroll } = Read::CEILING;
        let kernel = compile_kernel(gpu, &Read::CEILING.name(), Read::CEILING.source()?, 0)?;
        let tile = threads * unroll * 16;
        let (free, _) = gpu.memory()?;
        let bytes = ((free / 2).min(MOST_BYTES) / tile * tile).max(tile);
        let (data, sink) = (gpu.alloc_zeroed(bytes, "the read test")?, gpu.alloc_zeroed(4, "the read test")?);
        let grid = [gpu.multiprocessors()? as u32 * (2048 / threads) as u32, 1, 1];
        Ok(MemoryReader { gpu: gpu.clone(), kernel, data, sink, bytes, tile, grid })
    }

    /// Bytes a second that it reaches: the median of some runs.
    ///
    /// # Errors
    /// A fault on the device.
    pub fn ceiling(&self) -> Result<f64> {
        let (stream, begin, end) = (self.gpu.stream()?, self.gpu.event()?, self.gpu.event()?);
        let mut rates = Vec::with_capacity(RUNS);
        for run in 0..RUNS + 2 {
            stream.record(&begin)?;
            self.read(&stream, self.bytes)?;
            stream.record(&end)?;
            end.synchronize()?;
            if run >= 2 {
                rates.push(self.bytes as f64 / (f64::from(end.elapsed_ms_since(&begin)?) * 1e-3));
            }
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[RUNS / 2])
    }

    /// Puts reads of at least `bytes` bytes into the stream: caches hold nothing else after them.
    ///
    /// # Errors
    /// The driver refuses a launch.
    pub fn read(&self, stream: &Stream, bytes: usize) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let part = (left.div_ceil(self.tile) * self.tile).min(self.bytes);
            let args = [self.data.pointer(), (part / 16) as u64, self.sink.pointer()];
            let block = [Read::CEILING.threads as u32, 1, 1];
            stream.launch(&self.kernel, self.grid, block, 0, &args, LaunchOptions::default())?;
            left = left.saturating_sub(part);
        }
        Ok(())
    }
}

/// Compiles one kernel for this GPU and loads it.
pub(super) fn compile_kernel(gpu: &Gpu, name: &str, source: String, shared_bytes: u32) -> Result<Kernel> {
    let (major, minor) = gpu.compute_capability()?;
    let nvrtc = Nvrtc::find().map_err(|missing| anyhow!("{missing}"))?;
    let options = Options { cache: cache::folder("kernels"), ..Options::default() };
    let sources = BTreeMap::from([(name.to_string(), source)]);
    let compiled = compile_all(nvrtc, &sources, Arch::for_device(major, minor)?, &options)?;
    let cubin = &compiled.get(name).with_context(|| format!("the kernel {name} was compiled"))?.cubin;
    Module::load(gpu, cubin)?.kernel(name, shared_bytes)
}
