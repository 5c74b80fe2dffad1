//! The kernel families, one per file: the fields that specialise a kernel, which are the constants in the first lines of its CUDA template, and what follows
//! from them. Kernels of a family differ in those constants and in nothing else. Every source is whole: it needs no header, and with `FUSE_HOST`
//! defined it is plain C++ over [`HOST_VOCABULARY`].

mod append;
mod attention;
mod attention_projection;
mod attention_rows;
mod attention_wide;
mod concat;
mod conv;
mod elementwise;
mod embedding;
mod experts;
mod experts_hidden;
mod experts_sum;
mod family;
mod kernel;
mod kv_append;
mod matmul;
mod matmul_wgmma;
mod matvec;
mod norm;
mod norm_rows;
mod read;
mod recall;
mod rope;
mod route;
mod sample;
mod values;

pub use append::Append;
pub use attention::{Attention, Heads};
pub use attention_projection::AttentionProjection;
pub use attention_rows::AttentionRows;
pub use attention_wide::AttentionWide;
pub use concat::Concat;
pub use conv::Conv;
pub use elementwise::{Elementwise, Expression, Function, Spread};
pub use embedding::Embedding;
pub use experts::{Gating, Scoring};
pub use experts_hidden::ExpertsHidden;
pub use experts_sum::ExpertsSum;
pub use family::{Family, Kind, Param, Reads, TuningKey};
pub use kernel::KernelSpec;
pub use kv_append::KvAppend;
pub use matmul::{Gather, Matmul};
pub use matmul_wgmma::MatmulWgmma;
pub use matvec::{Combine, Matvec, ROUTER_COPIES};
pub use norm::Norm;
pub use norm_rows::NormRows;
pub use read::Read;
pub use recall::Recall;
pub use rope::RopeRows;
pub use route::{Route, RouteRows};
pub use sample::{RING, SAMPLE_CLUSTER, SCORES_RING, Sample};
pub use values::{Activation, Float, Format, NormKind, Packed, RopeScaling, RopeTable, Splits, Storage, Tiles};

/// `vocabulary.h`: the device vocabulary in plain C++, for the host build.
pub const HOST_VOCABULARY: &str = include_str!("../host/vocabulary.h");

/// `engine.cc`: what runs a host build, compiled once and linked to each kernel.
pub const HOST_ENGINE: &str = include_str!("../host/engine.cc");
