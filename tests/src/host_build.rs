//! Runs an emitted kernel on the host: its source, compiled by a C++ compiler over `vocabulary.h`, linked with `engine.cc` and loaded.
//! No GPU and no CUDA is needed.
//!
//! ```no_run
//! # use fuse_tests::host_build::{HostBuffer, HostKernel};
//! # fn main() -> anyhow::Result<()> {
//! # let source = "";
//! let kernel = HostKernel::build(source, "scale_n5")?;
//! let (x, y) = (HostBuffer::input(&[1.0f32; 5]), HostBuffer::output::<f32>(5));
//! kernel.launch([1, 1, 1], 32, 0, &[x.address(), 0, y.address()])?;
//! let result: Vec<f32> = y.written()?;
//! # Ok(()) }
//! ```
//!
//! A launch fails, naming block and thread, where a thread touches memory outside every [`HostBuffer`], writes to an input, reads shared
//! memory that nobody wrote, races in shared memory, indexes an array out of bounds, uses a misaligned pointer, touches global memory
//! before `wait_for_dependencies` other than by `load_early` or `load_stream`, reads by those what a launch of its [`HostStep`] writes,
//! reads by `load_settled` what may still be written, reads in one block global memory that another block writes, or where a warp, block or
//! cluster diverges at an exchange or a barrier. In a cluster also where it reads from a block what no cluster barrier separates from its
//! writing, its next writing or the block's end, and where it touches what `copy_bulk` brings before `await`.
//!
//! Loading and calling a library is `unsafe`, and so are buffers that a kernel writes through raw addresses: this module allows it, each
//! block with its reason.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use bytemuck::Pod;
use sha2::{Digest, Sha256};

/// A kernel's source as code of this machine.
#[derive(Clone)]
pub struct HostKernel {
    name: CString,
    library: Arc<Library>,
}

impl HostKernel {
    /// Compiles the kernel `name` of an emitted source, or takes it from `target/host-kernels`, where earlier builds are kept by content.
    ///
    /// # Errors
    /// No C++ compiler (`CXX`, else `g++`, else `c++`), or what the compiler says.
    pub fn build(source: &str, name: &str) -> Result<HostKernel> {
        let compiler = Compiler::find()?;
        let library = Library::open(&compiler.build(source, name)?)?;
        Ok(HostKernel { name: CString::new(name)?, library })
    }

    /// Builds many `(source, name)`, one compiler a core, in their order.
    ///
    /// # Errors
    /// As [`HostKernel::build`], the first that fails.
    pub fn build_all(kernels: &[(String, String)]) -> Result<Vec<HostKernel>> {
        let next = AtomicUsize::new(0);
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        let mut built: Vec<Option<Result<HostKernel>>> = kernels.iter().map(|_| None).collect();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers)
                .map(|_| {
                    scope.spawn(|| {
                        let mut own = Vec::new();
                        loop {
                            let at = next.fetch_add(1, Ordering::Relaxed);
                            let Some((source, name)) = kernels.get(at) else { break own };
                            own.push((at, HostKernel::build(source, name)));
                        }
                    })
                })
                .collect();
            for worker in workers {
                for (at, kernel) in worker.join().expect("a compile thread does not panic") {
                    built[at] = Some(kernel);
                }
            }
        });
        built.into_iter().map(|kernel| kernel.expect("every index was taken")).collect()
    }

    /// How many parameters the kernel takes.
    pub fn parameters(&self) -> usize {
        self.library.parameters
    }

    /// Runs every thread of a launch that is a step by itself. `arguments`: one 64-bit word per parameter, an address or an integer;
    /// `shared_bytes`: what `shared_memory()` offers. Launches of one kernel take turns; those of different kernels may run at the same time.
    ///
    /// # Errors
    /// Any check of the module's list, with kernel, block and thread.
    pub fn launch(&self, grid: [u32; 3], threads: u32, shared_bytes: u32, arguments: &[u64]) -> Result<()> {
        self.launch_in(&HostStep::begin(), grid, threads, shared_bytes, arguments)
    }

    /// Runs a launch of a step, after those before it.
    ///
    /// # Errors
    /// As [`HostKernel::launch`].
    pub fn launch_in(
        &self,
        step: &HostStep,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        arguments: &[u64],
    ) -> Result<()> {
        let name = self.name.to_string_lossy();
        ensure!(
            arguments.len() == self.library.parameters,
            "kernel {name} takes {} arguments, not {}",
            self.library.parameters,
            arguments.len()
        );
        ensure!(grid.iter().all(|&size| size > 0), "kernel {name}: a grid of {grid:?} has no blocks");
        let memory: Vec<Range> = ranges().values().copied().collect();
        let mut error = [0u8; 1024];
        let (number, mut early) = (next_number(), 0);
        let mut room = idle_rooms().pop().unwrap_or_default();
        let launch = Launch {
            grid,
            threads,
            shared_bytes,
            ranges: memory.len() as u32,
            step: step.number,
            number,
            settled: step.settled.load(Ordering::Relaxed),
            early: &raw mut early,
            room: &raw mut room,
            arguments: arguments.as_ptr(),
            memory: memory.as_ptr(),
            name: self.name.as_ptr(),
            error: error.as_mut_ptr().cast(),
            error_bytes: error.len() as u64,
        };
        let turn = self.library.turn.lock().expect("a launch does not panic");
        // SAFETY: `entry` was looked up in a library built from the engine of this crate, so it has this signature. Everything the launch
        // points to outlives the call. The kernel's own accesses are checked against the registered buffers before they are made.
        let failed = unsafe { (self.library.entry)(&launch) } != 0;
        drop(turn);
        idle_rooms().push(room);
        if failed {
            let end = error.iter().position(|&byte| byte == 0).unwrap_or(error.len());
            bail!("{}", String::from_utf8_lossy(&error[..end]));
        }
        // Where no thread launched dependents before its wait, all launches before this one end before the next starts.
        let before = step.last.swap(number, Ordering::Relaxed);
        if early == 0 {
            step.settled.store(before, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Launches that overlap on a device: each may start before those before it end, up to its wait.
pub struct HostStep {
    number: u32,
    /// The last launch, and the last of those that have ended when the next begins.
    last: AtomicU32,
    settled: AtomicU32,
}

impl HostStep {
    /// A step without launches; all of the steps before it have ended.
    pub fn begin() -> HostStep {
        HostStep { number: next_number(), last: AtomicU32::new(0), settled: AtomicU32::new(0) }
    }
}

/// Tells steps and launches apart; 0 is none.
fn next_number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Memory that kernels may touch, between two margins that they may not. Alignment 256, like an allocation of the device.
pub struct HostBuffer {
    memory: *mut u8,
    bytes: usize,
    /// The engine's, by address; empty where kernels may read only.
    _touched: Vec<Touched>,
}

/// Margin before and after a buffer; further apart than a wrong index by a row or two of a tiny shape.
const MARGIN: usize = 4096;
/// NaN as a float and as a bfloat16. What margins and unwritten outputs hold.
const POISON: [u8; 2] = [0xa5, 0x7f];

// SAFETY: the memory is owned; kernels that write to it run under the caller's `&HostBuffer` on the thread that launches them.
unsafe impl Send for HostBuffer {}
// SAFETY: through `&HostBuffer` there are copies out only; `set` takes `&mut`.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// A copy of `values` that kernels may read only.
    pub fn input<T: Pod>(values: &[T]) -> HostBuffer {
        HostBuffer::new(size_of_val(values), bytemuck::cast_slice(values), false)
    }

    /// A copy of `values` that kernels may read and write.
    pub fn inout<T: Pod>(values: &[T]) -> HostBuffer {
        HostBuffer::new(size_of_val(values), bytemuck::cast_slice(values), true)
    }

    /// Room for `count` values, filled with a NaN pattern, that kernels may read and write.
    pub fn output<T: Pod>(count: usize) -> HostBuffer {
        HostBuffer::new(count * size_of::<T>(), &[], true)
    }

    fn new(bytes: usize, values: &[u8], writable: bool) -> HostBuffer {
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { std::alloc::alloc(HostBuffer::layout(bytes)) };
        assert!(!memory.is_null(), "out of memory for a buffer of {bytes} bytes");
        let total = HostBuffer::layout(bytes).size();
        for at in 0..total {
            // SAFETY: `at` is inside the allocation.
            unsafe { memory.add(at).write(POISON[at % 2]) };
        }
        // SAFETY: `values` is no longer than `bytes`, and the margin leaves room before it.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), memory.add(MARGIN), values.len()) };
        let mut touched = vec![Touched::default(); if writable { bytes / 2 + 1 } else { 0 }];
        let begin = memory as u64 + MARGIN as u64;
        let known = if writable { touched.as_mut_ptr() as u64 } else { 0 };
        ranges().insert(begin, Range { begin, end: begin + bytes as u64, touched: known });
        HostBuffer { memory, bytes, _touched: touched }
    }

    fn layout(bytes: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(bytes.next_multiple_of(256) + 2 * MARGIN, 256)
            .expect("a buffer below 2^63 bytes")
    }

    /// Where it begins, as a kernel's argument. Offsets into it are fine.
    pub fn address(&self) -> u64 {
        self.memory as u64 + MARGIN as u64
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Overwrites the values from byte `offset` on.
    pub fn set<T: Pod>(&mut self, offset: usize, values: &[T]) {
        assert!(offset + size_of_val(values) <= self.bytes, "values beyond the buffer");
        // SAFETY: the target is inside the buffer, and no kernel runs on it while it is borrowed mutably.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr().cast::<u8>(),
                self.memory.add(MARGIN + offset),
                size_of_val(values),
            )
        };
    }

    /// All values as they are, written or not.
    ///
    /// # Errors
    /// Something wrote outside the buffer.
    pub fn values<T: Pod>(&self) -> Result<Vec<T>> {
        let total = HostBuffer::layout(self.bytes).size();
        for at in (0..MARGIN).chain(MARGIN + self.bytes..total) {
            // SAFETY: `at` is inside the allocation.
            let byte = unsafe { self.memory.add(at).read() };
            let offset = at as i64 - MARGIN as i64;
            ensure!(byte == POISON[at % 2], "a buffer of {} bytes was written at offset {offset}", self.bytes);
        }
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        // SAFETY: the source is the buffer, the target as many whole values.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.memory.add(MARGIN),
                values.as_mut_ptr().cast::<u8>(),
                size_of_val(&values[..]),
            )
        };
        Ok(values)
    }

    /// All values, each of which was written.
    ///
    /// # Errors
    /// A value still holds the poison, or something wrote outside the buffer.
    pub fn written<T: Pod>(&self) -> Result<Vec<T>> {
        let values = self.values::<T>()?;
        for (index, value) in values.iter().enumerate() {
            let bytes = bytemuck::bytes_of(value);
            let poisoned = bytes.iter().enumerate().all(|(at, &byte)| byte == POISON[at % 2]);
            ensure!(!poisoned, "value {index} of {} was not written", values.len());
        }
        Ok(values)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        ranges().remove(&self.address());
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.memory, HostBuffer::layout(self.bytes)) };
    }
}

/// `FuseRange` of engine.cc.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    begin: u64,
    end: u64,
    touched: u64,
}

/// `FuseTouched` of engine.cc.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Touched([u32; 7]);

/// Every living buffer, by address.
fn ranges() -> MutexGuard<'static, BTreeMap<u64, Range>> {
    static RANGES: Mutex<BTreeMap<u64, Range>> = Mutex::new(BTreeMap::new());
    RANGES.lock().expect("no user of the table panics")
}

/// `FuseRoom` of engine.cc.
#[repr(C)]
struct Room {
    memory: *mut u8,
    bytes: u64,
    blocks: u32,
    stacks: u32,
    epoch: u64,
}

impl Default for Room {
    fn default() -> Room {
        Room { memory: std::ptr::null_mut(), bytes: 0, blocks: 0, stacks: 0, epoch: 0 }
    }
}

// SAFETY: the engine's memory belongs to the room, and to the one launch that has it.
unsafe impl Send for Room {}

/// What no launch has. As many are made as launches run at the same time; they stay until the process ends.
fn idle_rooms() -> MutexGuard<'static, Vec<Room>> {
    static ROOMS: Mutex<Vec<Room>> = Mutex::new(Vec::new());
    ROOMS.lock().expect("no user of the rooms panics")
}

/// `FuseLaunch` of engine.cc.
#[repr(C)]
struct Launch {
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    ranges: u32,
    step: u32,
    number: u32,
    settled: u32,
    early: *mut u32,
    room: *mut Room,
    arguments: *const u64,
    memory: *const Range,
    name: *const c_char,
    error: *mut c_char,
    error_bytes: u64,
}

type Entry = unsafe extern "C" fn(*const Launch) -> c_int;

/// A loaded kernel. One a path: its shared memory and fibers are statics of the library.
struct Library {
    entry: Entry,
    parameters: usize,
    turn: Mutex<()>,
    _library: libloading::Library,
}

impl Library {
    fn open(path: &Path) -> Result<Arc<Library>> {
        static LOADED: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());
        let mut loaded = LOADED.lock().expect("no user of the table panics");
        if let Some(library) = loaded.get(path) {
            return Ok(library.clone());
        }
        let failure = || format!("cannot load {}", path.display());
        // SAFETY: the library was compiled from an emitted source; it has no initialisers beyond an empty `__tsan_init`.
        let library = unsafe { libloading::Library::new(path) }.with_context(failure)?;
        // SAFETY: these symbols are in the tail that `Compiler::build` appends, with these types.
        let (entry, parameters) = unsafe {
            let entry: Entry = *library.get::<Entry>(b"fuse_host_launch\0").with_context(failure)?;
            let parameters =
                library.get::<extern "C" fn() -> c_int>(b"fuse_host_parameters\0").with_context(failure)?;
            (entry, parameters() as usize)
        };
        let library = Arc::new(Library { entry, parameters, turn: Mutex::new(()), _library: library });
        loaded.insert(path.to_owned(), library.clone());
        Ok(library)
    }
}

/// The C++ compiler, and the engine as its object file.
struct Compiler {
    program: String,
    identity: String,
    folder: PathBuf,
    engine: PathBuf,
}

const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-w",
    "-DFUSE_HOST",
];
const CHECKS: [&str; 1] = ["-fsanitize=thread,bounds,alignment"];

impl Compiler {
    fn find() -> Result<&'static Compiler> {
        static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
        match COMPILER.get_or_init(|| Compiler::prepare().map_err(|error| format!("{error:#}"))) {
            Ok(compiler) => Ok(compiler),
            Err(error) => bail!("{error}"),
        }
    }

    fn prepare() -> Result<Compiler> {
        let wanted = std::env::var("CXX").ok().filter(|program| !program.is_empty());
        let candidates = wanted.map_or(vec!["g++".to_owned(), "c++".to_owned()], |program| vec![program]);
        let found = candidates.iter().find_map(|program| {
            let answer =
                Command::new(program).arg("--version").output().ok().filter(|answer| answer.status.success())?;
            Some((program.clone(), String::from_utf8_lossy(&answer.stdout).into_owned()))
        });
        let Some((program, identity)) = found else {
            bail!(
                "no C++ compiler: tried {}. Kernels run on the host only through one: install g++, or name one in CXX",
                candidates.join(", ")
            );
        };
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        let folder = target.join("host-kernels");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let key = hash(&[&identity, &FLAGS.join(" "), fuse_kernels::HOST_ENGINE]);
        let engine = folder.join(format!("engine-{key}.o"));
        let compiler = Compiler { program, identity, folder, engine };
        compiler.once(&compiler.engine, "the engine of the host build", |at| {
            let source = at.join("engine.cc");
            std::fs::write(&source, fuse_kernels::HOST_ENGINE)?;
            compiler.run(&FLAGS, &["-c".as_ref(), source.as_ref(), "-o".as_ref(), at.join("result").as_ref()])
        })?;
        Ok(compiler)
    }

    /// The library of a kernel, compiled unless it is there.
    fn build(&self, source: &str, name: &str) -> Result<PathBuf> {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        ensure!(!name.is_empty() && name.chars().all(valid), "`{name}` is no name of a kernel");
        let key = hash(&[
            &self.identity,
            &FLAGS.join(" "),
            &CHECKS.join(" "),
            TAIL,
            fuse_kernels::HOST_ENGINE,
            fuse_kernels::HOST_VOCABULARY,
            name,
            source,
        ]);
        let path = self.folder.join(format!("{}-{key}.so", &name[..name.len().min(80)]));
        self.once(&path, &format!("kernel {name}"), |at| {
            std::fs::write(at.join("vocabulary.h"), fuse_kernels::HOST_VOCABULARY)?;
            let unit = at.join("kernel.cc");
            std::fs::write(&unit, format!("{source}\n{}", TAIL.replace("KERNEL_NAME", name)))?;
            let object = at.join("kernel.o");
            let flags: Vec<&str> = FLAGS.iter().chain(&CHECKS).copied().collect();
            self.run(
                &flags,
                &["-I".as_ref(), at.as_ref(), "-c".as_ref(), unit.as_ref(), "-o".as_ref(), object.as_ref()],
            )?;
            // Linked without the sanitisers: their hooks are the engine's.
            let result = at.join("result");
            self.run(
                &["-shared"],
                &[object.as_ref(), self.engine.as_ref(), "-lm".as_ref(), "-o".as_ref(), result.as_ref()],
            )
        })?;
        Ok(path)
    }

    /// Makes `path` by a job that leaves a file `result` in the folder it is given. Two processes may do so at once; either result serves.
    fn once(&self, path: &Path, what: &str, job: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if path.exists() {
            return Ok(());
        }
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let at = self.folder.join(format!("work-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&at)?;
        let made = job(&at).and_then(|()| Ok(std::fs::rename(at.join("result"), path)?));
        let _ = std::fs::remove_dir_all(&at);
        made.with_context(|| format!("cannot compile {what} for the host"))
    }

    fn run(&self, flags: &[&str], paths: &[&std::ffi::OsStr]) -> Result<()> {
        let answer = Command::new(&self.program).args(flags).args(paths).output()?;
        ensure!(answer.status.success(), "{} says:\n{}", self.program, String::from_utf8_lossy(&answer.stderr));
        Ok(())
    }
}

/// Follows a kernel's source: the entry that the library exports.
const TAIL: &str = r#"
struct FuseLaunch;
extern "C" int fuse_run(const FuseLaunch* launch, void (*body)(const u64*), int cluster);
static void fuse_body(const u64* arguments) { fuse_call(KERNEL_NAME, arguments, FuseCount<fuse_parameters(KERNEL_NAME)>::type()); }
extern "C" __attribute__((visibility("default"))) int fuse_host_parameters() { return fuse_parameters(KERNEL_NAME); }
extern "C" __attribute__((visibility("default"))) int fuse_host_launch(const FuseLaunch* launch) { return fuse_run(launch, fuse_body, ::FUSE_CLUSTER); }
"#;

/// What a result of a host build depends on besides a kernel's source.
pub const HARNESS: [&str; 3] =
    [fuse_kernels::HOST_ENGINE, fuse_kernels::HOST_VOCABULARY, include_str!("host_build.rs")];

/// The first 64 bits of a SHA-256 over parts, each with its length.
pub fn hash<P: AsRef<[u8]>>(parts: &[P]) -> String {
    let mut hasher = Sha256::new();
    for part in parts.iter().map(AsRef::as_ref) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
