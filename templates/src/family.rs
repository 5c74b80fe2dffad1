//! What every kernel family says of itself: parameters, launch shape, bytes, name. Plan, emission, runtime and tests derive all of it from here.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A kernel family: its fields are the constants of its template, and all else follows from them.
pub trait Family {
    /// The parameters of the kernel, in order.
    fn params(&self) -> Vec<Param>;

    /// What the kernel computes and its sizes, for readers. Different kernels may share it.
    fn stem(&self) -> String;

    /// All fields, as JSON.
    fn text(&self) -> String;

    /// The CUDA text, whole: it includes nothing.
    ///
    /// # Errors
    /// Only where the template fails to render, which no fields cause.
    fn source(&self) -> Result<String, askama::Error>;

    /// Threads per block.
    fn threads(&self) -> usize;

    /// Blocks of a launch for this many rows.
    fn grid(&self, rows: usize) -> [usize; 3];

    /// Bytes of dynamic shared memory per block.
    fn shared_bytes(&self) -> usize {
        0
    }

    /// What a launch for this many rows reads of weights and of states.
    fn reads(&self, _rows: usize) -> Reads {
        Reads::default()
    }

    /// Per cent of a multiprocessor's first-level memory that a decode step with this kernel gives to shared memory; the least of a step's kernels counts.
    /// All kernels of a step have one share: a multiprocessor that changes it has to be empty first, and kernels would not overlap.
    fn shared_share(&self) -> u32 {
        75
    }

    /// Its key in a tuning record, where a record may give it another launch shape.
    fn tuning(&self, _rows: usize) -> Option<TuningKey> {
        None
    }

    /// The kernel's name: its stem, then eight digits of a digest of all fields. Two kernels of a name have one text.
    fn name(&self) -> String {
        let stem = self.stem();
        let digest: String =
            Sha256::digest(format!("{stem} {}", self.text())).iter().take(4).map(hexadecimal).collect();
        format!("{stem}_{digest}")
    }

    /// The parameter list of the CUDA function.
    fn signature(&self) -> String {
        let params: Vec<String> = self.params().iter().map(|param| format!("{} {}", param.c, param.name)).collect();
        params.join(", ")
    }
}

fn hexadecimal(byte: &u8) -> String {
    format!("{byte:02x}")
}

/// The fields of a family as JSON: numbers, names and lists of them.
pub(crate) fn text_of(fields: &impl Serialize) -> String {
    serde_json::to_string(fields).expect("fields are numbers, names and lists")
}

/// A parameter of a kernel. Its argument is 64 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the CUDA text, by which operands are bound.
    pub name: &'static str,
    /// Its type in the CUDA text.
    pub c: &'static str,
    /// What the kernel does with it.
    pub kind: Kind,
    /// It may be null, or zero where it is a number.
    pub optional: bool,
}

/// What a kernel does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads packed weights, which depend on no launch.
    Weight,
    /// Reads what an earlier launch wrote.
    Read,
    /// Writes it.
    Write,
    /// Adds to it: an earlier launch has set it to zero.
    Sum,
    /// Reads or writes a state, which outlives the step.
    State,
    /// Reads or writes what host and device share.
    Io,
    /// A number.
    Number,
    /// Sets that many 4-byte words to zero, which a later launch adds to. Always followed by their number.
    Zeros,
}

impl Param {
    const fn new(name: &'static str, c: &'static str, kind: Kind) -> Param {
        Param { name, c, kind, optional: false }
    }

    pub(crate) const fn weight(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::Weight)
    }

    pub(crate) const fn read(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::Read)
    }

    pub(crate) const fn write(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::Write)
    }

    pub(crate) const fn sum(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::Sum)
    }

    pub(crate) const fn state(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::State)
    }

    pub(crate) const fn io(name: &'static str, c: &'static str) -> Param {
        Param::new(name, c, Kind::Io)
    }

    pub(crate) const fn number(name: &'static str) -> Param {
        Param::new(name, "u64", Kind::Number)
    }

    pub(crate) const fn or_null(self) -> Param {
        Param { optional: true, ..self }
    }

    /// The words to set to zero, and their number.
    pub(crate) const fn zeros() -> [Param; 2] {
        [Param::new("zeros", "float*", Kind::Zeros).or_null(), Param::number("zero_count").or_null()]
    }
}

/// Bytes that a launch reads beside its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// Of weights.
    pub weights: usize,
    /// Of states, for each position that its rows see.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub per_position: usize,
    /// Positions that a row sees at most; 0: all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub window: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Reads {
    pub(crate) fn of_weights(bytes: usize) -> Reads {
        Reads { weights: bytes, ..Reads::default() }
    }

    /// Bytes of weights and states with each row at position `depth`.
    pub fn at(&self, depth: usize) -> usize {
        let seen = if self.window > 0 { self.window.min(depth + 1) } else { depth + 1 };
        self.weights.saturating_add(seen.saturating_mul(self.per_position))
    }
}

/// What identifies the kernels that a tuning record gives a launch shape of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TuningKey {
    /// Products of few rows: what is fused, columns, row tiles, rows of x.
    Product(String, usize, usize, usize),
    /// Attentions of few rows: heads, key heads, head size, window, rows.
    Attention(usize, usize, usize, usize, usize),
}
