//! Rows of weights as the checkpoint stores them: whole blocks, nothing widened.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use fusec::ir::{Format, TensorName, WeightRef};

use super::Checkpoint;
use super::checkpoint::Source;
use super::stored::{Stored, Tensor};

impl Checkpoint {
    /// The format in which [`Checkpoint::raw_rows`] gives rows of a weight. `None` where there are none: it is stored as its transpose or with other
    /// values, has one dimension, is cut within blocks or turned, is of a type that is not read, or has no bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::shape`].
    pub fn raw_format(&self, weight: &WeightRef) -> Result<Option<Format>> {
        let shape = self.shape(weight)?;
        let names = weight.tensors();
        let formats = names.iter().map(|name| Ok(self.raw_tensor_format(self.tensor(name)?)));
        let formats: Vec<Option<Format>> = formats.collect::<Result<_>>()?;
        let alike = formats.iter().all(|format| *format == formats[0]);
        Ok(formats[0].filter(|&format| alike && shape.len() > 1 && weight.has_whole_blocks(&shape, format)))
    }

    /// Replaces the contents of `out` by the blocks of some rows of a weight. A row is all that has one index of the first dimension: of a matrix whole
    /// blocks, of the matrices of several experts one matrix, row after row.
    ///
    /// # Errors
    /// Where [`Checkpoint::raw_format`] gives none, or the weight has fewer rows.
    pub fn raw_rows(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let format = self.raw_format(weight)?;
        let format = format.with_context(|| format!("{}: {weight} is not stored as rows of blocks", self.origin))?;
        let shape = self.shape(weight)?;
        ensure!(
            rows.start <= rows.end && rows.end <= shape[0],
            "rows {rows:?} of weight {weight}, which has {}",
            shape[0]
        );
        let names = weight.tensors();
        let tensors: Vec<&Tensor> = names.iter().map(|name| self.tensor(name)).collect::<Result<_>>()?;
        let (&columns, outer) = shape.split_last().context("a weight without dimensions")?;
        let inner: usize = outer[1..].iter().product();
        let size = |values: usize| format.bytes(values).context("a weight is cut within a block");
        out.reserve(rows.len() * inner * size(columns)?);
        let mut place = Vec::new();
        let mut made = Made::default();
        for row in rows.start * inner..rows.end * inner {
            unravel(row, outer, &mut place);
            let which = if matches!(weight.tensor, TensorName::Stack { .. }) { place.remove(0) } else { 0 };
            let tensor = tensors[which];
            weight.matrix.into_iter().for_each(|matrix| place.insert(0, matrix));
            let (&stored_columns, stored_outer) = tensor.shape.split_last().context("a tensor without dimensions")?;
            let mut runs: Vec<Range<usize>> = Vec::new();
            if let Some(part) = weight.part {
                match place.get_mut(part.axis) {
                    Some(at) => *at = part.place(*at),
                    None => {
                        let run = |first: usize| part.place(first)..part.place(first) + part.size;
                        runs.extend((0..columns).step_by(part.size).map(run));
                    }
                }
            }
            if runs.is_empty() {
                runs.push(0..columns);
            }
            place[0] = tensor.stored.place(place[0], tensor.shape[0]);
            let first = place.iter().zip(stored_outer).fold(0, |at, (index, size)| at * size + index);
            let row_bytes = size(stored_columns)?;
            let bytes = match &self.sources[tensor.file] {
                Source::Quantised(_) | Source::Rounded(_) => {
                    let last: usize = stored_outer.iter().product();
                    if made.file != Some(tensor.file) || !made.rows.contains(&first) {
                        made.rows = first..last.min(first / Made::ROWS * Made::ROWS + Made::ROWS);
                        made.file = Some(tensor.file);
                        made.blocks.clear();
                        self.append_blocks(&names[which], tensor, made.rows.clone(), &mut made.blocks)?;
                    }
                    &made.blocks[(first - made.rows.start) * row_bytes..]
                }
                _ => {
                    let bytes = self.sources[tensor.file].bytes().context("a weight that is made up")?;
                    &bytes[tensor.bytes.start + first * row_bytes..]
                }
            };
            for run in runs {
                out.extend_from_slice(&bytes[size(run.start)?..size(run.end)?]);
            }
        }
        Ok(())
    }

    /// The format of a tensor whose rows are whole blocks that lie in the file.
    pub(super) fn raw_tensor_format(&self, tensor: &Tensor) -> Option<Format> {
        let in_rows = matches!(tensor.stored, Stored::Plain | Stored::Pairs { .. } | Stored::ByProjection { .. });
        let made_up = matches!(self.sources[tensor.file], Source::Noise(_));
        if made_up || !in_rows || tensor.shape.len() < 2 {
            return None;
        }
        tensor.dtype.format().filter(|format| tensor.shape.last().is_some_and(|&last| format.bytes(last).is_some()))
    }
}

/// Blocks of some rows of a quantised tensor: words that hold codes of several rows are read once for all of them.
#[derive(Default)]
struct Made {
    file: Option<usize>,
    rows: Range<usize>,
    blocks: Vec<u8>,
}

impl Made {
    /// Rows that are made at a time, at most.
    const ROWS: usize = 8;
}

/// The indices of entry `at` of a tensor of `shape`.
fn unravel(mut at: usize, shape: &[usize], indices: &mut Vec<usize>) {
    indices.clear();
    for &size in shape.iter().rev() {
        indices.insert(0, at % size);
        at /= size;
    }
}

#[cfg(test)]
mod tests {
    use super::super::dtype::Dtype;
    use super::*;
    use crate::blocks::decode;

    /// Tensors of Q8_0 whose rows have 64 values: in each block the scale 1 and the block's number, then 1 to 31.
    fn checkpoint(tensors: &[(&str, &[usize], Stored)]) -> Checkpoint {
        let mut checkpoint = Checkpoint::from_memory(serde_json::Value::Null, Default::default()).unwrap();
        for &(name, shape, stored) in tensors {
            let blocks = shape.iter().product::<usize>() / 32;
            let block = |number: usize| [0x00, 0x3C, number as u8].into_iter().chain(1..32);
            let mut bytes: Vec<u8> = (0..blocks).flat_map(block).collect();
            let length = bytes.len();
            bytes.resize(length.next_multiple_of(4), 0);
            let floats = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
            let (file, dtype) = (checkpoint.sources.len(), Dtype::Of(Format::Q8_0));
            checkpoint.sources.push(Source::Floats(floats));
            let tensor = Tensor { shape: shape.to_vec(), dtype, file, bytes: 0..length, stored };
            checkpoint.tensors.insert(name.to_owned(), tensor);
        }
        checkpoint
    }

    #[test]
    fn raw_rows_are_what_is_widened() {
        let checkpoint = checkpoint(&[
            ("plain", &[6, 64], Stored::Plain),
            ("pairs", &[8, 64], Stored::Pairs { heads: 2 }),
            ("qkv", &[12, 64], Stored::ByProjection { heads: 2 }),
            ("experts", &[3, 4, 64], Stored::Plain),
            ("e.0.w", &[4, 64], Stored::Plain),
            ("e.1.w", &[4, 64], Stored::Plain),
            ("wide", &[2, 192], Stored::Plain),
        ]);
        for name in [
            "plain",
            "pairs",
            "qkv",
            "experts",
            "plain[1..2 of 3]",
            "pairs[1..4 of 4]",
            "experts[2]",
            "experts[1, 2..4 of 4]",
            "experts[:, 1..2 of 2]",
            "experts[1, :, 32..64 of 64]",
            "e.{0..2}.w",
            "e.{0..2}.w[1..2 of 2]",
            "wide[:, 32..64 of 96]",
        ] {
            let weight: WeightRef = name.into();
            assert_eq!(checkpoint.raw_format(&weight).unwrap(), Some(Format::Q8_0), "{name}");
            let rows = checkpoint.shape(&weight).unwrap()[0];
            for some in [0..rows, rows / 2..rows, 1..1] {
                let (mut raw, mut widened, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
                checkpoint.raw_rows(&weight, some.clone(), &mut raw).unwrap();
                decode(Format::Q8_0, &raw, &mut widened);
                checkpoint.read_rows_f32(&weight, some, &mut wanted).unwrap();
                assert_eq!(widened, wanted, "{name}");
            }
        }
        let said = checkpoint.raw_rows(&"plain".into(), 5..7, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(said, "rows 5..7 of weight plain, which has 6");
    }

    #[test]
    fn what_is_not_stored_in_rows_of_blocks_says_so() {
        let mut checkpoint = checkpoint(&[("turned", &[64, 64], Stored::Turned), ("w", &[4, 64], Stored::Plain)]);
        checkpoint.tensors.insert(
            "short".to_owned(),
            Tensor { shape: vec![64], dtype: Dtype::Of(Format::Q8_0), file: 1, bytes: 0..68, stored: Stored::Plain },
        );
        let made_up = Checkpoint::dummy(serde_json::Value::Null, &[("w".into(), vec![2, 32])], 1);
        for (checkpoint, name) in
            [(&checkpoint, "turned"), (&checkpoint, "short"), (&checkpoint, "w[:, 16..48 of 64]"), (&made_up, "w")]
        {
            assert_eq!(checkpoint.raw_format(&name.into()).unwrap(), None, "{name}");
            let said = checkpoint.raw_rows(&name.into(), 0..1, &mut Vec::new()).unwrap_err().to_string();
            assert!(said.ends_with("is not stored as rows of blocks"), "{said}");
        }
        assert!(checkpoint.raw_format(&"none".into()).is_err());
        assert_eq!(checkpoint.formats().into_iter().collect::<Vec<_>>(), [("w".to_owned(), Format::Q8_0)]);
    }
}
