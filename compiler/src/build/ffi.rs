//! The NVRTC functions in use, as function pointers into a library that stays loaded.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libloading::Library;

type Program = *mut c_void;
type Status = c_int;

/// NVRTC's entry points. The library is never unloaded, so the pointers hold for the life of the process.
pub(super) struct Api {
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    number_of_archs: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// A finished compilation: device code, or none where the log holds errors.
pub(super) struct Outcome {
    pub(super) cubin: Option<Vec<u8>>,
    pub(super) log: String,
}

impl Api {
    /// Loads the library at `path` (or by its bare name, through the loader), the builtins beside it first.
    pub(super) fn load(path: &Path) -> Result<Api> {
        for builtins in builtins_beside(path) {
            // NVRTC opens its builtins by name at the first compilation: a copy that is loaded already is found by that name.
            open(&builtins).with_context(|| format!("cannot load {}", builtins.display()))?;
        }
        let library = open(path).with_context(|| format!("cannot load {}", path.display()))?;
        // SAFETY: the types are those of nvrtc.h, unchanged since NVRTC 11.2.
        unsafe {
            Ok(Api {
                get_error_string: symbol(library, "nvrtcGetErrorString")?,
                version: symbol(library, "nvrtcVersion")?,
                number_of_archs: symbol(library, "nvrtcGetNumSupportedArchs")?,
                archs: symbol(library, "nvrtcGetSupportedArchs")?,
                create: symbol(library, "nvrtcCreateProgram")?,
                destroy: symbol(library, "nvrtcDestroyProgram")?,
                compile: symbol(library, "nvrtcCompileProgram")?,
                log_size: symbol(library, "nvrtcGetProgramLogSize")?,
                log: symbol(library, "nvrtcGetProgramLog")?,
                cubin_size: symbol(library, "nvrtcGetCUBINSize")?,
                cubin: symbol(library, "nvrtcGetCUBIN")?,
            })
        }
    }

    /// Major and minor version: (13, 0).
    pub(super) fn version(&self) -> Result<(i32, i32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        self.check(unsafe { (self.version)(&mut major, &mut minor) }, "nvrtcVersion")?;
        Ok((major, minor))
    }

    /// Compute capabilities that this version compiles for: 80, 90, …
    pub(super) fn archs(&self) -> Result<Vec<u32>> {
        let mut count = 0;
        // SAFETY: the pointer is to a live integer.
        self.check(unsafe { (self.number_of_archs)(&mut count) }, "nvrtcGetNumSupportedArchs")?;
        let mut archs: Vec<c_int> = vec![0; usize::try_from(count)?];
        // SAFETY: the buffer holds the number of entries that the library has just announced.
        self.check(unsafe { (self.archs)(archs.as_mut_ptr()) }, "nvrtcGetSupportedArchs")?;
        Ok(archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    /// Compiles `source`, which messages call `file`. Mistakes in the source are in the log; an error of this function is any other failure.
    pub(super) fn compile(&self, source: &str, file: &str, options: &[String]) -> Result<Outcome> {
        let source = CString::new(source).context("the source holds a zero byte")?;
        let file = CString::new(file).context("the name holds a zero byte")?;
        let options = options.iter().map(|option| CString::new(option.as_str())).collect::<Result<Vec<_>, _>>()?;
        let option_pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program = OwnedProgram { api: self, program: std::ptr::null_mut() };
        // SAFETY: `source` and `file` are zero-terminated and outlive the call, which copies them; there are no headers.
        let status = unsafe {
            (self.create)(&mut program.program, source.as_ptr(), file.as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        self.check(status, "nvrtcCreateProgram")?;

        // SAFETY: the program is live, and the pointers are to as many live strings as announced.
        let status =
            unsafe { (self.compile)(program.program, c_int::try_from(options.len())?, option_pointers.as_ptr()) };
        let log = program.log()?;
        match status {
            0 => Ok(Outcome { cubin: Some(program.cubin()?), log }),
            _ if !log.trim().is_empty() => Ok(Outcome { cubin: None, log }),
            _ => bail!("nvrtcCompileProgram: {}", self.describe(status)),
        }
    }

    fn check(&self, status: Status, call: &str) -> Result<()> {
        if status != 0 {
            bail!("{call}: {}", self.describe(status));
        }
        Ok(())
    }

    fn describe(&self, status: Status) -> String {
        // SAFETY: the function takes any status and returns a static zero-terminated string.
        let text = unsafe { (self.get_error_string)(status) };
        if text.is_null() {
            return format!("NVRTC status {status}");
        }
        // SAFETY: not null, and zero-terminated as said above.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// A program that is destroyed when dropped.
struct OwnedProgram<'a> {
    api: &'a Api,
    program: Program,
}

impl OwnedProgram<'_> {
    fn log(&self) -> Result<String> {
        let mut size = 0;
        // SAFETY: the program is live and the pointer is to a live integer.
        self.api.check(unsafe { (self.api.log_size)(self.program, &mut size) }, "nvrtcGetProgramLogSize")?;
        let mut log = vec![0_u8; size];
        // SAFETY: the buffer has the size that the library has just announced, its final zero included.
        self.api.check(unsafe { (self.api.log)(self.program, log.as_mut_ptr().cast()) }, "nvrtcGetProgramLog")?;
        log.retain(|byte| *byte != 0);
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is live and the pointer is to a live integer.
        self.api.check(unsafe { (self.api.cubin_size)(self.program, &mut size) }, "nvrtcGetCUBINSize")?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: the buffer has the size that the library has just announced.
        self.api.check(unsafe { (self.api.cubin)(self.program, cubin.as_mut_ptr().cast()) }, "nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by this library and not destroyed before. A failure leaks at worst.
            unsafe { (self.api.destroy)(&mut self.program) };
        }
    }
}

/// Opens a library for the life of the process, every symbol bound at once.
fn open(path: &Path) -> Result<&'static Library> {
    #[cfg(unix)]
    // SAFETY: NVRTC and its builtins run nothing but their own initialisers at load, and are never unloaded.
    let library: Library = unsafe {
        use libloading::os::unix::{Library as UnixLibrary, RTLD_LOCAL, RTLD_NOW};
        UnixLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL)?.into()
    };
    #[cfg(not(unix))]
    // SAFETY: NVRTC and its builtins run nothing but their own initialisers at load, and are never unloaded.
    let library: Library = unsafe { Library::new(path)? };
    Ok(Box::leak(Box::new(library)))
}

/// # Safety
/// `T` must be the function pointer type of the symbol `name`.
unsafe fn symbol<T: Copy + 'static>(library: &'static Library, name: &str) -> Result<T> {
    // SAFETY: the caller vouches for the type; the library is never unloaded.
    let symbol = unsafe { library.get::<T>(name) };
    Ok(*symbol.with_context(|| format!("the library lacks {name}; NVRTC 11.2 or later is needed"))?)
}

/// The `libnvrtc-builtins.so.MAJOR.MINOR` files in the folder of the library at `path`; none where the loader is asked by name.
fn builtins_beside(path: &Path) -> Vec<PathBuf> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Vec::new() };
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = entries
        .filter(|file| {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let version = name.strip_prefix("libnvrtc-builtins.so.");
            version.is_some_and(|version| {
                version.split('.').count() == 2 && version.split('.').all(|part| part.parse::<u32>().is_ok())
            })
        })
        .collect();
    found.sort();
    found
}
