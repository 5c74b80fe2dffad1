//! A kernel of any family.

use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::{
    Append, Attention, AttentionProjection, AttentionRows, AttentionWide, Concat, Conv, Elementwise, Embedding,
    ExpertsHidden, ExpertsSum, KvAppend, Matmul, MatmulWgmma, Matvec, Norm, NormRows, Recall, RopeRows, RouteRows,
    Sample,
};

/// What specialises a kernel, one variant per family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum KernelSpec {
    Matvec(Matvec),
    Matmul(Matmul),
    MatmulWgmma(MatmulWgmma),
    Attention(Attention),
    AttentionRows(AttentionRows),
    AttentionWide(AttentionWide),
    AttentionProjection(AttentionProjection),
    Route(RouteRows),
    ExpertsHidden(ExpertsHidden),
    ExpertsSum(ExpertsSum),
    Embedding(Embedding),
    Norm(Norm),
    NormRows(NormRows),
    Rope(RopeRows),
    Append(Append),
    KvAppend(KvAppend),
    Elementwise(Elementwise),
    Concat(Concat),
    Conv(Conv),
    Recall(Recall),
    Sample(Sample),
}

impl KernelSpec {
    /// What its family says of it.
    pub fn family(&self) -> &dyn Family {
        match self {
            KernelSpec::Matvec(kernel) => kernel,
            KernelSpec::Matmul(kernel) => kernel,
            KernelSpec::MatmulWgmma(kernel) => kernel,
            KernelSpec::Attention(kernel) => kernel,
            KernelSpec::AttentionRows(kernel) => kernel,
            KernelSpec::AttentionWide(kernel) => kernel,
            KernelSpec::AttentionProjection(kernel) => kernel,
            KernelSpec::Route(kernel) => kernel,
            KernelSpec::ExpertsHidden(kernel) => kernel,
            KernelSpec::ExpertsSum(kernel) => kernel,
            KernelSpec::Embedding(kernel) => kernel,
            KernelSpec::Norm(kernel) => kernel,
            KernelSpec::NormRows(kernel) => kernel,
            KernelSpec::Rope(kernel) => kernel,
            KernelSpec::Append(kernel) => kernel,
            KernelSpec::KvAppend(kernel) => kernel,
            KernelSpec::Elementwise(kernel) => kernel,
            KernelSpec::Concat(kernel) => kernel,
            KernelSpec::Conv(kernel) => kernel,
            KernelSpec::Recall(kernel) => kernel,
            KernelSpec::Sample(kernel) => kernel,
        }
    }
}
