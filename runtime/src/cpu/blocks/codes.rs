//! Activations as 16-bit integers, with a scale per 32 columns.

use super::super::math::for_each_isa;
use super::layout::COLUMNS;

/// What belongs to 32 columns of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Block {
    /// What the integers are multiplied by. NaN where a value is not finite.
    pub scale: f32,
    /// Their sum.
    pub sum: i32,
    /// The sum of the first sixteen.
    pub first: i32,
    /// `scale · sum`.
    pub weighted: f32,
}

/// A row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coded<'a> {
    /// Per 32 columns.
    pub blocks: &'a [Block],
    /// The integers.
    pub codes: &'a [i16],
}

/// Floats that a [`Block`] takes.
pub(crate) const HEAD: usize = 4;

/// Floats that a coded row of `columns` takes.
pub(crate) const fn coded_floats(columns: usize) -> usize {
    columns / COLUMNS * (HEAD + COLUMNS / 2)
}

impl<'a> Coded<'a> {
    /// A row of so many columns: what belongs to all its blocks, then the integers, both by [`encode_blocks`].
    pub fn of(floats: &'a [f32], columns: usize) -> Coded<'a> {
        let (blocks, codes) = floats[..coded_floats(columns)].split_at(HEAD * (columns / COLUMNS));
        Coded { blocks: bytemuck::cast_slice(blocks), codes: bytemuck::cast_slice(codes) }
    }

    /// Some of its blocks.
    pub fn part(self, blocks: std::ops::Range<usize>) -> Coded<'a> {
        Coded { codes: &self.codes[COLUMNS * blocks.start..COLUMNS * blocks.end], blocks: &self.blocks[blocks] }
    }
}

/// The largest code. One less than a half holds, so that two products never leave a word.
const LARGEST: f32 = 32767.0;
/// Activations that are all smaller are zeros: the quotient below would not be finite.
const SMALLEST: f32 = 1e-30;
/// Added to a float below 2^22 it leaves the nearest integer, ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;

for_each_isa! {
    /// Writes the integers of whole blocks, and what belongs to them.
    pub(crate) fn encode_blocks(x: &[f32], blocks: &mut [Block], codes: &mut [i16]) {
        let (x, codes) = (x.as_chunks::<COLUMNS>().0, codes.as_chunks_mut::<COLUMNS>().0);
        for ((x, block), codes) in x.iter().zip(blocks).zip(codes) {
            // As integers, magnitudes are in order, and what is not finite is above all others.
            let mut lanes = [0u32; 8];
            for part in x.as_chunks::<8>().0 {
                for lane in 0..8 {
                    let magnitude = part[lane].to_bits() & 0x7FFF_FFFF;
                    lanes[lane] = if magnitude > lanes[lane] { magnitude } else { lanes[lane] };
                }
            }
            let largest = f32::from_bits(lanes.into_iter().fold(0, u32::max));
            let some = largest.is_finite() && largest >= SMALLEST;
            let factor = if some { LARGEST / largest } else { 0.0 };
            let mut sums = [[0i32; 8]; 2];
            for (half, sums) in sums.iter_mut().enumerate() {
                for part in 2 * half..2 * half + 2 {
                    for lane in 0..8 {
                        let value = if some { x[8 * part + lane] } else { 0.0 };
                        let code = (value * factor + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
                        codes[8 * part + lane] = code as i16;
                        sums[lane] += code;
                    }
                }
            }
            let [first, second] = sums.map(|lanes| lanes.into_iter().sum::<i32>());
            let scale = match (largest.is_finite(), some) {
                (false, _) => f32::NAN,
                (true, false) => 0.0,
                (true, true) => largest / LARGEST,
            };
            *block = Block { scale, sum: first + second, first, weighted: scale * (first + second) as f32 };
        }
    }
}
