//! What the host and the device share: memory, modules, launches. Every `unsafe` line of the runtime but the CPU's SIMD is here.
pub mod host_map;
