//! `kv_append.cu`: each row's keys (or values) into the cache.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};
use crate::values::ROW_THREADS;

/// Keys or values at their rows' positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "kv_append.cu")]
pub struct KvAppend {
    /// Heads.
    pub key_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl Family for KvAppend {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("x", "const float*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::state("cache", "u16*"),
            Param::number("context"),
        ]
    }

    fn stem(&self) -> String {
        format!("kv_append_bf16_h{}_d{}", self.key_heads, self.head_dim)
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
