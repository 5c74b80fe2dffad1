#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use cudarc::driver::sys::{self, CUdeviceptr};

use super::driver::check;
use super::gpu::Context;
use super::{DriverError, Gpu};

/// A range of device memory, untyped. It is freed when dropped; the driver then waits for kernels that still use it.
pub struct DeviceBuffer {
    context: Arc<Context>,
    pointer: CUdeviceptr,
    len: usize,
}

impl Gpu {
    /// Allocates `len` bytes of device memory, 256-byte aligned and not cleared. `what` is for the message: "the KV cache".
    ///
    /// # Errors
    /// When it does not fit: the message says how much was wanted for what, and how much is free.
    pub fn alloc(&self, len: usize, what: &str) -> Result<DeviceBuffer> {
        self.context.bind()?;
        let mut pointer = 0;
        // SAFETY: a context is current and the pointer is to a live integer. The driver refuses zero bytes.
        check(unsafe { sys::cuMemAlloc_v2(&mut pointer, len.max(1)) }, "cuMemAlloc")
            .map_err(|error| self.does_not_fit(error, len, what))?;
        Ok(DeviceBuffer { context: self.context.clone(), pointer, len })
    }

    /// As [`Gpu::alloc`], filled with zeros.
    pub fn alloc_zeroed(&self, len: usize, what: &str) -> Result<DeviceBuffer> {
        let buffer = self.alloc(len, what)?;
        buffer.zero()?;
        Ok(buffer)
    }

    /// Allocates and fills device memory with `bytes`.
    pub fn upload(&self, bytes: &[u8], what: &str) -> Result<DeviceBuffer> {
        let buffer = self.alloc(bytes.len(), what)?;
        buffer.upload(0, bytes)?;
        Ok(buffer)
    }

    /// Allocates `len` bytes of page-locked host memory that the device reads and writes in place, filled with zeros.
    ///
    /// It is cached by the CPU, so reading it from the host is fast.
    pub fn alloc_pinned(&self, len: usize, what: &str) -> Result<PinnedBuffer> {
        self.context.bind()?;
        let mut host = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a context is current and the pointer is to a live pointer. The driver refuses zero bytes.
        check(unsafe { sys::cuMemHostAlloc(&mut host, len.max(1), flags) }, "cuMemHostAlloc")
            .with_context(|| format!("cannot lock {} of host memory for {what}", human_bytes(len)))?;
        let host = NonNull::new(host.cast::<u8>()).context("cuMemHostAlloc returned no memory")?;
        // SAFETY: the range was just allocated with this length, and nothing else knows of it.
        unsafe { host.as_ptr().write_bytes(0, len) };
        let mut buffer = PinnedBuffer { context: self.context.clone(), host, pointer: 0, len };
        // SAFETY: `host` is the start of a mapped allocation.
        let status = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut buffer.pointer, host.as_ptr().cast(), 0) };
        check(status, "cuMemHostGetDevicePointer")?;
        Ok(buffer)
    }

    fn does_not_fit(&self, error: DriverError, len: usize, what: &str) -> anyhow::Error {
        let wanted = human_bytes(len);
        match self.memory() {
            Ok((free, total)) if error.is_out_of_memory() => anyhow::Error::new(NoRoom(format!(
                "{what} does not fit on cuda:{}: {wanted} wanted, {} free of {}",
                self.ordinal(),
                human_bytes(free),
                human_bytes(total)
            ))),
            _ => anyhow::Error::new(error).context(format!("cannot allocate {wanted} of device memory for {what}")),
        }
    }
}

/// Something that the device's memory does not hold: the message says what, how much it wants, and how much is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom(pub String);

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoRoom {}

impl DeviceBuffer {
    /// The device address, as a kernel's argument.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The device address `offset` bytes into the buffer.
    ///
    /// # Panics
    /// When the offset is beyond the end: offsets come from the plan, which lays out the buffer.
    pub fn at(&self, offset: usize) -> u64 {
        assert!(offset <= self.len, "offset {offset} is beyond a device buffer of {} bytes", self.len);
        self.pointer + offset as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills it with zeros: after all earlier work of the GPU, and done on return.
    pub fn zero(&self) -> Result<()> {
        self.context.transfer(|stream| {
            // SAFETY: the range is this buffer's own.
            Ok(check(unsafe { sys::cuMemsetD8Async(self.pointer, 0, self.len, stream) }, "cuMemsetD8Async")?)
        })
    }

    /// Copies `bytes` to `offset`: after all earlier work of the GPU, and done on return.
    ///
    /// # Errors
    /// When the range is not inside the buffer.
    pub fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.transfer(|stream| {
            // SAFETY: the target range was checked; `bytes` outlives the copy, which `transfer` waits for.
            let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream) };
            Ok(check(status, "cuMemcpyHtoDAsync")?)
        })
    }

    /// Copies from `offset` into `bytes`: after all earlier work of the GPU, and done on return.
    ///
    /// # Errors
    /// When the range is not inside the buffer.
    pub fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.transfer(|stream| {
            // SAFETY: the source range was checked; `bytes` is exclusively borrowed until the copy, which `transfer` waits for, is done.
            let status = unsafe { sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), stream) };
            Ok(check(status, "cuMemcpyDtoHAsync")?)
        })
    }

    /// The address of a range that lies inside the buffer.
    pub(super) fn range(&self, offset: usize, len: usize) -> Result<CUdeviceptr> {
        check_range(offset, len, self.len, "device")?;
        Ok(self.pointer + offset as u64)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `alloc` and freed once. A failure leaks at worst.
            let _ = unsafe { sys::cuMemFree_v2(self.pointer) };
        }
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", human_bytes(self.len), self.pointer)
    }
}

/// Page-locked host memory that the device sees too: the token ring, staging for uploads. Freed when dropped, after all work of the GPU.
pub struct PinnedBuffer {
    context: Arc<Context>,
    host: NonNull<u8>,
    pointer: CUdeviceptr,
    len: usize,
}

// SAFETY: the memory belongs to this value only; shared access from the host goes through atomics.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above: every method on `&self` that touches the memory is atomic.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// The address under which kernels see the memory.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads a `u32` that the device may be writing; what the device wrote before it (with a system-wide fence) is visible afterwards.
    ///
    /// # Panics
    /// When `offset` (bytes) is no multiple of 4, or not inside the buffer.
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.word_u32(offset).load(Ordering::Acquire)
    }

    /// As [`PinnedBuffer::load_u32`], eight bytes at a multiple of 8.
    ///
    /// # Panics
    /// When `offset` (bytes) is no multiple of 8, or not inside the buffer.
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.assert_word(offset, 8);
        // SAFETY: inside the buffer and aligned, as just asserted (the allocation is page aligned); the device's writes count as atomic.
        unsafe { AtomicU64::from_ptr(self.host.as_ptr().add(offset).cast()) }.load(Ordering::Acquire)
    }

    /// Writes a `u32` that the device may be reading, such as a stop flag.
    ///
    /// # Panics
    /// When `offset` (bytes) is no multiple of 4, or not inside the buffer.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.word_u32(offset).store(value, Ordering::Release);
    }

    /// Copies `words.len()` words from `offset` (bytes): logits, tokens. Wait for the work that writes them before.
    ///
    /// # Errors
    /// When the range is not inside the buffer or not aligned to 4.
    pub fn read_u32s(&self, offset: usize, words: &mut [u32]) -> Result<()> {
        check_range(offset, words.len() * 4, self.len, "pinned")?;
        ensure!(offset.is_multiple_of(4), "offset {offset} is no multiple of 4");
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.word_u32(offset + i * 4).load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// The memory as bytes, for the host to fill before an upload. No copy from or to it may be under way: wait for its stream before.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is allocated, initialised and exclusively borrowed; the device keeps off it as the caller was told.
        unsafe { std::slice::from_raw_parts_mut(self.host.as_ptr(), self.len) }
    }

    /// The device address of a range that lies inside the buffer, and its host address.
    pub(super) fn range(&self, offset: usize, len: usize) -> Result<(CUdeviceptr, NonNull<u8>)> {
        check_range(offset, len, self.len, "pinned")?;
        // SAFETY: the offset is inside the allocation, as just checked.
        Ok((self.pointer + offset as u64, unsafe { self.host.add(offset) }))
    }

    fn word_u32(&self, offset: usize) -> &AtomicU32 {
        self.assert_word(offset, 4);
        // SAFETY: inside the buffer and aligned, as just asserted (the allocation is page aligned); the device's writes count as atomic.
        unsafe { AtomicU32::from_ptr(self.host.as_ptr().add(offset).cast()) }
    }

    fn assert_word(&self, offset: usize, width: usize) {
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.len);
        assert!(
            inside && offset.is_multiple_of(width),
            "no {width}-byte word at {offset} of a pinned buffer of {} bytes",
            self.len
        );
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // A copy or a kernel may still use the memory. Where waiting fails, as inside a capture, a leak is the safe way out.
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated by `alloc_pinned`, freed once, and no work that could use it is left.
            let _ = unsafe { sys::cuMemFreeHost(self.host.as_ptr().cast()) };
        }
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned, {:#x} on the device", human_bytes(self.len), self.pointer)
    }
}

fn check_range(offset: usize, len: usize, size: usize, kind: &str) -> Result<()> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= size);
    ensure!(inside, "{len} bytes at {offset} are not inside a {kind} buffer of {size} bytes");
    Ok(())
}

/// `1.50 GiB`, `12.0 KiB`, `7 bytes`.
fn human_bytes(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
