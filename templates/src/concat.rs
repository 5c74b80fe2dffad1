//! `concat.cu`: heads side by side.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::ROW_THREADS;

/// The values of each head of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "concat.cu")]
pub struct Concat {
    /// Heads.
    pub heads: usize,
    /// Values per head of the first.
    pub first: usize,
    /// Values per head of the second.
    pub second: usize,
}

impl Family for Concat {
    fn params(&self) -> Vec<Param> {
        vec![Param::read("a", "const float*"), Param::read("b", "const float*"), Param::write("out", "float*")]
    }

    fn stem(&self) -> String {
        format!("concat_h{}_k{}_k{}", self.heads, self.first, self.second)
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
