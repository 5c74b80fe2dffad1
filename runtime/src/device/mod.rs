//! The GPU: memory, modules, launches, captured graphs. Every `unsafe` line that calls the driver is in this room.
//!
//! Builds and starts where no CUDA is installed: [`Gpu::count`] is zero there. Calls are checked, and a failure is an error that names the
//! driver's call and its reason. Nothing uses the default stream. A [`Stream`]'s methods neither allocate nor wait, `synchronize` apart; a
//! [`DeviceBuffer`]'s copies wait for all work before them and are done on return.
//!
//! A kernel's arguments are addresses, which the driver does not check: as with a shared library, whoever loads a [`Module`] vouches that its
//! kernels keep to the buffers they are given. The plan's kernels do; device code from elsewhere has no way in.

mod cubin;
mod driver;
mod gpu;
mod graph;
mod memory;
mod module;
pub mod nvtx;
mod stream;

pub use driver::DriverError;
pub use gpu::Gpu;
pub use graph::{CapturedGraph, GraphExec, GraphShape};
pub use memory::{DeviceBuffer, NoRoom, PinnedBuffer};
pub use module::{Kernel, KernelResources, Module};
pub use stream::{Event, LaunchOptions, Stream};
