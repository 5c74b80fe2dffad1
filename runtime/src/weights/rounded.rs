//! Tensors that are quantised when their rows are read: the rest of the program sees a checkpoint that is stored so.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use fusec::ir::Format;

use super::Checkpoint;
use super::checkpoint::Source;
use super::dtype::Dtype;
use super::stored::{Rounded, Stored, Tensor};
use crate::blocks::encode;

impl Checkpoint {
    /// From now on gives these tensors in blocks of other formats. No value is read: rows are quantised as they are asked for, each time.
    ///
    /// # Errors
    /// A tensor that is not there, is in blocks already, or whose rows are no whole blocks.
    pub fn quantise(&mut self, formats: &BTreeMap<String, Format>) -> Result<()> {
        for (name, &format) in formats {
            let name = fusec::tensors::locate(name, &self.tensors).to_owned();
            let file = self.sources.len();
            let tensor = self.tensors.get_mut(&name);
            let tensor = tensor.with_context(|| format!("{}: there is no tensor {name}", self.origin))?;
            let plain = tensor.dtype.format().is_some_and(|format| format.block().0 == 1);
            let whole = tensor.shape.last().is_some_and(|&last| format.bytes(last).is_some());
            let (rows, columns) = tensor.shape.split_at(tensor.shape.len().saturating_sub(1));
            ensure!(
                plain && whole && !rows.is_empty() && (rows.len() == 1 || tensor.stored == Stored::Plain),
                "{}: tensor {name} {:?} of {} cannot be quantised to {}",
                self.origin,
                tensor.shape,
                tensor.dtype,
                format.name()
            );
            let shape = vec![rows.iter().product(), columns[0]];
            let made = Tensor {
                shape: tensor.shape.clone(),
                dtype: Dtype::Of(format),
                file,
                bytes: 0..0,
                stored: Stored::Plain,
            };
            let tensor = Tensor { shape, ..std::mem::replace(tensor, made) };
            self.sources.push(Source::Rounded(Box::new(Rounded { tensor, format })));
        }
        Ok(())
    }

    /// Appends the blocks of some rows of a tensor that is quantised.
    pub(super) fn append_rounded(
        &self,
        name: &str,
        rounded: &Rounded,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut values = Vec::new();
        for row in rows {
            values.clear();
            self.append_rows(name, &rounded.tensor, row..row + 1, &mut values)?;
            encode(rounded.format, &values, out).with_context(|| format!("row {row}"))?;
        }
        Ok(())
    }

    /// The tensor as it is stored.
    pub(super) fn as_stored<'a>(&'a self, tensor: &'a Tensor) -> &'a Tensor {
        match &self.sources[tensor.file] {
            Source::Rounded(rounded) => &rounded.tensor,
            _ => tensor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::decode;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 37 % 101) as f32 - 50.0) / 64.0).collect()
    }

    #[test]
    fn rows_are_quantised_as_they_are_read() {
        let stored = BTreeMap::from([
            ("w".to_owned(), (vec![6, 64], values(384))),
            ("experts".to_owned(), (vec![2, 3, 32], values(192))),
            ("norm".to_owned(), (vec![64], values(64))),
        ]);
        let plain = Checkpoint::from_memory(serde_json::Value::Null, stored.clone()).unwrap();
        let mut checkpoint = Checkpoint::from_memory(serde_json::Value::Null, stored).unwrap();
        let formats = [("w", Format::Q4_0), ("experts", Format::Q8_0)].map(|(name, format)| (name.to_owned(), format));
        let formats = BTreeMap::from(formats);
        checkpoint.quantise(&formats).unwrap();
        assert_eq!(checkpoint.formats(), formats);
        for (weight, format) in [
            ("w", Format::Q4_0),
            ("w[1..2 of 3]", Format::Q4_0),
            ("w[:, 32..64 of 64]", Format::Q4_0),
            ("experts", Format::Q8_0),
            ("experts[1]", Format::Q8_0),
            ("experts[1, 1..3 of 3]", Format::Q8_0),
        ] {
            let weight = weight.into();
            assert_eq!(checkpoint.shape(&weight).unwrap(), plain.shape(&weight).unwrap());
            let (mut blocks, mut wanted) = (Vec::new(), Vec::new());
            encode(format, &plain.read_f32(&weight).unwrap(), &mut blocks).unwrap();
            decode(format, &blocks, &mut wanted);
            assert_eq!(checkpoint.read_f32(&weight).unwrap(), wanted, "{weight}");
            let rows = checkpoint.shape(&weight).unwrap()[0];
            let (mut raw, mut all) = (Vec::new(), Vec::new());
            for row in 0..rows {
                checkpoint.raw_rows(&weight, row..row + 1, &mut raw).unwrap();
                all.extend_from_slice(&raw);
            }
            assert_eq!(all, blocks, "{weight}");
        }
        assert_eq!(checkpoint.read_f32(&"norm".into()).unwrap(), values(64));
    }

    #[test]
    fn what_cannot_be_quantised_says_so() {
        let stored = BTreeMap::from([
            ("w".to_owned(), (vec![2, 64], values(128))),
            ("short".to_owned(), (vec![4, 24], values(96))),
            ("norm".to_owned(), (vec![64], values(64))),
            ("bad".to_owned(), (vec![2, 32], vec![f32::INFINITY; 64])),
        ]);
        let mut checkpoint = Checkpoint::from_memory(serde_json::Value::Null, stored).unwrap();
        let mut said = |name: &str| {
            let formats = BTreeMap::from([(name.to_owned(), Format::Q4_0)]);
            checkpoint.quantise(&formats).map_or_else(|error| error.to_string(), |()| "done".to_owned())
        };
        assert_eq!(said("w"), "done");
        assert_eq!(said("w"), "the checkpoint in memory: tensor w [2, 64] of Q4_0 cannot be quantised to q4_0");
        assert_eq!(said("short"), "the checkpoint in memory: tensor short [4, 24] of F32 cannot be quantised to q4_0");
        assert_eq!(said("norm"), "the checkpoint in memory: tensor norm [64] of F32 cannot be quantised to q4_0");
        assert_eq!(said("none"), "the checkpoint in memory: there is no tensor none");
        assert_eq!(said("bad"), "done");
        let error = format!("{:#}", checkpoint.read_f32(&"bad".into()).unwrap_err());
        assert_eq!(
            error,
            "the checkpoint in memory: tensor bad: row 0: a weight is inf, which no quantised format holds"
        );
    }
}
