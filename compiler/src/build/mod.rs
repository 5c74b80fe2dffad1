//! From CUDA text to device code: NVRTC, loaded when it is needed, and what the assembler says each kernel costs.
//!
//! Nothing here needs a GPU or a driver. Where NVRTC is absent, [`Nvrtc::find`] says in one line how to get it.
#![allow(unsafe_code)]

mod arch;
mod cache;
mod compile;
mod errors;
mod ffi;
mod find;
mod report;

pub use arch::{Arch, SUPPORTED_ARCHS};
pub use compile::{Compiled, Options, compile_all};
pub use find::{NVRTC_VARIABLE, Nvrtc, NvrtcMissing};
pub use report::{KernelReport, ResourceReport};

#[cfg(test)]
pub(crate) mod testing;
