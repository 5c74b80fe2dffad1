//! `rope.cu`: each head turned by its row's position.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::{ROW_THREADS, RopeTable, Turns};

/// Rotary position embedding over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "rope.cu")]
pub struct RopeRows {
    /// The angles.
    pub table: RopeTable,
    /// Heads per row.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl RopeRows {
    fn turns(&self) -> Turns {
        Turns::of(Some(&self.table))
    }
}

impl Family for RopeRows {
    fn params(&self) -> Vec<Param> {
        vec![Param::read("x", "const float*"), Param::io("positions", "const int*"), Param::write("out", "float*")]
    }

    fn stem(&self) -> String {
        format!("rope_h{}_d{}", self.heads, self.head_dim)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        ROW_THREADS
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, 1, 1]
    }
}
