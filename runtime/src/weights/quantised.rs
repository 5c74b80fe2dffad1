//! Weights that are made of codes, scales and zero points: rows of blocks from the tensors of a quantised checkpoint.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use fusec::ir::Format;
use fusec::quantised::{Kind, Layout, Weight, Zeros};
use safetensors::Dtype;

use crate::blocks::{e2m1, e4m3, with_zero};

/// A weight, and where the tensors lie that it is made of.
#[derive(Debug)]
pub(super) struct Quantised {
    weight: Weight,
    codes: Place,
    scales: Place,
    factor: Option<Place>,
    zeros: Option<Place>,
    order: Option<Place>,
    told: Option<Place>,
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

/// A tensor's bytes, as numbers of its type.
#[derive(Clone, Copy)]
struct Numbers<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

/// The tensors of a weight.
struct View<'a> {
    weight: &'a Weight,
    rows: usize,
    columns: usize,
    codes: Numbers<'a>,
    scales: Numbers<'a>,
    factor: Option<f32>,
    zeros: Option<Numbers<'a>>,
    order: Option<Numbers<'a>>,
}

impl Quantised {
    /// A weight of tensors that `place` finds by their names.
    ///
    /// # Errors
    /// A tensor that is not there.
    pub(super) fn new(weight: Weight, place: &dyn Fn(&str) -> Result<Place>) -> Result<Quantised> {
        let zeros = match &weight.zeros {
            Zeros::All(_) => None,
            Zeros::Signed(tensor, _) | Zeros::Packed { tensor, .. } => Some(place(tensor)?),
        };
        Ok(Quantised {
            codes: place(&weight.codes)?,
            scales: place(&weight.scales.tensor)?,
            factor: weight.scales.factor.as_ref().map(|(tensor, _)| place(tensor)).transpose()?,
            zeros,
            order: weight.order.as_ref().map(|order| place(&order.tensor)).transpose()?,
            told: weight.told.as_deref().map(place).transpose()?,
            weight,
        })
    }

    /// Checks what headers do not tell: the shape, and the order of columns.
    ///
    /// # Errors
    /// Another shape than the tensors have, columns in an order that the configuration denies, or in groups that are not there.
    pub(super) fn check<'a>(&'a self, source: impl Fn(usize) -> Option<&'a [u8]>) -> Result<()> {
        let view = self.view(&source)?;
        let columns = view.columns;
        if let Some(told) = &self.told {
            let told = Numbers::of(told, &source)?;
            let shape = [told.whole(0), told.whole(1)];
            ensure!(
                shape == [view.rows as i64, columns as i64],
                "it is {:?}, and its weight_shape says {shape:?}: padded columns are not read",
                self.weight.shape
            );
        }
        let (Some(numbers), Some(order)) = (view.order, &self.weight.order) else { return Ok(()) };
        let size = self.weight.scales.columns;
        for column in 0..columns {
            let group = numbers.whole(column);
            ensure!(
                usize::try_from(group).is_ok_and(|group| group < columns.div_ceil(size)),
                "{} puts column {column} into group {group}, which is not there",
                order.tensor
            );
            ensure!(
                order.any || group as usize == column / size,
                "{} has columns in another order, and its config.json says that they are in theirs (`desc_act`)",
                order.tensor
            );
        }
        Ok(())
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
        let view = self.view(&source)?;
        ensure!(rows.start <= rows.end && rows.end <= view.rows, "rows {rows:?} of {}", view.rows);
        let codes = view.codes(rows.clone());
        for (row, codes) in rows.zip(codes.chunks_exact(view.columns.max(1))) {
            view.append(row, codes, out).with_context(|| format!("row {row}"))?;
        }
        Ok(())
    }

    fn view<'a>(&'a self, source: &impl Fn(usize) -> Option<&'a [u8]>) -> Result<View<'a>> {
        let numbers = |place: &Place| Numbers::of(place, source);
        let factor = self.factor.as_ref().map(numbers).transpose()?;
        let (&columns, outer) = self.weight.shape.split_last().context("a weight without dimensions")?;
        Ok(View {
            weight: &self.weight,
            rows: outer.iter().product(),
            columns,
            codes: numbers(&self.codes)?,
            scales: numbers(&self.scales)?,
            factor: factor.map(|factor| factor.float(0)),
            zeros: self.zeros.as_ref().map(numbers).transpose()?,
            order: self.order.as_ref().map(numbers).transpose()?,
        })
    }
}

/// Where in a word of AWQ each of eight rows is.
const AWQ: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl View<'_> {
    /// The codes of some rows, a byte each, integers without signs.
    fn codes(&self, rows: Range<usize>) -> Vec<u8> {
        let columns = self.columns;
        let mut codes = vec![0; rows.len() * columns];
        match self.weight.layout {
            Layout::Rows(bits) => {
                let flip = if self.weight.kind == Kind::Signed { 0x80 } else { 0 };
                let first = rows.start * columns;
                for (at, code) in codes.iter_mut().enumerate() {
                    let bit = (first + at) * bits;
                    *code = (self.codes.bytes[bit / 8] >> (bit % 8) & mask(bits)) ^ flip;
                }
            }
            Layout::Columns(bits) => {
                let per_word = 32 / bits;
                for column in 0..columns {
                    let words = column / per_word * self.rows;
                    for (at, row) in rows.clone().enumerate() {
                        let word = self.codes.word(words + row) >> (bits * (column % per_word));
                        codes[at * columns + column] = word as u8 & mask(bits);
                    }
                }
            }
            Layout::Awq => {
                for column in 0..columns {
                    for (at, row) in rows.clone().enumerate() {
                        let word = self.codes.word(column * (self.rows / 8) + row / 8);
                        codes[at * columns + column] = (word >> (4 * AWQ[row % 8])) as u8 & 15;
                    }
                }
            }
        }
        codes
    }

    /// Appends a row.
    fn append(&self, row: usize, codes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let Weight { format, kind, .. } = *self.weight;
        let (values, _) = format.block();
        for (block, codes) in codes.chunks(values).enumerate() {
            let first = block * values;
            match (format, kind) {
                (Format::F32, _) => out.extend(self.value(row, first, codes[0]).to_le_bytes()),
                (Format::Fp8 | Format::Fp8x128, Kind::E4m3) => {
                    out.extend(self.scale(row, first).to_le_bytes());
                    out.extend_from_slice(codes);
                }
                (Format::Q8_0, Kind::Integer(8) | Kind::Signed) => {
                    self.centred(row, first, 128)?;
                    out.extend(half::f16::from_f32(self.scale(row, first)).to_le_bytes());
                    out.extend(codes.iter().map(|code| code ^ 0x80));
                }
                (Format::Int8 | Format::Int8x128, Kind::Integer(8) | Kind::Signed) => {
                    self.centred(row, first, 128)?;
                    out.extend(self.scale(row, first).to_le_bytes());
                    out.extend(codes.iter().map(|code| code ^ 0x80));
                }
                (Format::Q4_0, Kind::Integer(4)) => {
                    self.centred(row, first, 8)?;
                    out.extend(half::f16::from_f32(self.scale(row, first)).to_le_bytes());
                    fold(codes, out);
                }
                (Format::Int4x32 | Format::Int4x128, Kind::Integer(4)) => {
                    let (scale, zero) = (self.scale(row, first), self.zero(row, first));
                    let word = with_zero(scale, zero);
                    let word = word.with_context(|| format!("a scale of {scale} with a zero point of {zero}"))?;
                    out.extend(word.to_le_bytes());
                    fold(codes, out);
                }
                (Format::Mxfp4, Kind::E2m1) => {
                    out.push(self.scales.bytes[self.place(row, first)]);
                    fold(codes, out);
                }
                (Format::Nvfp4, Kind::E2m1) => {
                    for column in [first, first + 16] {
                        out.extend(self.scale(row, column).to_le_bytes());
                    }
                    fold(codes, out);
                }
                _ => bail!("{} has no blocks of {kind:?}", format.name()),
            }
        }
        Ok(())
    }

    fn value(&self, row: usize, column: usize, code: u8) -> f32 {
        let scale = self.scale(row, column);
        match self.weight.kind {
            Kind::E4m3 => scale * e4m3(code),
            Kind::E2m1 => scale * e2m1(code),
            Kind::Integer(_) | Kind::Signed => scale * (i32::from(code) - self.zero(row, column)) as f32,
        }
    }

    /// The run of columns that a column belongs to.
    fn run(&self, column: usize) -> usize {
        match (self.order, &self.weight.order) {
            (Some(numbers), Some(order)) if order.any => numbers.whole(column) as usize,
            _ => column / self.weight.scales.columns,
        }
    }

    /// Which of the scales it is.
    fn place(&self, row: usize, column: usize) -> usize {
        let scales = &self.weight.scales;
        row / scales.rows * scales.of_rows + self.run(column) * scales.of_columns
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        let scale = self.scales.float(self.place(row, column));
        match (self.factor, &self.weight.scales.factor) {
            (Some(factor), Some((_, true))) => scale / factor,
            (Some(factor), _) => scale * factor,
            (None, _) => scale,
        }
    }

    fn zero(&self, row: usize, column: usize) -> i32 {
        match (&self.weight.zeros, self.zeros) {
            (Zeros::All(zero), _) => *zero,
            (Zeros::Signed(_, less), Some(zeros)) => i32::from(zeros.bytes[self.place(row, column)] as i8) - less,
            (Zeros::Packed { bits, of_rows, of_columns, awq, plus, .. }, Some(zeros)) => {
                let (words, within) = (row * bits / 32, row % (32 / bits));
                let word = zeros.word(words * of_rows + self.run(column) * of_columns);
                let place = if *awq { AWQ[within] } else { within };
                i32::from((word >> (bits * place)) as u8 & mask(*bits)) + plus
            }
            (_, None) => 0,
        }
    }

    /// Checks that a zero point is the one that a format without any has.
    fn centred(&self, row: usize, column: usize, middle: i32) -> Result<()> {
        let zero = self.zero(row, column);
        ensure!(zero == middle, "a zero point of {zero} where the configuration says that all are {middle}");
        Ok(())
    }
}

/// 32 codes at a time as the nibbles of sixteen bytes, the first sixteen below.
fn fold(codes: &[u8], out: &mut Vec<u8>) {
    for codes in codes.as_chunks::<32>().0 {
        out.extend((0..16).map(|at| codes[at] | codes[at + 16] << 4));
    }
}

fn mask(bits: usize) -> u8 {
    (0xFF_u32 >> (8 - bits)) as u8
}

impl<'a> Numbers<'a> {
    fn of(place: &Place, source: &impl Fn(usize) -> Option<&'a [u8]>) -> Result<Numbers<'a>> {
        let bytes = source(place.file).and_then(|file| file.get(place.bytes.clone()));
        Ok(Numbers { dtype: place.dtype, bytes: bytes.context("a tensor that it is made of has no bytes")? })
    }

    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        std::array::from_fn(|byte| self.bytes[N * at + byte])
    }

    fn word(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn whole(self, at: usize) -> i64 {
        match self.dtype {
            Dtype::I64 => i64::from_le_bytes(self.array(at)),
            _ => i64::from(i32::from_le_bytes(self.array(at))),
        }
    }

    fn float(self, at: usize) -> f32 {
        match self.dtype {
            Dtype::F16 => half::f16::from_le_bytes(self.array(at)).to_f32(),
            Dtype::BF16 => half::bf16::from_le_bytes(self.array(at)).to_f32(),
            Dtype::F8_E4M3 => e4m3(self.bytes[at]),
            // A power of two; the smallest is below the normal numbers.
            Dtype::F8_E8M0 | Dtype::U8 => {
                let exponent = u32::from(self.bytes[at]);
                f32::from_bits(if exponent == 0 { 1 << 22 } else { exponent << 23 })
            }
            _ => f32::from_le_bytes(self.array(at)),
        }
    }
}
