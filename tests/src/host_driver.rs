//! A driver without a GPU whose kernels run: the fake of `runtime/tests/fake_driver` over the host build of kernels, with the checks of that.
//!
//! The loader reads its search path once, so a test starts itself again with the fake on that path: [`on_fake_driver`], then [`run_kernels`] there.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};

use crate::host_build::{HostBuffer, HostKernel, HostStep};
use crate::{TempFolder, nvrtc, root};

/// What tells a test that it runs on the fake: where that notes its calls.
pub const TRACE: &str = "FAKE_CUDA_TRACE";

/// Runs one test of this program again on the fake driver, and gives what the driver noted. `late`: streams are late, by up to that many microseconds.
///
/// Panics where the test fails, a call is a misuse, or something is not given back.
pub fn on_fake_driver(test: &str, late: Option<u32>) -> String {
    let late = late.map(|late| late.to_string());
    let variables: Vec<(&str, &str)> = late.iter().map(|late| ("FAKE_CUDA_LATE", late.as_str())).collect();
    let trace = with_fake_driver(test, &variables);
    let end = "context released, alive: 0 streams, 0 events, 0 modules, 0 graphs, 0 buffers, 0 pinned\n";
    assert!(trace.ends_with(end), "everything is given back");
    trace
}

/// As [`on_fake_driver`], with further variables, of a test that may leave the driver alone.
pub fn with_fake_driver(test: &str, variables: &[(&str, &str)]) -> String {
    let folder = TempFolder::new();
    let trace = folder.path().join("trace.txt");
    build_driver(folder.path());
    let mut again = Command::new(std::env::current_exe().expect("a test is a program"));
    again.args(["--exact", test, "--nocapture"]).env("LD_LIBRARY_PATH", folder.path());
    again.env(TRACE, &trace).env("FAKE_CUDA_FREE", "100000000").env("FUSE_CACHE", root().join(".cache"));
    again.env("FUSE_NVRTC", nvrtc().path()).envs(variables.iter().copied());
    let done = again.output().expect("it was running just now");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr));
    // A driver that is never asked for a context notes nothing.
    let trace = std::fs::read_to_string(trace).unwrap_or_default();
    assert!(!trace.contains("MISUSE"), "{trace}");
    trace
}

/// Compiles the fake, under both names that the driver library is looked for by.
fn build_driver(folder: &Path) {
    let source = root().join("runtime/tests/fake_driver/libcuda.c");
    let library = folder.join("libcuda.so.1");
    let done =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&library).arg(&source).status();
    assert!(done.as_ref().is_ok_and(|status| status.success()), "a C compiler is needed (cc): {done:?}");
    // One file, so that both names are one library.
    std::os::unix::fs::symlink(&library, folder.join("libcuda.so")).expect("a link in a folder of its own");
}

/// `Run` of the fake.
#[repr(C)]
struct Run {
    name: [c_char; 160],
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    first: u32,
    count: u32,
    arguments: [u64; 64],
}

type Allocate = extern "C" fn(usize) -> u64;
type Release = extern "C" fn(u64);
type Launch = unsafe extern "C" fn(*const Run) -> c_int;

static DRIVER: OnceLock<libloading::Library> = OnceLock::new();
static KERNELS: OnceLock<BTreeMap<String, HostKernel>> = OnceLock::new();
static BUFFERS: Mutex<BTreeMap<u64, HostBuffer>> = Mutex::new(BTreeMap::new());
static STEP: Mutex<Option<HostStep>> = Mutex::new(None);
static FAULT: Mutex<Option<String>> = Mutex::new(None);

/// Has the fake driver run these kernels (name and source) from here on. Called once, before anything is allocated.
///
/// # Errors
/// Kernels that do not compile; a driver that is not the fake.
pub fn run_kernels(sources: &BTreeMap<String, String>) -> Result<()> {
    let pairs: Vec<(String, String)> = sources.iter().map(|(name, source)| (source.clone(), name.clone())).collect();
    let built = HostKernel::build_all(&pairs)?;
    KERNELS.set(sources.keys().cloned().zip(built).collect()).ok().context("kernels are given once")?;
    // SAFETY: the library is the fake, which this process runs on already; it has no initialisers.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }.context("there is no driver")?;
    // Kept, or it would be another one that the runtime loads.
    let driver = DRIVER.get_or_init(|| driver);
    // SAFETY: the fake's function of this name has these parameters.
    let hook = unsafe { driver.get::<extern "C" fn(Allocate, Release, Launch)>(b"fake_cuda_hooks\0") };
    hook.context("the driver is not the fake")?(allocate, release, launch);
    Ok(())
}

/// What a kernel did wrong, if one did: all that comes after it has failed.
pub fn fault() -> Option<String> {
    locked(&FAULT).clone()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn allocate(bytes: usize) -> u64 {
    let buffer = HostBuffer::output::<u8>(bytes);
    let address = buffer.address();
    locked(&BUFFERS).insert(address, buffer);
    address
}

extern "C" fn release(address: u64) {
    locked(&BUFFERS).remove(&address);
}

unsafe extern "C" fn launch(run: *const Run) -> c_int {
    // SAFETY: the fake gives a launch that lives until this returns.
    let run = unsafe { &*run };
    // SAFETY: the fake ends each name within its room.
    let name = unsafe { CStr::from_ptr(run.name.as_ptr()) }.to_string_lossy();
    let mut step = locked(&STEP);
    if run.first != 0 || step.is_none() {
        *step = Some(HostStep::begin());
    }
    let launched = || -> Result<()> {
        let kernel = KERNELS.get().and_then(|kernels| kernels.get(name.as_ref()));
        let kernel = kernel.with_context(|| format!("{name} was not built for the host"))?;
        let step = step.as_ref().context("the step has begun")?;
        kernel.launch_in(step, run.grid, run.threads, run.shared, &run.arguments[..run.count as usize])
    };
    let Err(error) = launched() else { return 0 };
    locked(&FAULT).get_or_insert(format!("{error:#}"));
    1
}
