//! `read.cu`: the read of memory that steps are measured against.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, text_of};

/// Reads memory and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "read.cu")]
pub struct Read {
    /// Threads per block.
    pub threads: usize,
    /// 16-byte loads that a thread has in flight.
    pub unroll: usize,
}

impl Read {
    /// The shape that reaches the ceiling.
    pub const CEILING: Read = Read { threads: 512, unroll: 8 };
}

impl Family for Read {
    fn params(&self) -> Vec<Param> {
        vec![Param::read("data", "const Vec4*"), Param::number("vectors"), Param::write("sink", "u32*")]
    }

    fn stem(&self) -> String {
        "read".into()
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    /// One block for each of `rows`.
    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, 1, 1]
    }
}
