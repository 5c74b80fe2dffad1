//! What is to be written, and what was.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use fusec::ir::Format;
use serde::Serialize;

use crate::weights::Checkpoint;
use crate::weights::gguf::Value;

/// What quantising a tensor costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// What it became.
    pub format: String,
    /// The normalised mean squared error of its values.
    pub nmse: f64,
    /// The largest error of a value.
    pub most: f64,
    /// Bytes that it takes, scales included.
    pub bytes: usize,
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Written {
    /// Each tensor that was quantised, in the order of the files.
    pub quantised: Vec<Cost>,
    /// Tensors that are as they were.
    pub kept: usize,
    /// Bytes of all weight files.
    pub bytes: u64,
    /// Bytes that they had.
    pub bytes_before: u64,
}

/// What is to be written.
pub struct Job<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// The tensors that are quantised, and to which format.
    pub chosen: &'a BTreeMap<String, Format>,
    /// The format that was asked for.
    pub target: Format,
    /// What to write: a file if its name ends in `.gguf`, else a folder.
    pub out: &'a Path,
    /// Whether what is there is replaced.
    pub replace: bool,
    /// What a GGUF file says of the tokenizer.
    pub tokenizer: &'a [(String, Value)],
    /// Looks at a GGUF file before it gets its name.
    pub check: &'a dyn Fn(&Path) -> Result<()>,
    /// Is told what part of the bytes is done: done, of all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Sums over the values of a tensor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    squares: f64,
    size: f64,
    pub most: f64,
}

impl Errors {
    pub fn add(&mut self, value: f32, found: f32) {
        let error = f64::from(found) - f64::from(value);
        self.squares += error * error;
        self.size += f64::from(value) * f64::from(value);
        self.most = self.most.max(error.abs());
    }

    pub fn join(&mut self, other: Errors) {
        self.squares += other.squares;
        self.size += other.size;
        self.most = self.most.max(other.most);
    }

    pub fn nmse(self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { self.squares / self.size }
    }
}
