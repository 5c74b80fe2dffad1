#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule};

use super::Gpu;
use super::cubin::parameter_bytes;
use super::driver::check;
use super::gpu::Context;

/// The most arguments that a kernel may take.
pub(super) const MAX_ARGUMENTS: usize = 64;

/// Device code that is loaded on a GPU. Kernels taken from it, and graphs that launch them, keep it loaded.
#[derive(Clone)]
pub struct Module {
    loaded: Arc<LoadedModule>,
}

/// The driver's handle, unloaded when nothing uses it any more.
pub(super) struct LoadedModule {
    context: Arc<Context>,
    handle: CUmodule,
    /// Bytes of parameters by kernel.
    parameter_bytes: BTreeMap<String, usize>,
}

// SAFETY: the driver's calls on a module may be made from any thread; the handle is not changed after loading.
unsafe impl Send for LoadedModule {}
// SAFETY: as above.
unsafe impl Sync for LoadedModule {}

/// A kernel, ready to launch.
#[derive(Clone)]
pub struct Kernel {
    pub(super) module: Arc<LoadedModule>,
    pub(super) function: CUfunction,
    name: Arc<str>,
    parameters: usize,
    dynamic_shared_bytes: u32,
}

// SAFETY: as for the module, which it keeps loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// What a kernel uses on this device, as the driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelResources {
    /// Registers a thread.
    pub registers: u32,
    /// Local memory a thread in bytes: spills and arrays that are indexed at run time.
    pub local_bytes: u32,
    /// Static shared memory a block in bytes.
    pub shared_bytes: u32,
    /// The largest block it can be launched with.
    pub max_threads: u32,
}

impl Module {
    /// Loads a cubin on a GPU.
    ///
    /// # Errors
    /// When it is no cubin, or is built for another architecture.
    pub fn load(gpu: &Gpu, cubin: &[u8]) -> Result<Module> {
        // The driver reads as far as the ELF header tells it to, so a cut file would be read beyond its end.
        let parameter_bytes = parameter_bytes(cubin)
            .with_context(|| format!("not a cubin, or not a whole one ({} bytes)", cubin.len()))?;
        gpu.context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; the image is a whole ELF file, which the driver copies.
        let loaded = check(unsafe { sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()) }, "cuModuleLoadData");
        loaded.map_err(|error| match gpu.arch() {
            Ok(arch) if error.is_wrong_arch() => {
                anyhow::anyhow!("the cubin is built for another GPU than this one: build it for {arch}")
            }
            _ => error.into(),
        })?;
        Ok(Module { loaded: Arc::new(LoadedModule { context: gpu.context.clone(), handle, parameter_bytes }) })
    }

    /// The kernel called `name`, to be launched with up to `dynamic_shared_bytes` bytes of dynamic shared memory. Its code is on the device when
    /// this returns, so that its first launch may be captured.
    ///
    /// # Errors
    /// When the module has no such kernel, a parameter of it is not 8 bytes wide, or a block cannot have that much shared memory.
    pub fn kernel(&self, name: &str, dynamic_shared_bytes: u32) -> Result<Kernel> {
        self.kernel_inner(name, dynamic_shared_bytes).with_context(|| format!("kernel `{name}`"))
    }

    fn kernel_inner(&self, name: &str, dynamic_shared_bytes: u32) -> Result<Kernel> {
        self.loaded.context.bind()?;
        let mut function = std::ptr::null_mut();
        let symbol = CString::new(name)?;
        // SAFETY: the module is loaded and the name is zero-terminated.
        let status = unsafe { sys::cuModuleGetFunction(&mut function, self.loaded.handle, symbol.as_ptr()) };
        check(status, "cuModuleGetFunction")?;
        // SAFETY: the function belongs to a loaded module.
        check(unsafe { sys::cuFuncLoad(function) }, "cuFuncLoad")?;
        let bytes = self.loaded.parameter_bytes.get(name).copied().unwrap_or(0);
        let parameters = parameters_of(function, bytes)?;
        let kernel =
            Kernel { module: self.loaded.clone(), function, name: name.into(), parameters, dynamic_shared_bytes };

        // The limit belongs to the function, which other handles may share: it only ever grows.
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if dynamic_shared_bytes > kernel.attribute(limit)? {
            let value = i32::try_from(dynamic_shared_bytes)?;
            // SAFETY: the function belongs to a loaded module.
            let set = check(unsafe { sys::cuFuncSetAttribute(function, limit, value) }, "cuFuncSetAttribute");
            set.with_context(|| {
                format!("a block cannot have {dynamic_shared_bytes} bytes of dynamic shared memory here")
            })?;
        }
        Ok(kernel)
    }
}

impl Kernel {
    /// Its name in the module.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many arguments it takes, each of 8 bytes.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The most dynamic shared memory it may be launched with, in bytes.
    pub fn dynamic_shared_bytes(&self) -> u32 {
        self.dynamic_shared_bytes
    }

    /// Asks for a share of a multiprocessor's first-level memory as shared memory, in per cent, the rest being cache.
    pub fn prefer_shared(&self, per_cent: u32) -> Result<()> {
        self.module.context.bind()?;
        let share = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function belongs to a loaded module.
        let status = unsafe { sys::cuFuncSetAttribute(self.function, share, i32::try_from(per_cent)?) };
        Ok(check(status, "cuFuncSetAttribute")?)
    }

    /// Registers, local and shared memory.
    pub fn resources(&self) -> Result<KernelResources> {
        self.module.context.bind()?;
        Ok(KernelResources {
            registers: self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    /// How many blocks of `threads` threads one multiprocessor holds at a time.
    pub fn blocks_per_multiprocessor(&self, threads: u32, dynamic_shared_bytes: u32) -> Result<u32> {
        self.module.context.bind()?;
        let mut blocks = 0;
        // SAFETY: the pointer is to a live integer and the function belongs to a loaded module.
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.function,
                i32::try_from(threads)?,
                dynamic_shared_bytes as usize,
            )
        };
        check(status, "cuOccupancyMaxActiveBlocksPerMultiprocessor")?;
        Ok(u32::try_from(blocks)?)
    }

    /// Lets it run in clusters of more than the 8 blocks that every device can do.
    pub(super) fn allow_large_clusters(&self) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        // SAFETY: the function belongs to a loaded module.
        Ok(check(unsafe { sys::cuFuncSetAttribute(self.function, attribute, 1) }, "cuFuncSetAttribute")?)
    }

    fn attribute(&self, attribute: CUfunction_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer and the function belongs to a loaded module.
        check(unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.function) }, "cuFuncGetAttribute")?;
        Ok(u32::try_from(value)?)
    }
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once and unloaded once, when no kernel and no graph holds it. A failure leaks at worst.
            let _ = unsafe { sys::cuModuleUnload(self.handle) };
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} of {} arguments", self.name, self.parameters)
    }
}

/// The number of parameters, which take `bytes` bytes together. Each must be 8 bytes wide: the launch passes nothing else.
fn parameters_of(function: CUfunction, bytes: usize) -> Result<usize> {
    ensure!(bytes <= 8 * MAX_ARGUMENTS, "parameters of {bytes} bytes: more than {} of 8 bytes each", MAX_ARGUMENTS);
    for index in 0..bytes.div_ceil(8) {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: both pointers are to live integers and the function belongs to a loaded module.
        let status = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) };
        check(status, "cuFuncGetParamInfo")?;
        ensure!(
            size == 8,
            "parameter {index} is {size} bytes wide; every parameter must be a pointer or another 8-byte value"
        );
    }
    Ok(bytes / 8)
}
