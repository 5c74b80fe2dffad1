//! The driver library: whether it is there, and what its return codes mean.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::panic::catch_unwind;
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};
use cudarc::driver::sys::{self, CUresult};

/// The oldest driver that has every call in use: CUDA 12.8, that is driver 570.
const OLDEST_DRIVER: i32 = 12080;

/// A call of the driver that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverError {
    call: &'static str,
    status: CUresult,
}

impl DriverError {
    /// Whether the device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.status == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    /// Whether the cubin has no code for the device.
    pub(super) fn is_wrong_arch(&self) -> bool {
        self.status == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        // SAFETY: both calls take any status and store a pointer to a static string, or null for a status they do not know.
        unsafe {
            let _ = sys::cuGetErrorName(self.status, &mut name);
            let _ = sys::cuGetErrorString(self.status, &mut text);
        }
        let read = |pointer: *const std::ffi::c_char| {
            // SAFETY: not null, static and zero-terminated, as said above.
            (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
        };
        match (read(name), read(text)) {
            (Some(name), Some(text)) => write!(f, "{}: {text} ({name})", self.call),
            _ => write!(f, "{}: error {}", self.call, self.status as u32),
        }
    }
}

impl std::error::Error for DriverError {}

/// Turns a status into a result.
pub(super) fn check(status: CUresult, call: &'static str) -> Result<(), DriverError> {
    if status == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(DriverError { call, status }) }
}

/// The number of devices, or why there is none to use. Looks once per process.
pub(super) fn devices() -> Result<usize> {
    static DEVICES: OnceLock<Result<usize, String>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| {
        // cudarc panics where a library or a symbol is absent.
        let found = catch_unwind(probe).unwrap_or_else(|_| bail!("the NVIDIA driver library lacks a function"));
        found.map_err(|error| format!("{error:#}"))
    });
    devices.clone().map_err(anyhow::Error::msg)
}

fn probe() -> Result<usize> {
    // SAFETY: opens and closes the driver library, whose initialisers have no requirement.
    ensure!(unsafe { sys::is_culib_present() }, "no NVIDIA driver is installed (libcuda.so.1 is not found)");
    // SAFETY: the first call into the driver, as it must be; no flags are defined.
    check(unsafe { sys::cuInit(0) }, "cuInit")?;
    let version = driver_version()?;
    ensure!(
        version >= OLDEST_DRIVER,
        "the NVIDIA driver is too old: it supports CUDA {}, and CUDA {} is needed (driver 570 or later)",
        version_text(version),
        version_text(OLDEST_DRIVER),
    );
    let mut count = 0;
    // SAFETY: the pointer is to a live integer.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "cuDeviceGetCount")?;
    Ok(usize::try_from(count)?)
}

/// The CUDA version that the driver supports, as 13000 for 13.0.
pub(super) fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "cuDriverGetVersion")?;
    Ok(version)
}

/// `13.0` for 13000.
pub(super) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
