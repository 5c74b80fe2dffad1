//! Rewrites of the graph: what the project exists for. One rewrite per file, one table, one driver.
//!
//! A rewrite reads the graph and returns a patch, or why there is none. Only [`run`] changes the graph.

mod driver;
mod explain;
mod fuse_activation;
mod fuse_append;
mod fuse_attention_proj;
mod fuse_mlp;
mod fuse_norm_matmul;
mod fuse_qk_norm;
mod fuse_residual;
mod fuse_rope;
mod fuse_sample;
pub(crate) mod matching;
mod pack_projections;
mod pipeline;
mod rewrite;
mod selection;

pub use driver::{PassReport, Report, Stats, run};
pub use explain::{Missed, explain, explain_beside, layer_ranges};
pub use pipeline::PIPELINE;
pub use rewrite::{Miss, Rewrite};
pub use selection::Selection;
