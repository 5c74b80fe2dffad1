//! Tensors that a file stores otherwise than transformers does, read as transformers has them.

use std::ops::Range;

use anyhow::Result;
use fusec::ir::Format;

use super::dtype::Dtype;
use crate::blocks::decode;

/// Where a tensor lies and how to read it.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// Index into the checkpoint's sources.
    pub file: usize,
    /// Within that source; empty where the dtype is not read.
    pub bytes: Range<usize>,
    pub stored: Stored,
}

/// A tensor, and the format that its rows are quantised to when they are read.
#[derive(Debug)]
pub(super) struct Rounded {
    /// As it is stored; its rows are all dimensions but the last.
    pub tensor: Tensor,
    pub format: Format,
}

/// How a tensor's bytes make the rows of its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Row after row.
    Plain,
    /// The rows of each of `heads` heads in rotation pairs: row 2j + c for row j + c · half.
    Pairs {
        /// Heads that the rows fall into.
        heads: usize,
    },
    /// All heads' rows of q, then of k, then of v; transformers has q, k and v of each head in turn.
    ByProjection {
        /// Heads that each of q, k and v has.
        heads: usize,
    },
    /// The transpose: a stored row is a column of the shape.
    Turned,
    /// Every value more by one.
    PlusOne,
}

impl Tensor {
    pub(super) fn rows_and_columns(&self) -> (usize, usize) {
        let (rows, inner) = self.shape.split_first().map_or((1, &[][..]), |(rows, inner)| (*rows, inner));
        (rows, inner.iter().product())
    }
}

/// Appends some rows of a tensor whose bytes lie within `source`.
///
/// # Errors
/// A type that is not read.
pub(super) fn append(tensor: &Tensor, source: &[u8], rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
    let (count, columns) = tensor.rows_and_columns();
    let bytes = &source[tensor.bytes.clone()];
    if tensor.stored == Stored::Turned {
        return append_turned(tensor, bytes, rows, out);
    }
    let row_bytes = tensor.dtype.bytes(columns)?;
    let Some(format) = tensor.dtype.format() else { return Ok(()) };
    let begin = out.len();
    match tensor.stored {
        Stored::Plain | Stored::PlusOne => {
            decode(format, &bytes[rows.start * row_bytes..rows.end * row_bytes], out);
        }
        stored => {
            for row in rows {
                let at = stored.place(row, count);
                decode(format, &bytes[at * row_bytes..(at + 1) * row_bytes], out);
            }
        }
    }
    if tensor.stored == Stored::PlusOne {
        out[begin..].iter_mut().for_each(|value| *value -= 1.0);
    }
    Ok(())
}

/// Rows of a transpose: of each stored row, the blocks that hold what is asked for.
fn append_turned(tensor: &Tensor, bytes: &[u8], rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
    let (count, columns) = tensor.rows_and_columns();
    let row_bytes = tensor.dtype.bytes(count)?;
    let Some(format) = tensor.dtype.format() else { return Ok(()) };
    let (per_block, block_bytes) = format.block();
    let blocks = rows.start / per_block..rows.end.div_ceil(per_block);
    let skipped = rows.start - blocks.start * per_block;
    let begin = out.len();
    out.resize(begin + rows.len() * columns, 0.0);
    let mut values = Vec::new();
    for (column, stored) in bytes.chunks_exact(row_bytes.max(1)).take(columns).enumerate() {
        values.clear();
        decode(format, &stored[blocks.start * block_bytes..blocks.end * block_bytes], &mut values);
        for (row, value) in values[skipped..skipped + rows.len()].iter().enumerate() {
            out[begin + row * columns + column] = *value;
        }
    }
    Ok(())
}

impl Stored {
    /// Where row `row` of `count` lies.
    pub(super) fn place(self, row: usize, count: usize) -> usize {
        match self {
            Stored::Pairs { heads } => {
                let size = count / heads;
                let (head, within, half) = (row / size, row % size, size / 2);
                head * size + 2 * (within % half) + within / half
            }
            Stored::ByProjection { heads } => {
                let size = count / (3 * heads);
                let (head, projection, within) = (row / (3 * size), row / size % 3, row % size);
                (projection * heads + head) * size + within
            }
            Stored::Plain | Stored::Turned | Stored::PlusOne => row,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(shape: &[usize], stored: Stored, values: &[f32], rows: Range<usize>) -> Vec<f32> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor =
            Tensor { shape: shape.to_vec(), dtype: Dtype::Of(Format::F32), file: 0, bytes: 0..bytes.len(), stored };
        let mut out = vec![9.0];
        append(&tensor, &bytes, rows, &mut out).unwrap();
        assert_eq!(out.remove(0), 9.0, "reading appends");
        out
    }

    #[test]
    fn rows_come_in_transformers_order() {
        let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        // Two heads of four rows: pairs (0, 2), (1, 3) lie side by side.
        assert_eq!(
            read(&[8], Stored::Pairs { heads: 2 }, &values[..8], 0..8),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
        // Two heads of two rows: q is 0 to 3, k 4 to 7, v 8 to 11.
        assert_eq!(
            read(&[12], Stored::ByProjection { heads: 2 }, &values, 1..12),
            [1.0, 4.0, 5.0, 8.0, 9.0, 2.0, 3.0, 6.0, 7.0, 10.0, 11.0]
        );
        // Stored as 3 rows of 4, read as 4 of 3.
        assert_eq!(read(&[4, 3], Stored::Turned, &values, 1..3), [1.0, 5.0, 9.0, 2.0, 6.0, 10.0]);
        assert!(read(&[4, 3], Stored::Turned, &values, 2..2).is_empty());
        assert_eq!(read(&[3], Stored::PlusOne, &[1.5, 0.0, 1.0], 0..2), [0.5, -1.0]);
    }

    #[test]
    fn a_transpose_of_blocks_gives_rows_within_them() {
        // Two stored rows of 64 values: each block has a scale of 1 (0x3C00 as f16) and 32 bytes.
        let stored_row = |first: u8| -> Vec<u8> {
            (0..2u8)
                .flat_map(|block| [0x00, 0x3C].into_iter().chain((0..32).map(move |at| first + 32 * block + at)))
                .collect()
        };
        let bytes = [stored_row(0), stored_row(60)].concat();
        let shape = vec![64, 2];
        let tensor =
            Tensor { shape, dtype: Dtype::Of(Format::Q8_0), file: 0, bytes: 0..bytes.len(), stored: Stored::Turned };
        let mut out = Vec::new();
        append(&tensor, &bytes, 31..34, &mut out).unwrap();
        assert_eq!(out, [31.0, 91.0, 32.0, 92.0, 33.0, 93.0]);
    }
}
