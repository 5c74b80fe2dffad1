#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::sys::{
    self, CUevent, CUevent_flags, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchAttributeValue_union__bindgen_ty_1 as ClusterDimension, CUlaunchConfig, CUresult, CUstream,
    CUstreamCaptureMode,
};

use super::driver::check;
use super::gpu::Context;
use super::module::{LoadedModule, MAX_ARGUMENTS};
use super::{CapturedGraph, DeviceBuffer, Gpu, GraphExec, Kernel, PinnedBuffer};

/// An ordered queue of work on a GPU, apart from the default stream. Nothing here waits but [`Stream::synchronize`].
pub struct Stream {
    pub(super) context: Arc<Context>,
    pub(super) handle: CUstream,
    /// While capturing: the modules of the kernels launched so far, which the graph keeps loaded.
    captured: Mutex<Option<Vec<Arc<LoadedModule>>>>,
}

// SAFETY: the driver's calls on a stream may be made from any thread; the handle is not changed after it is made.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// How a launch relates to the one before it and how its blocks relate to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Start before the kernel ahead in the stream has ended (programmatic dependent launch): this kernel must execute
    /// `griddepcontrol.wait` before it touches anything that an earlier kernel writes.
    pub programmatic: bool,
    /// Blocks a cluster, along x; must divide the grid's x.
    pub cluster: Option<u32>,
    /// All blocks must be on the device at once, so that they may wait for each other.
    pub cooperative: bool,
}

impl Gpu {
    /// Makes a stream.
    pub fn stream(&self) -> Result<Stream> {
        Ok(Stream { context: self.context.clone(), handle: self.context.create_stream()?, captured: Mutex::new(None) })
    }

    /// Makes an event that can measure time.
    pub fn event(&self) -> Result<Event> {
        self.context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current and the pointer is to a live handle.
        check(unsafe { sys::cuEventCreate(&mut handle, CUevent_flags::CU_EVENT_DEFAULT as u32) }, "cuEventCreate")?;
        Ok(Event { context: self.context.clone(), handle })
    }
}

impl CapturedGraph {
    /// Makes it runnable and puts it on the device, ready for [`Stream::replay`] on any stream.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn instantiate(&self, stream: &Stream) -> Result<GraphExec> {
        self.runnable(stream.handle)
    }
}

impl Stream {
    /// Launches `kernel` over `grid` blocks of `block` threads with `dynamic_shared` bytes of shared memory; every argument is 8 bytes wide.
    ///
    /// # Errors
    /// When the number of arguments is not the kernel's, the shared memory is more than it was taken for, or the driver refuses the launch.
    /// A fault inside the kernel shows at a later call.
    pub fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        args: &[u64],
        options: LaunchOptions,
    ) -> Result<()> {
        self.launch_inner(kernel, grid, block, dynamic_shared, args, options).with_context(|| {
            format!(
                "launch of `{}` over grid {grid:?}, block {block:?}, {dynamic_shared} bytes of dynamic shared memory",
                kernel.name()
            )
        })
    }

    fn launch_inner(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        args: &[u64],
        options: LaunchOptions,
    ) -> Result<()> {
        ensure!(args.len() == kernel.parameters(), "{} arguments for {} parameters", args.len(), kernel.parameters());
        let most = kernel.dynamic_shared_bytes();
        ensure!(
            dynamic_shared <= most,
            "the kernel was taken from its module for at most {most} bytes of dynamic shared memory"
        );

        let mut attributes = Attributes::default();
        if options.programmatic {
            attributes.add(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            );
        }
        if let Some(blocks) = options.cluster {
            ensure!(blocks > 0 && grid[0].is_multiple_of(blocks), "clusters of {blocks} blocks do not divide the grid");
            if blocks > 8 {
                kernel.allow_large_clusters()?;
            }
            let cluster = ClusterDimension { x: blocks, y: 1, z: 1 };
            attributes.add(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                CUlaunchAttributeValue { clusterDim: cluster },
            );
        }
        if options.cooperative {
            attributes
                .add(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, CUlaunchAttributeValue { cooperative: 1 });
        }

        let config = CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: dynamic_shared,
            hStream: self.handle,
            attrs: attributes.list.as_mut_ptr(),
            numAttrs: attributes.len as u32,
        };
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = std::ptr::from_ref(arg).cast_mut().cast();
        }

        self.context.bind()?;
        // SAFETY: the kernel's module is loaded; there is a pointer to 8 live bytes for each of its 8-byte parameters; the configuration and its
        // attributes outlive the call, which copies them all. What the kernel does with its arguments is the plan's promise (see the room's page).
        let status =
            unsafe { sys::cuLaunchKernelEx(&config, kernel.function, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        check(status, "cuLaunchKernelEx")?;
        if let Some(modules) = self.lock_captured().as_mut()
            && !modules.iter().any(|module| Arc::ptr_eq(module, &kernel.module))
        {
            modules.push(kernel.module.clone());
        }
        Ok(())
    }

    /// Records what `work` puts into the stream as a graph instead of running it. Memory must not be allocated or freed meanwhile.
    ///
    /// # Errors
    /// When `work` fails, or does something that a graph cannot hold. The stream is usable again either way.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<()>) -> Result<CapturedGraph> {
        self.begin_capture()?;
        let done = work(self);
        let graph = self.end_capture();
        done?;
        graph
    }

    /// Starts a capture. The thread that starts it ends it.
    pub fn begin_capture(&self) -> Result<()> {
        let mut captured = self.lock_captured();
        ensure!(captured.is_none(), "the stream is being captured already");
        self.context.bind()?;
        // Thread-local: this thread's mistakes break the capture, other threads may go on allocating.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.handle, mode) }, "cuStreamBeginCapture")?;
        *captured = Some(Vec::new());
        Ok(())
    }

    /// Ends a capture and returns what was recorded.
    ///
    /// # Errors
    /// When there is no capture to end, or something in it cannot be captured.
    pub fn end_capture(&self) -> Result<CapturedGraph> {
        let Some(modules) = self.lock_captured().take() else { bail!("the stream is not being captured") };
        self.context.bind()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream lives as long as `self` and the pointer is to a live handle.
        check(unsafe { sys::cuStreamEndCapture(self.handle, &mut graph) }, "cuStreamEndCapture")?;
        ensure!(!graph.is_null(), "the capture recorded no graph");
        Ok(CapturedGraph::new(self.context.clone(), graph, modules))
    }

    /// Puts one run of a graph into the stream.
    pub fn replay(&self, exec: &GraphExec) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the executable graph and the stream live, and the kernels' modules are loaded: the graph holds them.
        Ok(check(unsafe { sys::cuGraphLaunch(exec.handle, self.handle) }, "cuGraphLaunch")?)
    }

    /// Waits until all work in the stream is done.
    ///
    /// # Errors
    /// Also reports what went wrong in that work, such as an illegal address in a kernel.
    pub fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream lives as long as `self`.
        Ok(check(unsafe { sys::cuStreamSynchronize(self.handle) }, "cuStreamSynchronize")?)
    }

    /// Whether all work in the stream is done.
    pub fn query(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the stream lives as long as `self`.
        is_done(unsafe { sys::cuStreamQuery(self.handle) }, "cuStreamQuery")
    }

    /// Marks this place in the stream with `event`.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event and the stream live.
        Ok(check(unsafe { sys::cuEventRecord(event.handle, self.handle) }, "cuEventRecord")?)
    }

    /// Later work in this stream starts after what `event` marks in another.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event and the stream live.
        Ok(check(unsafe { sys::cuStreamWaitEvent(self.handle, event.handle, 0) }, "cuStreamWaitEvent")?)
    }

    /// Sets `len` bytes at `offset` to `value`, in stream order.
    pub fn fill(&self, buffer: &DeviceBuffer, offset: usize, len: usize, value: u8) -> Result<()> {
        let to = buffer.range(offset, len)?;
        self.context.bind()?;
        // SAFETY: the range is inside the buffer. A buffer that is dropped meanwhile is freed after this work.
        Ok(check(unsafe { sys::cuMemsetD8Async(to, value, len, self.handle) }, "cuMemsetD8Async")?)
    }

    /// Sets a word of 32 bits at `offset`, which is a multiple of 4, to `value`, in stream order.
    pub fn set_word(&self, buffer: &DeviceBuffer, offset: usize, value: u32) -> Result<()> {
        ensure!(offset.is_multiple_of(4), "a word at byte {offset}");
        let to = buffer.range(offset, 4)?;
        self.context.bind()?;
        // SAFETY: the word is inside the buffer and in its place. A buffer that is dropped meanwhile is freed after this work.
        Ok(check(unsafe { sys::cuMemsetD32Async(to, value, 1, self.handle) }, "cuMemsetD32Async")?)
    }

    /// Copies `len` bytes between device buffers, in stream order. The ranges must not overlap.
    pub fn copy(
        &self,
        to: &DeviceBuffer,
        to_offset: usize,
        from: &DeviceBuffer,
        from_offset: usize,
        len: usize,
    ) -> Result<()> {
        let (to, from) = (to.range(to_offset, len)?, from.range(from_offset, len)?);
        self.context.bind()?;
        // SAFETY: both ranges are inside their buffers.
        Ok(check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len, self.handle) }, "cuMemcpyDtoDAsync")?)
    }

    /// Copies `len` bytes from page-locked memory to the device, in stream order. The source must keep its contents until then.
    pub fn upload(
        &self,
        to: &DeviceBuffer,
        to_offset: usize,
        from: &PinnedBuffer,
        from_offset: usize,
        len: usize,
    ) -> Result<()> {
        let (to, (_, from)) = (to.range(to_offset, len)?, from.range(from_offset, len)?);
        self.context.bind()?;
        // SAFETY: both ranges are inside their buffers; a pinned buffer waits for the GPU before it is freed.
        Ok(check(
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), len, self.handle) },
            "cuMemcpyHtoDAsync",
        )?)
    }

    /// Copies `len` bytes from the device to page-locked memory, in stream order.
    pub fn download(
        &self,
        to: &PinnedBuffer,
        to_offset: usize,
        from: &DeviceBuffer,
        from_offset: usize,
        len: usize,
    ) -> Result<()> {
        let ((_, to), from) = (to.range(to_offset, len)?, from.range(from_offset, len)?);
        self.context.bind()?;
        // SAFETY: both ranges are inside their buffers; a pinned buffer waits for the GPU before it is freed.
        Ok(check(
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_ptr().cast(), from, len, self.handle) },
            "cuMemcpyDtoHAsync",
        )?)
    }

    fn lock_captured(&self) -> std::sync::MutexGuard<'_, Option<Vec<Arc<LoadedModule>>>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once and destroyed once; the driver finishes work that is still in it. A failure leaks at worst.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A mark in a stream, with the time at which the device reached it.
pub struct Event {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: the driver's calls on an event may be made from any thread; the handle is not changed after it is made.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Waits until the device has reached the mark.
    pub fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event lives as long as `self`.
        Ok(check(unsafe { sys::cuEventSynchronize(self.handle) }, "cuEventSynchronize")?)
    }

    /// Whether the device has reached the mark.
    pub fn query(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the event lives as long as `self`.
        is_done(unsafe { sys::cuEventQuery(self.handle) }, "cuEventQuery")
    }

    /// Milliseconds of device time from `earlier` to this mark.
    ///
    /// # Errors
    /// When either is not reached yet: synchronize first.
    pub fn elapsed_ms_since(&self, earlier: &Event) -> Result<f32> {
        self.context.bind()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events live and the pointer is to a live number.
        let status = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.handle, self.handle) };
        check(status, "cuEventElapsedTime")?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once and destroyed once. A failure leaks at worst.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// A launch's attributes, at most one of each kind in use.
struct Attributes {
    list: [CUlaunchAttribute; 3],
    len: usize,
}

impl Default for Attributes {
    fn default() -> Attributes {
        let unused = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE,
            pad: [0; 4],
            value: CUlaunchAttributeValue { pad: [0; 64] },
        };
        Attributes { list: [unused; 3], len: 0 }
    }
}

impl Attributes {
    fn add(&mut self, id: CUlaunchAttributeID, value: CUlaunchAttributeValue) {
        self.list[self.len] = CUlaunchAttribute { id, pad: [0; 4], value };
        self.len += 1;
    }
}

fn is_done(status: CUresult, call: &'static str) -> Result<bool> {
    match status {
        CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        status => Ok(check(status, call).map(|()| true)?),
    }
}
