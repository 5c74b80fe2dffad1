//! `conv.cu`: a short causal convolution of each channel, and its last inputs.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, text_of};

/// A convolution over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "conv.cu")]
pub struct Conv {
    /// Values per row.
    pub channels: usize,
    /// Rows that a result depends on, its own included.
    pub taps: usize,
    /// Rows follow each other in one sequence; otherwise each is of another one.
    pub prompt: bool,
}

impl Conv {
    /// Channels per block.
    fn width(&self) -> usize {
        if self.prompt { 32 } else { 128 }
    }

    /// Rows that a block computes at a time.
    fn lanes(&self) -> usize {
        if self.prompt { 8 } else { 1 }
    }
}

impl Family for Conv {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::read("x", "const float*"),
            Param::weight("weight", "const float*"),
            Param::weight("bias", "const float*").or_null(),
            Param::state("inputs", "float*"),
            Param::io("positions", "const int*"),
            Param::io("sequences", "const int*"),
            Param::write("out", "float*"),
            Param::number("rows"),
        ]
    }

    fn stem(&self) -> String {
        let rows = if self.prompt { "conv_rows" } else { "conv" };
        format!("{rows}_k{}_t{}", self.channels, self.taps)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        self.width() * self.lanes()
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.channels.div_ceil(self.width()), if self.prompt { 1 } else { rows }, 1]
    }

    fn reads(&self, rows: usize) -> Reads {
        let sequences = if self.prompt { 1 } else { rows };
        let kept = sequences * (self.taps - 1) * self.channels * 4;
        Reads { weights: self.channels * self.taps * 4, per_position: kept, window: 1 }
    }
}
