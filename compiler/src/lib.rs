//! `fusec`: a declarative model description becomes CUDA made for that model.
//!
//! One direction only: description → lower → ir ← passes → plan → emit → build → artifact.

pub mod ir;
pub mod passes;
