//! Runs the device room against a real GPU: memory, three kernels as one captured graph with programmatic edges, launch attributes, read bandwidth.
//!
//! `cargo run -p fuserun --example device_smoke [CUBIN]`; with no cubin of `device_smoke.cu`, NVRTC makes one. Prints `skipped: no GPU` where
//! there is none, and fails where a number is wrong.

use anyhow::{Context, Result, ensure};
use fusec::build::{Arch, Nvrtc};
use fuserun::device::{Gpu, GraphShape, LaunchOptions, Module};

const SOURCE: &str = include_str!("device_smoke.cu");
const BLOCKS: u32 = 132;
const THREADS: u32 = 256;
const VALUES: usize = (BLOCKS * THREADS) as usize;

fn main() -> Result<()> {
    let reason = match Gpu::probe() {
        Ok(0) => Some("the driver finds no device".into()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = reason {
        println!("skipped: no GPU ({reason})");
        return Ok(());
    }
    let gpu = Gpu::open(0)?;
    let (free, total) = gpu.memory()?;
    println!("{gpu:?}: {}, CUDA {}, {} SMs", gpu.arch()?, gpu.driver_version()?, gpu.multiprocessors()?);
    println!(
        "{free} of {total} bytes free, L2 {} bytes, {} bytes of shared memory a block",
        gpu.l2_bytes()?,
        gpu.max_shared_bytes()?
    );

    let module = Module::load(&gpu, &cubin(&gpu)?)?;
    refusals(&gpu, &module)?;
    memory(&gpu)?;
    chain(&gpu, &module)?;
    attributes(&gpu, &module)?;
    bandwidth(&gpu, &module)?;
    println!("ok");
    Ok(())
}

fn cubin(gpu: &Gpu) -> Result<Vec<u8>> {
    if let Some(path) = std::env::args_os().nth(1) {
        return std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    }
    let (major, minor) = gpu.compute_capability()?;
    let nvrtc = Nvrtc::find()?;
    println!("{nvrtc:?}");
    Ok(nvrtc.compile(SOURCE, "device_smoke", Arch::for_device(major, minor)?)?.cubin)
}

/// Mistakes are errors that say what was wrong, and leave the device usable.
fn refusals(gpu: &Gpu, module: &Module) -> Result<()> {
    let stream = gpu.stream()?;
    let double = module.kernel("double_it", 0)?;
    let errors = [
        Gpu::open(999).err(),
        Module::load(gpu, b"no cubin").err(),
        module.kernel("absent", 0).err(),
        module.kernel("double_it", 1 << 30).err(),
        gpu.alloc(usize::MAX / 2, "a buffer that fits nowhere").err(),
        gpu.alloc(8, "a small buffer")?.upload(4, &[0; 8]).err(),
        stream.launch(&double, [1, 1, 1], [32, 1, 1], 0, &[0], LaunchOptions::default()).err(),
        stream.launch(&double, [1, 1, 1], [4096, 1, 1], 0, &[0, 0, 0], LaunchOptions::default()).err(),
        stream.capture(|stream| stream.synchronize()).err(),
        stream.end_capture().err(),
    ];
    for (case, error) in errors.into_iter().enumerate() {
        println!("refused: {:#}", error.with_context(|| format!("case {case} was accepted"))?);
    }
    ensure!(stream.query()?, "an idle stream is done");
    Ok(())
}

fn memory(gpu: &Gpu) -> Result<()> {
    let stream = gpu.stream()?;
    let bytes: Vec<u8> = (0..1000_usize).map(|i| i as u8).collect();
    let first = gpu.upload(&bytes, "the first buffer")?;
    let second = gpu.alloc_zeroed(1000, "the second buffer")?;
    let pinned = gpu.alloc_pinned(1000, "staging")?;
    ensure!(pinned.load_u64(992) == 0, "pinned memory starts as zeros");

    stream.copy(&second, 0, &first, 8, 992)?;
    stream.fill(&second, 0, 4, 7)?;
    stream.download(&pinned, 0, &second, 0, 1000)?;
    stream.synchronize()?;
    ensure!(
        pinned.load_u32(0) == 0x0707_0707 && pinned.load_u32(4) == u32::from_le_bytes([12, 13, 14, 15]),
        "copied and filled"
    );
    ensure!(pinned.load_u64(992) == 0, "the tail is not copied");

    let mut staged = gpu.alloc_pinned(16, "staging")?;
    staged.bytes_mut().copy_from_slice(&bytes[100..116]);
    stream.upload(&first, 4, &staged, 0, 16)?;
    drop(staged);
    let mut back = vec![0; 24];
    first.download(0, &mut back)?;
    ensure!(
        back[..4] == bytes[..4] && back[4..20] == bytes[100..116] && back[20..] == bytes[20..24],
        "uploaded in place"
    );
    Ok(())
}

/// The step in small: three dependent kernels in one graph, a position that the device advances, a ring that the host reads without waiting.
fn chain(gpu: &Gpu, module: &Module) -> Result<()> {
    let stream = gpu.stream()?;
    let input: Vec<u8> = (0..VALUES).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let x = gpu.upload(&input, "x")?;
    let y = gpu.alloc_zeroed(VALUES * 4, "y")?;
    let position = gpu.alloc_zeroed(4, "position")?;
    let ring = gpu.alloc_pinned(64 * 4, "the ring")?;
    let kernels = [module.kernel("double_it", 0)?, module.kernel("add_one", 0)?, module.kernel("append", 0)?];
    println!("{:?} uses {:?}", kernels[0], kernels[0].resources()?);

    let step = |programmatic: bool| -> Result<_> {
        let options = LaunchOptions { programmatic, ..LaunchOptions::default() };
        let graph = stream.capture(|stream| {
            let (grid, block) = ([BLOCKS, 1, 1], [THREADS, 1, 1]);
            stream.launch(&kernels[0], grid, block, 0, &[x.pointer(), y.pointer(), VALUES as u64], options)?;
            stream.launch(&kernels[1], grid, block, 0, &[y.pointer(), VALUES as u64], options)?;
            stream.launch(
                &kernels[2],
                [1, 1, 1],
                [32, 1, 1],
                0,
                &[y.pointer(), position.pointer(), ring.pointer()],
                options,
            )
        })?;
        let shape = graph.shape()?;
        println!("programmatic {programmatic}: {shape:?}");
        let programmatic_edges = if programmatic { 2 } else { 0 };
        ensure!(shape == GraphShape { nodes: 3, kernels: 3, edges: 2, programmatic_edges }, "a chain of three");
        graph.instantiate(&stream)
    };

    for (round, programmatic) in [false, true].into_iter().enumerate() {
        let exec = step(programmatic)?;
        let (start, end) = (gpu.event()?, gpu.event()?);
        stream.record(&start)?;
        for _ in 0..16 {
            stream.replay(&exec)?;
        }
        stream.record(&end)?;
        let last = (round * 16 + 15) * 4;
        while ring.load_u32(last) == 0 {
            ensure!(!end.query()? || ring.load_u32(last) != 0, "the graph ran and left no token");
        }
        end.synchronize()?;
        println!("{:.2} us a replay of 3 kernels", end.elapsed_ms_since(&start)? * 1000.0 / 16.0);
    }

    let mut tokens = vec![0; 33];
    ring.read_u32s(0, &mut tokens)?;
    // append writes y[position] after x was doubled and one was added, never zero.
    let expected: Vec<u32> = (0..32).map(|i| 2 * i + 1).chain([0]).collect();
    ensure!(tokens == expected, "the ring holds {tokens:?}");
    let mut values = vec![0; VALUES * 4];
    y.download(0, &mut values)?;
    let wrong = values.chunks_exact(4).enumerate().find(|(i, value)| **value != (2.0 * *i as f32 + 1.0).to_le_bytes());
    ensure!(wrong.is_none(), "a wrong value at {wrong:?}");
    Ok(())
}

/// Dynamic shared memory beyond 48 KB, clusters, a cooperative launch.
fn attributes(gpu: &Gpu, module: &Module) -> Result<()> {
    let stream = gpu.stream()?;
    let shared = 96 * 1024;
    let kernel = module.kernel("through_shared", shared)?;
    println!(
        "{} blocks an SM with {shared} bytes of shared memory",
        kernel.blocks_per_multiprocessor(THREADS, shared)?
    );
    let y = gpu.alloc_zeroed(VALUES * 4, "y")?;
    let (major, _) = gpu.compute_capability()?;
    let clusters = if major >= 9 { vec![None, Some(4)] } else { vec![None] };
    for cluster in clusters {
        for cooperative in [false, true] {
            y.zero()?;
            let options = LaunchOptions { cluster, cooperative, programmatic: false };
            let blocks = (gpu.multiprocessors()? as u32 / 4 * 4).min(BLOCKS);
            let count = (blocks * THREADS) as usize;
            stream.launch(
                &kernel,
                [blocks, 1, 1],
                [THREADS, 1, 1],
                shared,
                &[y.pointer(), u64::from(shared)],
                options,
            )?;
            stream.synchronize()?;
            let mut values = vec![0; count * 4];
            y.download(0, &mut values)?;
            let all = values.chunks_exact(4).enumerate().all(|(i, v)| v == ((i as f32) + 0.5).to_le_bytes());
            ensure!(all, "wrong values with {options:?}");
        }
    }
    Ok(())
}

fn bandwidth(gpu: &Gpu, module: &Module) -> Result<()> {
    let stream = gpu.stream()?;
    let kernel = module.kernel("read_all", 0)?;
    let bytes = 4 << 30;
    let buffer = gpu.alloc_zeroed(bytes, "the bandwidth probe")?;
    let sink = gpu.alloc_zeroed(4, "a sink")?;
    let blocks = gpu.multiprocessors()? as u32 * 8;
    let mut best = f32::INFINITY;
    for _ in 0..8 {
        let (start, end) = (gpu.event()?, gpu.event()?);
        stream.record(&start)?;
        let args = [buffer.pointer(), (bytes / 16) as u64, sink.pointer()];
        stream.launch(&kernel, [blocks, 1, 1], [512, 1, 1], 0, &args, LaunchOptions::default())?;
        stream.record(&end)?;
        end.synchronize()?;
        best = best.min(end.elapsed_ms_since(&start)?);
    }
    println!("read {:.2} TB/s", bytes as f32 / best / 1e9);
    Ok(())
}
