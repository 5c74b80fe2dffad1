#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult};

use super::Gpu;
use super::driver::check;
use super::gpu::Context;

/// Device code that is loaded on a GPU. Kernels taken from it, and graphs that launch them, keep it loaded.
#[derive(Clone)]
pub struct Module {
    loaded: Arc<LoadedModule>,
}

/// The driver's handle, unloaded when nothing uses it any more.
pub(super) struct LoadedModule {
    context: Arc<Context>,
    handle: CUmodule,
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
        ensure!(is_whole_elf(cubin), "not a cubin, or not a whole one ({} bytes)", cubin.len());
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
        Ok(Module { loaded: Arc::new(LoadedModule { context: gpu.context.clone(), handle }) })
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
        let parameters = parameters_of(function)?;
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

/// The number of parameters, each of which must be 8 bytes wide: the launch passes nothing else.
fn parameters_of(function: CUfunction) -> Result<usize> {
    for index in 0..=super::stream::MAX_ARGUMENTS {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: both pointers are to live integers and the function belongs to a loaded module.
        match unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) } {
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(index),
            status => check(status, "cuFuncGetParamInfo")?,
        }
        ensure!(
            size == 8,
            "parameter {index} is {size} bytes wide; every parameter must be a pointer or another 8-byte value"
        );
    }
    bail!("more than {} parameters", super::stream::MAX_ARGUMENTS)
}

/// A 64-bit ELF file whose section and program tables, and every section, lie inside it.
fn is_whole_elf(bytes: &[u8]) -> bool {
    let number = |at: usize, width: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(width)?)?;
        usize::try_from(field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
    };
    let fits = |start: usize, len: usize| start.checked_add(len).filter(|end| *end <= bytes.len());
    let whole = || {
        let (programs, program_size, program_count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        fits(programs, program_size * program_count)?;
        let (sections, section_size, section_count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
        fits(sections, section_size * section_count)?;
        for section in (0..section_count).map(|i| sections + i * section_size) {
            const NO_BITS: usize = 8;
            if number(section + 0x04, 4)? != NO_BITS {
                fits(number(section + 0x18, 8)?, number(section + 0x20, 8)?)?;
            }
        }
        Some(())
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && whole().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one section of `len` bytes at 64 and the section table after it.
    fn elf(len: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64 + len as usize + 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x28..0x30].copy_from_slice(&(64 + len).to_le_bytes());
        bytes[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        bytes[0x3c..0x3e].copy_from_slice(&1_u16.to_le_bytes());
        let section = 64 + len as usize;
        bytes[section + 0x04] = 1;
        bytes[section + 0x18..section + 0x20].copy_from_slice(&64_u64.to_le_bytes());
        bytes[section + 0x20..section + 0x28].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    #[test]
    fn only_a_whole_elf_file_reaches_the_driver() {
        let whole = elf(100);
        assert!(is_whole_elf(&whole));
        assert!((0..whole.len()).all(|len| !is_whole_elf(&whole[..len])));

        let mut beyond = whole.clone();
        beyond[64 + 100 + 0x20] = 255;
        assert!(!is_whole_elf(&beyond), "a section that ends beyond the file");
    }
}
