//! The table of the rewrites.

use super::rewrite::Rewrite;
use super::{
    fuse_activation, fuse_append, fuse_attention_proj, fuse_mlp, fuse_norm_matmul, fuse_qk_norm, fuse_residual,
    fuse_rope, fuse_sample, pack_projections,
};

/// Every rewrite, in the order in which they run.
pub const PIPELINE: &[Rewrite] = &[
    pack_projections::PACK_PROJECTIONS,
    fuse_norm_matmul::FUSE_NORM_MATMUL,
    fuse_mlp::FUSE_MLP,
    fuse_activation::FUSE_ACTIVATION,
    fuse_residual::FUSE_RESIDUAL,
    fuse_append::FUSE_APPEND,
    fuse_rope::FUSE_ROPE,
    fuse_qk_norm::FUSE_QK_NORM,
    fuse_attention_proj::FUSE_ATTENTION_PROJ,
    fuse_sample::FUSE_SAMPLE,
];
