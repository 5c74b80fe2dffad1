//! The device room against a driver without a GPU (`fake_driver/libcuda.c`): which calls it makes, with what, and that it gives all back.
//!
//! The loader reads its search path once, so the test starts itself again with the fake on that path.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use fuserun::device::{Gpu, GraphShape, Kernel, LaunchOptions, Module, Stream};

const TRACE_VARIABLE: &str = "FAKE_CUDA_TRACE";

#[test]
fn the_device_room_makes_the_calls_it_should() {
    if std::env::var_os(TRACE_VARIABLE).is_some() {
        return on_the_fake().unwrap();
    }
    let folder = build_driver(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_driver/libcuda.c"));
    let trace = folder.join("trace.txt");
    let output =
        again("the_device_room_makes_the_calls_it_should", &folder).env(TRACE_VARIABLE, &trace).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        std::fs::read_to_string(trace).unwrap(),
        "\
fill 16 bytes with 0
fill 16 bytes with 0
fill 1 bytes with 255
k3: attribute 8 = 100000
k1: attribute 8 = 300000
run k3 grid 4,2,1 block 256,1,1 shared 100000 args 1 2 18446744073709551615
run k1 grid 64,1,1 block 32,1,1 shared 0 args 5 cluster 4,1,1 cooperative 1
k1: attribute 14 = 1
run k1 grid 64,1,1 block 32,1,1 shared 0 args 5 programmatic 1 cluster 16,1,1
replay k1 grid 1,1,1 block 32,1,1 shared 0 args 7
replay k1 grid 1,1,1 block 32,1,1 shared 0 args 8 programmatic 1
replay k1 grid 1,1,1 block 32,1,1 shared 0 args 9
context released, alive: 0 streams, 0 events, 0 modules, 0 graphs, 0 buffers, 0 pinned
"
    );
}

/// What loads as a driver library but is none: the room says so, and nothing panics through it.
#[test]
fn a_broken_driver_is_no_gpu() {
    const BROKEN_VARIABLE: &str = "FAKE_CUDA_BROKEN";
    if std::env::var_os(BROKEN_VARIABLE).is_some() {
        assert_eq!(Gpu::count(), 0);
        let error = format!("{:#}", Gpu::open(0).unwrap_err());
        assert_eq!(error, "cannot open cuda:0: the NVIDIA driver library lacks a function");
        return;
    }
    let empty = scratch("broken-driver").join("empty.c");
    std::fs::write(&empty, "").unwrap();
    let output = again("a_broken_driver_is_no_gpu", &build_driver(&empty)).env(BROKEN_VARIABLE, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// This program again, for one test, with the driver library of `folder`.
fn again(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env("LD_LIBRARY_PATH", folder);
    command
}

/// Compiles `source` under both names that the driver library is looked for by, and returns the folder.
fn build_driver(source: &Path) -> PathBuf {
    let folder = scratch(&format!("driver-{}", source.file_stem().unwrap().display()));
    for name in ["libcuda.so", "libcuda.so.1"] {
        let output = folder.join(name);
        let status =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(output).arg(source).status();
        assert!(status.as_ref().is_ok_and(|status| status.success()), "a C compiler is needed (cc): {status:?}");
    }
    folder
}

/// An empty folder of this name.
fn scratch(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().with_file_name("scratch").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn on_the_fake() -> Result<()> {
    ensure!(Gpu::count() == 1);
    let gpu = Gpu::open(0)?;
    properties(&gpu)?;
    memory(&gpu)?;
    let module = Module::load(&gpu, &cubin())?;
    launches(&gpu, &module)?;
    graph(gpu, module)
}

fn properties(gpu: &Gpu) -> Result<()> {
    ensure!(gpu.name()? == "Fake 9000" && gpu.arch()? == "sm_90" && gpu.compute_capability()? == (9, 0));
    ensure!(gpu.multiprocessors()? == 132 && gpu.l2_bytes()? == 50 << 20 && gpu.max_shared_bytes()? == 232_448);
    ensure!(gpu.memory()? == (3 << 30, 4 << 30) && gpu.driver_version()? == "13.0");
    let error = Gpu::open(1).unwrap_err().to_string();
    ensure!(error == "there is no cuda:1: this machine has 1 GPUs, numbered from 0", "{error}");
    Ok(())
}

fn memory(gpu: &Gpu) -> Result<()> {
    let error = gpu.alloc(5 << 30, "the KV cache").unwrap_err().to_string();
    ensure!(error == "the KV cache does not fit on cuda:0: 5.00 GiB wanted, 3.00 GiB free of 4.00 GiB", "{error}");

    let buffer = gpu.alloc_zeroed(16, "a buffer")?;
    buffer.upload(4, &[1, 2, 3, 4])?;
    let mut bytes = [9; 12];
    buffer.download(2, &mut bytes)?;
    ensure!(bytes == [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0]);
    ensure!(buffer.at(16) == buffer.pointer() + 16);
    let error = buffer.upload(13, &[0; 4]).unwrap_err().to_string();
    ensure!(error == "4 bytes at 13 are not inside a device buffer of 16 bytes", "{error}");
    ensure!(buffer.download(usize::MAX, &mut bytes).is_err());
    gpu.alloc(0, "nothing")?.upload(0, &[])?;

    let stream = gpu.stream()?;
    let mut pinned = gpu.alloc_pinned(20, "a ring")?;
    ensure!(pinned.bytes_mut() == [0; 20]);
    stream.download(&pinned, 4, &buffer, 4, 8)?;
    ensure!(pinned.load_u32(4) == 0x0403_0201 && pinned.load_u64(0) == 0x0403_0201_0000_0000);
    pinned.store_u32(16, 77);
    let mut words = [0; 2];
    pinned.read_u32s(12, &mut words)?;
    ensure!(words == [0, 77] && pinned.read_u32s(16, &mut words).is_err());
    ensure!(std::panic::catch_unwind(|| pinned.load_u32(20)).is_err(), "a word beyond the end");

    let other = gpu.alloc_zeroed(16, "another buffer")?;
    stream.upload(&other, 0, &pinned, 16, 4)?;
    stream.copy(&other, 8, &buffer, 4, 4)?;
    stream.fill(&other, 15, 1, 0xff)?;
    other.download(4, &mut bytes)?;
    ensure!(bytes == [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0xff]);
    ensure!(stream.copy(&other, 8, &buffer, 4, 9).is_err() && stream.upload(&other, 0, &pinned, 17, 4).is_err());
    Ok(())
}

fn launches(gpu: &Gpu, module: &Module) -> Result<()> {
    ensure!(Module::load(gpu, b"text").is_err());
    let stream = gpu.stream()?;
    let three = module.kernel("k3", 100_000)?;
    // A smaller wish later does not take the limit down again.
    module.kernel("k3", 60_000)?;
    let one = module.kernel("k1", 0)?;
    let message = |name: &str, shared| format!("{:#}", module.kernel(name, shared).unwrap_err());
    ensure!(
        message("absent", 0) == "kernel `absent`: cuModuleGetFunction: named symbol not found (CUDA_ERROR_NOT_FOUND)"
    );
    ensure!(message("narrow", 0).contains("parameter 0 is 4 bytes wide"));
    ensure!(message("k65", 0).contains("parameters of 520 bytes: more than 64 of 8 bytes each"));
    ensure!(message("k1", 300_000).contains("a block cannot have 300000 bytes of dynamic shared memory"));

    let plain = LaunchOptions::default();
    stream.launch(&three, [4, 2, 1], [256, 1, 1], 100_000, &[1, 2, u64::MAX], plain)?;
    let options = LaunchOptions { cluster: Some(4), cooperative: true, ..plain };
    stream.launch(&one, [64, 1, 1], [32, 1, 1], 0, &[5], options)?;
    let options = LaunchOptions { programmatic: true, cluster: Some(16), ..plain };
    stream.launch(&one, [64, 1, 1], [32, 1, 1], 0, &[5], options)?;

    let refused = |shared, args: &[u64], cluster| {
        let options = LaunchOptions { cluster, ..plain };
        format!("{:#}", stream.launch(&one, [2, 1, 1], [32, 1, 1], shared, args, options).unwrap_err())
    };
    ensure!(
        refused(0, &[], None)
            == "launch of `k1` over grid [2, 1, 1], block [32, 1, 1], 0 bytes of dynamic shared memory: 0 arguments for 1 parameters"
    );
    ensure!(refused(0, &[1, 2], None).contains("2 arguments for 1 parameters"));
    ensure!(refused(1, &[1], None).contains("at most 0 bytes of dynamic shared memory"));
    ensure!(refused(0, &[1], Some(3)).contains("clusters of 3 blocks do not divide the grid"));
    Ok(())
}

/// The graph keeps its module loaded, and everything is given back in whatever order it is dropped.
fn graph(gpu: Gpu, module: Module) -> Result<()> {
    let stream = gpu.stream()?;
    let kernel = module.kernel("k1", 0)?;
    let launch = |stream: &Stream, kernel: &Kernel, argument, programmatic| {
        let options = LaunchOptions { programmatic, ..LaunchOptions::default() };
        stream.launch(kernel, [1, 1, 1], [32, 1, 1], 0, &[argument], options)
    };
    ensure!(stream.end_capture().is_err(), "nothing to end");
    ensure!(stream.capture(|stream| stream.synchronize()).is_err(), "a wait cannot be captured");
    let graph = stream.capture(|stream| {
        launch(stream, &kernel, 7, false)?;
        launch(stream, &kernel, 8, true)?;
        launch(stream, &kernel, 9, false)
    })?;
    ensure!(graph.shape()? == GraphShape { nodes: 3, kernels: 3, edges: 2, programmatic_edges: 1 });
    let exec = graph.instantiate(&stream)?;
    let (start, end) = (gpu.event()?, gpu.event()?);
    drop((gpu, module, kernel, graph));

    stream.record(&start)?;
    stream.replay(&exec)?;
    stream.record(&end)?;
    stream.wait_for(&end)?;
    stream.synchronize()?;
    ensure!(end.query()? && stream.query()? && end.elapsed_ms_since(&start)? == 1.5);
    drop(stream);
    // The last owner of the context may be on another thread.
    std::thread::spawn(move || drop((exec, start, end))).join().expect("dropping does not panic");
    Ok(())
}

/// The smallest file that passes for a cubin: a section a kernel, with the bytes of its parameters in the record that the assembler leaves.
fn cubin() -> Vec<u8> {
    let kernels = [("k1", 8_u16), ("k3", 24), ("k65", 520), ("narrow", 4)];
    let (mut bytes, mut names, mut entries) = (vec![0; 64], Vec::new(), Vec::new());
    let mut section = |name: usize, offset: usize, len: usize| {
        let words = [name as u64 | 1 << 32, 0, 0, offset as u64, len as u64, 0, 0, 0];
        entries.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    for (name, width) in kernels {
        section(names.len(), bytes.len(), 4);
        names.extend(format!(".nv.info.{name}\0").into_bytes());
        bytes.extend([[3, 0x19], width.to_le_bytes()].concat());
    }
    section(names.len(), bytes.len(), names.len() + 1);
    bytes.extend([&names[..], b"\0"].concat());
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let table = bytes.len() as u64;
    bytes[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    for (at, value) in [(0x3a, 64), (0x3c, kernels.len() as u16 + 1), (0x3e, kernels.len() as u16)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(entries);
    bytes
}
