//! `fusec`: a declarative model description becomes CUDA made for that model.
//!
//! One direction only: description → lower → ir ← passes → select → plan → build → artifact.

pub mod artifact;
pub mod build;
pub mod classes;
pub mod cli;
pub mod compile;
pub mod console;
pub mod description;
pub mod draft;
pub mod files;
pub mod folder;
pub mod ir;
pub mod json;
pub mod lower;
pub mod output;
pub mod passes;
pub mod plan;
pub mod quantised;
pub mod select;
mod switches;
pub mod tensors;
pub mod text;
pub mod threads;
