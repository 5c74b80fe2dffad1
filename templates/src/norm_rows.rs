//! `norm_rows.cu`: RMSNorm or LayerNorm of each row, for products of many rows in half precision.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::norm::Norm;

/// A norm over rows whose results are in half precision, as they are or in the order of `activations.cuh` ([`Storage::is_tiled`](crate::Storage::is_tiled)), one
/// block per row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "norm_rows.cu")]
pub struct NormRows(pub Norm);

impl Family for NormRows {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("x", "const float*"),
            Param::weight("weight", "const float*").or_null(),
            Param::weight("bias", "const float*").or_null(),
            Param::write("out", "Out*"),
        ]
    }

    fn stem(&self) -> String {
        format!("{}_rows_k{}", self.0.kind.name(), self.0.size)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        self.0.threads()
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        self.0.grid(rows)
    }
}
