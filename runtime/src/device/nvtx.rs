//! Named ranges of the host's work (NVTX), which Nsight Systems shows above the launches made within them and Nsight Compute can filter by.
//!
//! A profiler names a library in `NVTX_INJECTION64_PATH`. It is given a table of empty slots and puts its functions into those it wants to hear of.
//! Without that variable a range costs one check and its name is never made.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

/// A range that is open until this is dropped, on the thread that opened it.
#[must_use]
pub struct Range {
    pop: Option<Pop>,
    _one_thread: PhantomData<*const ()>,
}

/// Opens a range. `name` is asked for where a profiler listens.
pub fn range(name: impl FnOnce() -> String) -> Range {
    let pop = tool().map(|tool| {
        let name = CString::new(name().replace('\0', " ")).unwrap_or_default();
        // SAFETY: the profiler's function for this slot, which takes a zero-terminated string and keeps no pointer to it.
        unsafe { (tool.push)(name.as_ptr()) };
        tool.pop
    });
    Range { pop, _one_thread: PhantomData }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(pop) = self.pop {
            // SAFETY: the profiler's function for this slot; a range of this thread is open.
            unsafe { pop() };
        }
    }
}

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

#[derive(Clone, Copy)]
struct Tool {
    push: Push,
    pop: Pop,
}

/// The module of the plain functions, and its slots for pushing and popping a range.
const CORE: usize = 1;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

/// Modules and slots per module, with room to spare: a slot that nobody calls costs nothing.
const MODULES: usize = 8;
const SLOTS: usize = 64;
static TABLES: [[AtomicPtr<c_void>; SLOTS]; MODULES] =
    [const { [const { AtomicPtr::new(null_mut()) }; SLOTS] }; MODULES];

fn tool() -> Option<Tool> {
    static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
    *TOOL.get_or_init(attach)
}

fn attach() -> Option<Tool> {
    type Attach = unsafe extern "C" fn(unsafe extern "C" fn(u32) -> *const c_void) -> c_int;
    let path = std::env::var_os("NVTX_INJECTION64_PATH").filter(|path| !path.is_empty())?;
    // SAFETY: the profiler that started this process names its own library there, whose initialisers are made to run here.
    let library = unsafe { Library::new(path) }.ok()?;
    // SAFETY: the type that NVTX gives this symbol.
    let attach = *unsafe { library.get::<Attach>(b"InitializeInjectionNvtx2\0") }.ok()?;
    // Its functions are called for the life of the process.
    std::mem::forget(library);
    // SAFETY: as the protocol has it, once, with the function that hands out the tables.
    if unsafe { attach(export_table) } == 0 {
        return None;
    }
    let slot = |slot: usize| Some(TABLES[CORE][slot].load(Ordering::Acquire)).filter(|function| !function.is_null());
    let (push, pop) = (slot(RANGE_PUSH)?, slot(RANGE_POP)?);
    // SAFETY: the profiler filled both slots, with functions of these types.
    Some(unsafe {
        Tool { push: std::mem::transmute::<*mut c_void, Push>(push), pop: std::mem::transmute::<*mut c_void, Pop>(pop) }
    })
}

#[repr(C)]
struct Callbacks {
    size: usize,
    functions_of: unsafe extern "C" fn(c_uint, *mut *const *const c_void, *mut c_uint) -> c_int,
}

#[repr(C)]
struct Version {
    size: usize,
    version: u32,
    reserved: u32,
    set_profilers: unsafe extern "C" fn(u32),
}

unsafe extern "C" fn export_table(id: u32) -> *const c_void {
    static CALLBACKS: Callbacks = Callbacks { size: size_of::<Callbacks>(), functions_of };
    static VERSION: Version = Version { size: size_of::<Version>(), version: 3, reserved: 0, set_profilers: ignore };
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => null(),
    }
}

unsafe extern "C" fn ignore(_version: u32) {}

/// Hands out the slots of a module: a table of pointers to them, and how many they are.
unsafe extern "C" fn functions_of(module: c_uint, table: *mut *const *const c_void, size: *mut c_uint) -> c_int {
    let Some(slots) = TABLES.get(module as usize).filter(|_| module > 0) else { return 0 };
    // A few hundred bytes per module, once: the profiler may keep them. A null pointer ends the table.
    let pointers = slots.iter().map(|slot| slot.as_ptr().cast_const().cast::<c_void>()).chain([null()]);
    let pointers = Box::leak(pointers.collect::<Box<[*const c_void]>>());
    // SAFETY: the profiler passes two places to write to, or null for what it does not want.
    unsafe {
        if !table.is_null() {
            table.write(pointers.as_ptr());
        }
        if !size.is_null() {
            size.write(SLOTS as c_uint);
        }
    }
    1
}
