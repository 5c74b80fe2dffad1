//! A kernel that is compiled, launched and captured on a GPU, as a step's are.

use anyhow::{Context, Result, anyhow, ensure};
use fusec::build::{Arch, Nvrtc};

use crate::device::{Gpu, LaunchOptions, Module};

const NAME: &str = "doctor";

/// Doubles each value and adds one.
const SOURCE: &str = "\
extern \"C\" __global__ void doctor(unsigned int* values, unsigned long long count) {
    unsigned long long at = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    if (at < count) values[at] = 2 * values[at] + 1;
}
";

const THREADS: u32 = 256;
const BLOCKS: u32 = 64;
/// The last block is not full.
const COUNT: u32 = BLOCKS * THREADS - 7;

/// How often the captured graph is replayed, after one launch by itself.
const REPLAYS: u32 = 3;

/// Compiles without the cache, launches once, replays a captured launch, and compares what the GPU wrote.
///
/// # Errors
/// Each step of that, by its name, where it does not work.
pub fn try_kernel(gpu: &Gpu) -> Result<()> {
    let (major, minor) = gpu.compute_capability()?;
    let arch = Arch::for_device(major, minor)?;
    let nvrtc = Nvrtc::find().map_err(|missing| anyhow!("{missing}"))?;
    let compiled = nvrtc.compile(SOURCE, NAME, arch).context("it does not compile")?;
    let module = Module::load(gpu, &compiled.cubin).context("it does not load")?;
    let kernel = module.kernel(NAME, 0).context("it does not load")?;
    let values = gpu.alloc_zeroed(4 * COUNT as usize, "values")?;
    let stream = gpu.stream()?;
    let args = [values.pointer(), u64::from(COUNT)];
    let launch = |stream: &crate::device::Stream| {
        stream.launch(&kernel, [BLOCKS, 1, 1], [THREADS, 1, 1], 0, &args, LaunchOptions::default())
    };
    launch(&stream).context("it does not launch")?;
    stream.synchronize().context("it does not run")?;
    let graph =
        stream.capture(launch).context("it is not captured")?.instantiate(&stream).context("its graph is not made")?;
    for _ in 0..REPLAYS {
        stream.replay(&graph).context("its graph is not launched")?;
    }
    stream.synchronize().context("its graph does not run")?;
    let mut bytes = vec![0; 4 * COUNT as usize];
    values.download(0, &mut bytes)?;
    let expected = (1_u32 << (1 + REPLAYS)) - 1;
    let written = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let wrong = written.filter(|value| *value != expected).count();
    ensure!(wrong == 0, "{wrong} of {COUNT} values that it wrote are wrong");
    Ok(())
}
