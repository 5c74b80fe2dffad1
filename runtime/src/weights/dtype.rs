//! How a checkpoint stores numbers, and their exact widening to f32.

use super::blocks;
use anyhow::{Result, ensure};
use std::fmt;

/// The storage type of a tensor. Quantised types are GGUF's; the layouts of their blocks stand in `blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 32 values of 8 bits with a scale.
    Q8_0,
    /// 32 values of 4 bits with a scale, centred on 8.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 values of 5 bits with a scale, centred on 16.
    Q5_0,
    /// 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// 256 values of 4 bits in 8 groups, each with a 6-bit scale and minimum.
    Q4K,
    /// 256 values of 5 bits in 8 groups, each with a 6-bit scale and minimum.
    Q5K,
    /// 256 values of 6 bits in 16 groups, each with an 8-bit scale.
    Q6K,
    /// A type that a checkpoint may hold and nothing here reads; the text is the format's name of it.
    Unsupported(&'static str),
}

impl Dtype {
    /// (values, bytes) of one block; a plain type has blocks of one value. `None` where the type is not read.
    pub fn block(self) -> Option<(usize, usize)> {
        Some(match self {
            Dtype::F32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4_1 => (32, 20),
            Dtype::Q5_0 => (32, 22),
            Dtype::Q5_1 => (32, 24),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
            Dtype::Unsupported(_) => return None,
        })
    }

    /// Bytes that `values` consecutive values take; fails where the type is not read, they are no whole number of blocks, or the count overflows.
    pub fn bytes(self, values: usize) -> Result<usize> {
        let Some((per_block, block_bytes)) = self.block() else { anyhow::bail!("{self} is not read; {READ_TYPES}") };
        ensure!(
            values.is_multiple_of(per_block),
            "{values} values are no whole number of {self} blocks of {per_block}"
        );
        (values / per_block)
            .checked_mul(block_bytes)
            .ok_or_else(|| anyhow::anyhow!("{values} values of {self} overflow the address space"))
    }

    /// Appends the values of `bytes`, a whole number of blocks, to `out`, each widened exactly.
    pub(super) fn widen(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Dtype::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::Bf16 => out.extend(
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
            ),
            Dtype::Q8_0 => bytes.chunks_exact(34).for_each(|block| blocks::q8_0(block, out)),
            Dtype::Q4_0 => bytes.chunks_exact(18).for_each(|block| blocks::q4_0(block, out)),
            Dtype::Q4_1 => bytes.chunks_exact(20).for_each(|block| blocks::q4_1(block, out)),
            Dtype::Q5_0 => bytes.chunks_exact(22).for_each(|block| blocks::q5_0(block, out)),
            Dtype::Q5_1 => bytes.chunks_exact(24).for_each(|block| blocks::q5_1(block, out)),
            Dtype::Q4K => bytes.chunks_exact(144).for_each(|block| blocks::q4_k(block, out)),
            Dtype::Q5K => bytes.chunks_exact(176).for_each(|block| blocks::q5_k(block, out)),
            Dtype::Q6K => bytes.chunks_exact(210).for_each(|block| blocks::q6_k(block, out)),
            Dtype::Unsupported(name) => {
                unreachable!("{name} has no block size, so no bytes of it are ever asked for")
            }
        }
    }
}

/// The end of every message about a type that is not read.
pub(super) const READ_TYPES: &str =
    "convert the checkpoint to one of: F32, F16, BF16, and in GGUF also Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
            Dtype::Unsupported(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![7.0];
        dtype.widen(bytes, &mut out);
        assert_eq!(out.remove(0), 7.0, "widening appends");
        out
    }

    #[test]
    fn plain_types_widen_exactly() {
        assert_eq!(widened(Dtype::F32, &1.1f32.to_le_bytes()), [1.1f32]);
        // 0x3C01 = 1 + 2^-10, 0x0001 = 2^-24 (the smallest subnormal), 0xFC00 = -infinity
        assert_eq!(
            widened(Dtype::F16, &[0x01, 0x3C, 0x01, 0x00, 0x00, 0xFC]),
            [1.0 + 2f32.powi(-10), 2f32.powi(-24), f32::NEG_INFINITY]
        );
        // 0x3F81 = 1 + 2^-7, 0xC000 = -2
        assert_eq!(widened(Dtype::Bf16, &[0x81, 0x3F, 0x00, 0xC0]), [1.0078125, -2.0]);
    }

    #[test]
    fn byte_counts_are_whole_blocks() {
        assert_eq!(Dtype::Q4_1.bytes(576).unwrap(), 360);
        assert_eq!(Dtype::Q6K.bytes(512).unwrap(), 420);
        assert_eq!(
            Dtype::Q4K.bytes(576).unwrap_err().to_string(),
            "576 values are no whole number of Q4_K blocks of 256"
        );
        assert!(
            Dtype::Unsupported("IQ4_XS").bytes(256).unwrap_err().to_string().starts_with("IQ4_XS is not read; convert")
        );
        assert!(Dtype::F32.bytes(usize::MAX).is_err());
    }
}
