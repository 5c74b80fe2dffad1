//! Loads a compiled model and runs each decode step as one captured CUDA graph, or the same graph on the CPU.

pub mod backend;
mod blocks;
pub mod cache;
pub mod cli;
pub mod cpu;
pub mod demo;
pub mod device;
pub mod generate;
pub mod grammar;
pub mod hub;
pub mod llm;
pub mod map;
pub mod model;
pub mod profile;
pub mod quantise;
pub mod sampling;
pub mod serve;
pub mod slots;
pub mod step;
pub mod verify;
pub mod weights;
