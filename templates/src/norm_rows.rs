//! `norm_rows.cu`: RMSNorm or LayerNorm of each row, for products of many rows by wgmma.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{Float, NormKind, mark};

/// A norm over rows whose results are in the order of `activations.cuh`, one block per row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "norm_rows.cu")]
pub struct NormRows {
    /// Which.
    pub kind: NormKind,
    /// Values per row.
    pub size: usize,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// The result is a hi/lo split.
    pub paired: bool,
}

impl NormRows {
    fn warps(&self) -> usize {
        (self.size / 128).clamp(1, 8)
    }

    fn layer(&self) -> bool {
        self.kind == NormKind::Layer
    }

    fn epsilon(&self) -> Float {
        Float(self.eps)
    }

    /// bfloat16 per result.
    fn parts(&self) -> usize {
        if self.paired { 2 } else { 1 }
    }
}

impl Family for NormRows {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("x", "const float*"),
            Param::weight("weight", "const float*").or_null(),
            Param::weight("bias", "const float*").or_null(),
            Param::write("out", "u16*"),
        ]
    }

    fn stem(&self) -> String {
        format!("{}_rows{}_k{}", self.kind.name(), mark(self.paired, "_paired"), self.size)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.warps()
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, 1, 1]
    }
}
