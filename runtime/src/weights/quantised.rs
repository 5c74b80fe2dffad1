//! Weights that are made of codes and scales: rows of blocks from the tensors of a quantised checkpoint.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use fusec::ir::Format;
use fusec::quantised::{Kind, Weight};
use safetensors::Dtype;

use crate::blocks::e4m3;

/// A weight, and where the tensors lie that it is made of.
#[derive(Debug)]
pub(super) struct Quantised {
    weight: Weight,
    codes: Place,
    scales: Place,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Index into the checkpoint's sources.
    pub file: usize,
    /// Within that source.
    pub bytes: Range<usize>,
    pub dtype: Dtype,
}

/// The bytes of the tensors.
struct View<'a> {
    weight: &'a Weight,
    codes: &'a [u8],
    scales: &'a [u8],
    scale_type: Dtype,
}

impl Quantised {
    /// A weight of tensors that `place` finds by their names.
    ///
    /// # Errors
    /// A tensor that is not there.
    pub(super) fn new(weight: Weight, place: &dyn Fn(&str) -> Result<Place>) -> Result<Quantised> {
        let (codes, scales) = (place(&weight.codes)?, place(&weight.scales.tensor)?);
        Ok(Quantised { weight, codes, scales })
    }

    /// Appends some rows in the weight's format; rows are all dimensions but the last. `source` has the bytes of each file.
    ///
    /// # Errors
    /// Values that the format does not hold.
    pub(super) fn append<'a>(
        &'a self,
        source: impl Fn(usize) -> Option<&'a [u8]>,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let bytes =
            |place: &Place| source(place.file).and_then(|file| file.get(place.bytes.clone())).unwrap_or_default();
        let view = View {
            weight: &self.weight,
            codes: bytes(&self.codes),
            scales: bytes(&self.scales),
            scale_type: self.scales.dtype,
        };
        let columns = self.weight.shape.last().copied().unwrap_or(0);
        let codes = view.codes(rows.clone(), columns);
        ensure!(codes.len() == rows.len() * columns, "rows {rows:?} have {} codes", codes.len());
        for (row, codes) in rows.zip(codes.chunks_exact(columns.max(1))) {
            view.append(row, &codes, out)?;
        }
        Ok(())
    }
}

impl View<'_> {
    /// The codes of some rows, a byte each.
    fn codes(&self, rows: Range<usize>, columns: usize) -> Vec<u8> {
        self.codes.get(rows.start * columns..rows.end * columns).unwrap_or_default().to_vec()
    }

    /// Appends a row.
    fn append(&self, row: usize, codes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let Weight { format, kind, .. } = *self.weight;
        let (values, _) = format.block();
        for (block, codes) in codes.chunks(values).enumerate() {
            let scale = self.scale(row, block * values);
            match (format, kind) {
                (Format::F32, Kind::E4m3) => out.extend((scale * e4m3(codes[0])).to_le_bytes()),
                (Format::Fp8, Kind::E4m3) => {
                    out.extend(scale.to_le_bytes());
                    out.extend_from_slice(codes);
                }
                _ => bail!("{} has no blocks of {kind:?}", format.name()),
            }
        }
        Ok(())
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        let scales = &self.weight.scales;
        let at = row / scales.rows * scales.of_rows + column / scales.columns * scales.of_columns;
        number(self.scale_type, self.scales, at)
    }
}

/// Number `at` of those that a tensor holds.
fn number(dtype: Dtype, bytes: &[u8], at: usize) -> f32 {
    let two = || [bytes[2 * at], bytes[2 * at + 1]];
    match dtype {
        Dtype::F16 => half::f16::from_le_bytes(two()).to_f32(),
        Dtype::BF16 => half::bf16::from_le_bytes(two()).to_f32(),
        Dtype::F8_E4M3 => e4m3(bytes[at]),
        // A power of two; the smallest is below the normal numbers.
        Dtype::F8_E8M0 => f32::from_bits(if bytes[at] == 0 { 1 << 22 } else { u32::from(bytes[at]) << 23 }),
        _ => f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
    }
}
