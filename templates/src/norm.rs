//! `norm.cu`: RMSNorm or LayerNorm of each row.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{Float, NormKind, Storage, mark};

/// A norm over rows, one block per row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "norm.cu")]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Values per row.
    pub size: usize,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// The result is a hi/lo split.
    pub paired: bool,
    /// Storage of the result.
    pub out: Storage,
}

impl Norm {
    pub(crate) fn warps(&self) -> usize {
        (self.size / 128).clamp(1, 8)
    }

    pub(crate) fn layer(&self) -> bool {
        self.kind == NormKind::Layer
    }

    pub(crate) fn epsilon(&self) -> Float {
        Float(self.eps)
    }
}

impl Family for Norm {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("x", "const float*"),
            Param::weight("weight", "const float*").or_null(),
            Param::weight("bias", "const float*").or_null(),
            Param::write("out", "Out*"),
        ]
    }

    fn stem(&self) -> String {
        format!("{}{}_{}_k{}", self.kind.name(), mark(self.paired, "_paired"), self.out.name(), self.size)
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
