//! How a checkpoint stores numbers.

use anyhow::{Context, Result, ensure};
use fusec::ir::Format;
use std::fmt;

/// The storage type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// A format that is read.
    Of(Format),
    /// A type that a checkpoint may hold and nothing here reads; the text is the file format's name of it.
    Unsupported(&'static str),
}

impl Dtype {
    /// The format; `None` where the type is not read.
    pub fn format(self) -> Option<Format> {
        match self {
            Dtype::Of(format) => Some(format),
            Dtype::Unsupported(_) => None,
        }
    }

    /// Bytes that `values` consecutive values take; fails where the type is not read, they are no whole number of blocks, or the count overflows.
    pub fn bytes(self, values: usize) -> Result<usize> {
        let format = self.format().with_context(|| format!("{self} is not read; {}", read_types()))?;
        let (per_block, _) = format.block();
        ensure!(
            values.is_multiple_of(per_block),
            "{values} values are no whole number of {self} blocks of {per_block}"
        );
        format.bytes(values).with_context(|| format!("{values} values of {self} overflow the address space"))
    }
}

/// The end of every message about a type that is not read.
pub(super) fn read_types() -> String {
    let blocks = Format::ALL.into_iter().filter(|format| format.is_of_gguf());
    let names: Vec<String> = blocks.map(|format| Dtype::Of(format).to_string()).collect();
    format!("convert the checkpoint to one of: F32, F16, BF16, and in GGUF also {}", names.join(", "))
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::Of(format) => f.write_str(&format.name().to_uppercase()),
            Dtype::Unsupported(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_whole_blocks() {
        assert_eq!(Dtype::Of(Format::Q4_1).bytes(576).unwrap(), 360);
        assert_eq!(Dtype::Of(Format::Q6K).bytes(512).unwrap(), 420);
        assert_eq!(
            Dtype::Of(Format::Q4K).bytes(576).unwrap_err().to_string(),
            "576 values are no whole number of Q4_K blocks of 256"
        );
        assert_eq!(
            Dtype::Unsupported("IQ2_XS").bytes(256).unwrap_err().to_string(),
            "IQ2_XS is not read; convert the checkpoint to one of: F32, F16, BF16, and in GGUF also Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, \
             Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4"
        );
        assert!(Dtype::Of(Format::F32).bytes(usize::MAX).is_err());
    }
}
