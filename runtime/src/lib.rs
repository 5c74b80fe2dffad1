//! Loads a compiled model and runs each decode step as one captured CUDA graph, or the same graph on the CPU.
//! runtime

pub mod cpu;
pub mod device;
pub mod generate;
pub mod step;
pub mod weights;
