#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUstream, CUstream_flags};

use super::driver::{self, check};

/// One GPU, ready for use. Cheap to clone; what is made from it keeps it alive.
#[derive(Clone)]
pub struct Gpu {
    pub(super) context: Arc<Context>,
}

impl Gpu {
    /// How many GPUs there are to use: zero where there is no driver, or none that works. Never fails; [`Gpu::probe`] says why it is zero.
    pub fn count() -> usize {
        Gpu::probe().unwrap_or(0)
    }

    /// How many GPUs there are to use. The first call decides for the life of the process.
    ///
    /// # Errors
    /// Where there is no driver, it is too old, or it does not start.
    pub fn probe() -> Result<usize> {
        driver::devices()
    }

    /// Opens the GPU with this number, from zero, and takes its primary context.
    ///
    /// # Errors
    /// As [`Gpu::probe`], where there is no GPU with this number, or where it cannot be used (another process may own it exclusively).
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let count = Gpu::probe().with_context(|| format!("cannot open cuda:{ordinal}"))?;
        ensure!(ordinal < count, "there is no cuda:{ordinal}: this machine has {count} GPUs, numbered from 0");
        Ok(Gpu { context: Arc::new(Context::open(ordinal).with_context(|| format!("cannot open cuda:{ordinal}"))?) })
    }

    /// The number it was opened with.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal
    }

    /// The marketing name, such as `NVIDIA H200`.
    pub fn name(&self) -> Result<String> {
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the buffer has the length that is passed; the driver terminates the name within it.
        let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.context.device) };
        check(status, "cuDeviceGetName")?;
        // SAFETY: zero-terminated within the buffer, as said above.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Compute capability, such as `(9, 0)`.
    pub fn compute_capability(&self) -> Result<(u32, u32)> {
        let major = self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok((major as u32, minor as u32))
    }

    /// The plain architecture name of the compute capability, such as `sm_90`.
    pub fn arch(&self) -> Result<String> {
        let (major, minor) = self.compute_capability()?;
        Ok(format!("sm_{major}{minor}"))
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Size of the L2 cache in bytes.
    pub fn l2_bytes(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    /// The most shared memory, static and dynamic together, that a block may opt in to, in bytes.
    pub fn max_shared_bytes(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    /// Free and total device memory in bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to live integers; the context is current.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free, total))
    }

    /// The CUDA version that the driver supports, such as `13.0`.
    pub fn driver_version(&self) -> Result<String> {
        Ok(driver::version_text(driver::driver_version()?))
    }

    /// Waits until everything that was given to the GPU, on every stream, is done.
    ///
    /// # Errors
    /// Also reports what went wrong in earlier work, such as an illegal address in a kernel.
    pub fn synchronize(&self) -> Result<()> {
        self.context.synchronize()
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<usize> {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer and the device exists.
        let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.context.device) };
        check(status, "cuDeviceGetAttribute")?;
        Ok(usize::try_from(value)?)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.context.ordinal, self.name().as_deref().unwrap_or("nameless"))
    }
}

/// A retained primary context and a stream for the room's own copies.
pub(super) struct Context {
    ordinal: usize,
    device: CUdevice,
    handle: CUcontext,
    /// Copies that the host waits for go here: a non-blocking stream, because work on the default stream would not be ordered with it.
    transfers: CUstream,
}

// SAFETY: the driver's calls may be made from any thread; the handles are not changed after `open`.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn open(ordinal: usize) -> Result<Context> {
        let mut device = 0;
        // SAFETY: the driver is initialised by `devices`, and the pointer is to a live integer.
        check(unsafe { sys::cuDeviceGet(&mut device, c_int::try_from(ordinal)?) }, "cuDeviceGet")?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle. The reference taken here is given back in `drop`.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) }, "cuDevicePrimaryCtxRetain")?;
        let mut context = Context { ordinal, device, handle, transfers: std::ptr::null_mut() };
        context.transfers = context.create_stream()?;
        Ok(context)
    }

    /// Makes this context the calling thread's current one: every call that needs a context comes after it.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        Ok(check(unsafe { sys::cuCtxSetCurrent(self.handle) }, "cuCtxSetCurrent")?)
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: a context is current.
        Ok(check(unsafe { sys::cuCtxSynchronize() }, "cuCtxSynchronize")?)
    }

    /// A stream that does not wait for the default one. Whoever asks destroys it.
    pub(super) fn create_stream(&self) -> Result<CUstream> {
        self.bind()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: a context is current and the pointer is to a live handle.
        let status = unsafe { sys::cuStreamCreate(&mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        check(status, "cuStreamCreate")?;
        Ok(stream)
    }

    /// Runs one copy on the room's own stream: after all earlier work of the GPU, and done when this returns.
    pub(super) fn transfer(&self, copy: impl FnOnce(CUstream) -> Result<()>) -> Result<()> {
        self.synchronize()?;
        let copied = copy(self.transfers);
        // Wait even where the copy failed: a part of it may be under way, and the host's memory must outlive it.
        // SAFETY: the stream lives as long as `self`.
        let waited = check(unsafe { sys::cuStreamSynchronize(self.transfers) }, "cuStreamSynchronize");
        copied?;
        Ok(waited?)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_ok() && !self.transfers.is_null() {
            // SAFETY: created in `open`, destroyed once. A failure leaks at worst.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.transfers) };
        }
        // SAFETY: retained in `open`, released once, after everything made from it (they hold the `Arc`).
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
