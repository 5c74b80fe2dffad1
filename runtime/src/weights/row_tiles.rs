//! 16 rows of a weight as the steps that kernels read. `templates/kernels/weights/` describes where each value of a step lies.

use anyhow::{Context, Result, ensure};
use fusec::ir::Format;
use half::{bf16, f16};

use crate::blocks::group_scale;

/// Rows of a row tile.
pub const ROWS: usize = 16;

/// What weights in half precision are times the value (`W_UNIT` in `whole.cuh`).
const F16_UNIT: f32 = 256.0;

/// Eight numbers of 16 bits of columns `8 quad ..` of rows `r` and `r + 8`: the share of lane `4 r + quad` in both tiles of a pair.
///
/// In the first tile the lane's A fragment is columns 0, 1 of the low row, of the high row, then columns 2, 3 of each; the second tile
/// goes on with columns 4 to 7. So eight consecutive activations are the B fragments of both tiles.
pub fn lane_share(low: &[u16], high: &[u16]) -> ([u16; 8], [u16; 8]) {
    let tile = |c: usize| [low[c], low[c + 1], high[c], high[c + 1], low[c + 2], low[c + 3], high[c + 2], high[c + 3]];
    (tile(0), tile(4))
}

/// The bits of a weight in a format without scales; `None` where half precision cannot hold its size.
pub fn whole_bits(format: Format, value: f32) -> Option<u16> {
    match format {
        Format::F16 => {
            let bits = f16::from_f32(value * F16_UNIT);
            (bits.is_finite() || !value.is_finite()).then_some(bits.to_bits())
        }
        _ => Some(bf16::from_f32(value).to_bits()),
    }
}

/// Packs a row tile of a format without scales: `rows` has 16 rows of `columns` numbers, which are whole steps.
pub fn pack_whole(rows: &[u16], columns: usize, out: &mut [u8]) {
    for (step, out) in out.chunks_exact_mut(1024).enumerate() {
        let (first_tile, second_tile) = out.split_at_mut(512);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 32 * step + 8 * (lane % 4));
            let share = |row: usize| &rows[row * columns + column..][..8];
            let (first, second) = lane_share(share(row), share(row + 8));
            first_tile[16 * lane..][..16].copy_from_slice(bytemuck::cast_slice(&first));
            second_tile[16 * lane..][..16].copy_from_slice(bytemuck::cast_slice(&second));
        }
    }
}

/// Packs one row of quantised blocks into the row tile `out`, whose bytes are zeros where nothing was packed. Every integer and every scale keeps its value.
///
/// # Errors
/// A format that no kernel reads, or a row that is not whole blocks.
pub fn pack_row(format: Format, row: usize, blocks: &[u8], out: &mut [u8]) -> Result<()> {
    ensure!(row < ROWS, "row {row} of a row tile of {ROWS}");
    let packed = format.packed().with_context(|| format!("no kernel reads {} weights", format.name()))?;
    let (values, bytes) = format.block();
    ensure!(blocks.len().is_multiple_of(bytes), "a row of {} has {} bytes", format.name(), blocks.len());
    let last = blocks.len() / bytes * values;
    ensure!(
        packed.steps(last) * packed.bytes == out.len(),
        "a row tile of {} bytes has no room for {last} columns",
        out.len()
    );
    for (block, from) in blocks.chunks_exact(bytes).enumerate() {
        let (natural, first) = (format.is_natural(), block * values);
        let mut to = Row { out, row, step_bytes: packed.bytes, columns: packed.columns, natural, first };
        // Nibbles: of 32 values byte c has value c, and above it value c + 16.
        let folded = |first: usize, c: usize| from[first + c / 32 * 16 + c % 16] >> (c % 32 / 16 * 4) & 15;
        match format {
            Format::Q8_0 => {
                (0..32).for_each(|c| to.set_byte(c, from[2 + c] ^ 0x80));
                to.set_pair_scale(1024, &from[..2]);
            }
            Format::Q4_0 => {
                (0..32).for_each(|c| to.set_nibble(c, from[2 + c % 16] >> (c / 16 * 4) & 15));
                to.set_pair_scale(512, &from[..2]);
            }
            Format::Q4_1 => {
                (0..32).for_each(|c| to.set_nibble(c, from[4 + c % 16] >> (c / 16 * 4) & 15));
                let (at, pair) = (to.step(0), to.pair(0));
                to.out[at + 512 + row % 8 * 16 + pair * 8 + row / 8 * 4..][..4].copy_from_slice(&from[..4]);
            }
            Format::Q4K => {
                (0..256).for_each(|c| to.set_nibble(c, from[16 + c / 64 * 32 + c % 32] >> (c / 32 % 2 * 4) & 15));
                for group in 0..8 {
                    let (scale, minimum) = group_scale(&from[4..16], group);
                    let (at, pair) = (to.step(32 * group) + row % 8 * 8, to.pair(32 * group));
                    let byte = pair / 2 * 4 + row / 8 * 2 + pair % 2;
                    to.out[at + 1024 + row / 8 * 4..][..4].copy_from_slice(&from[..4]);
                    to.out[at + 1088 + byte] = scale;
                    to.out[at + 1152 + byte] = minimum;
                }
            }
            Format::Q6K => {
                for c in 0..256 {
                    let (half, run, l) = (c / 128, c / 32 % 4, c % 32);
                    let low = from[64 * half + 32 * (run % 2) + l] >> (run / 2 * 4) & 15;
                    to.set_six_bits(c, low | (from[128 + 32 * half + l] >> (2 * run) & 3) << 4);
                }
                for group in 0..16 {
                    let at = to.step(16 * group);
                    to.out[at + 1536 + row % 8 * 16 + row / 8 * 8 + group % 8] = from[192 + group];
                    to.out[at + 1664 + row % 8 * 4 + row / 8 * 2..][..2].copy_from_slice(&from[208..210]);
                }
            }
            Format::Int4x128 => {
                (0..128).for_each(|c| to.set_nibble(c, from[4 + c / 32 * 16 + c % 16] >> (c % 32 / 16 * 4) & 15));
                let at = to.step(0) + 1024 + row % 8 * 8 + row / 8 * 4;
                to.out[at..at + 4].copy_from_slice(&from[..4]);
            }
            Format::Q5_0 | Format::Q5_1 => {
                let numbers = if format == Format::Q5_0 { 2 } else { 4 };
                for c in 0..32 {
                    let fifth = from[numbers + c / 8] >> (c % 8) & 1;
                    to.set_five_bits(c, folded(numbers + 4, c) | fifth << 4);
                }
                if format == Format::Q5_0 {
                    to.set_pair_scale(640, &from[..2]);
                } else {
                    to.set_pair_scales(640, &from[..4]);
                }
            }
            Format::Q2K => {
                for c in 0..256 {
                    to.set_two_bits(c, from[16 + c / 128 * 32 + c % 32] >> (c / 32 % 4 * 2) & 3);
                }
                for group in 0..16 {
                    to.set_fragment_byte(16 * group, 512, from[group]);
                    to.set_units(16 * group, 640, &from[80..84]);
                }
            }
            Format::Q3K => {
                for c in 0..256 {
                    let third = from[c % 32] >> (c / 32) & 1;
                    to.set_two_bits(c, from[32 + c / 128 * 32 + c % 32] >> (c / 32 % 4 * 2) & 3);
                    to.set_third_bit(c, third);
                }
                for group in 0..16 {
                    let low = from[96 + group % 8] >> (group / 8 * 4) & 15;
                    let six = low | (from[104 + group % 4] >> (group / 4 * 2) & 3) << 4;
                    to.set_fragment_byte(16 * group, 768, six.wrapping_sub(32));
                    to.set_unit(16 * group, 896, &from[108..110]);
                }
            }
            Format::Q5K => {
                for c in 0..256 {
                    let low = from[48 + c / 64 * 32 + c % 32] >> (c / 32 % 2 * 4) & 15;
                    to.set_five_bits(c, low | (from[16 + c % 32] >> (c / 32) & 1) << 4);
                }
                for group in 0..8 {
                    let (scale, minimum) = group_scale(&from[4..16], group);
                    to.set_units(32 * group, 1280, &from[..4]);
                    to.set_pair_byte(32 * group, 1344, scale);
                    to.set_pair_byte(32 * group, 1408, minimum);
                }
            }
            Format::Iq4Nl => {
                (0..32).for_each(|c| to.set_chosen(c, folded(2, c)));
                to.set_pair_scale(512, &from[..2]);
            }
            Format::Iq4Xs => {
                (0..256).for_each(|c| to.set_chosen(c, folded(8, c)));
                for group in 0..8 {
                    let high = u16::from_le_bytes([from[2], from[3]]) >> (2 * group) & 3;
                    let six = from[4 + group / 2] >> (group % 2 * 4) & 15 | (high as u8) << 4;
                    to.set_pair_byte(32 * group, 1024, six.wrapping_sub(32));
                    to.set_unit(32 * group, 1088, &from[..2]);
                }
            }
            Format::Mxfp4 => {
                (0..32).for_each(|c| to.set_small_float(c, folded(1, c)));
                let at = to.step(0) + 512 + row % 8 * 4 + to.pair(0) * 2 + row / 8;
                to.out[at] = from[0];
            }
            Format::Nvfp4 => {
                (0..32).for_each(|c| to.set_small_float(c, folded(8, c)));
                to.set_word(0, 512, 16, &from[..4]);
                to.set_word(16, 512, 16, &from[4..8]);
            }
            Format::Fp8 | Format::Fp8x128 => {
                let codes = &from[4..];
                ensure!(codes.iter().all(|code| code & 0x7F != 0x7F), "a weight that is not a number (e4m3)");
                codes.iter().enumerate().for_each(|(c, &code)| to.set_float(c, code));
                to.set_word(0, 16 * packed.columns, values, &from[..4]);
            }
            Format::Int8 | Format::Int8x128 => {
                (0..values).for_each(|c| to.set_byte(c, from[4 + c] ^ 0x80));
                to.set_word(0, 16 * packed.columns, values, &from[..4]);
            }
            Format::Int4x32 => {
                (0..32).for_each(|c| to.set_nibble(c, folded(4, c)));
                to.set_word(0, 512, 32, &from[..4]);
            }
            Format::F32 | Format::I32 | Format::F16 | Format::BF16 => {
                anyhow::bail!("{} has no blocks", format.name())
            }
        }
    }
    Ok(())
}

/// Gives random blocks the scales of weights with a standard deviation near 0.02.
pub fn set_scales(format: Format, blocks: &mut [u8]) {
    let (_, bytes) = format.block();
    const SMALL: f32 = 0.02;
    // Where f16 scales lie in a block, and their values.
    let scales: &[(usize, f32)] = match format {
        Format::Q8_0 => &[(0, SMALL / 74.0)],
        Format::Q4_0 => &[(0, SMALL / 4.6)],
        Format::Q4_1 => &[(0, SMALL / 4.6), (2, -7.5 * SMALL / 4.6)],
        Format::Q5_0 => &[(0, SMALL / 9.2)],
        Format::Q5_1 => &[(0, SMALL / 9.2), (2, -15.5 * SMALL / 9.2)],
        Format::Q2K => &[(80, SMALL / 1.74 / 8.0), (82, 1.5 * SMALL / 1.74 / 8.0)],
        Format::Q3K => &[(108, SMALL / 2.3 / 18.0)],
        Format::Q4K => &[(0, SMALL / 8.0 / 32.0), (2, 7.5 * SMALL / 8.0 / 32.0)],
        Format::Q5K => &[(0, SMALL / 16.0 / 32.0), (2, 15.5 * SMALL / 16.0 / 32.0)],
        Format::Q6K => &[(208, SMALL / 18.0 / 74.0)],
        Format::Iq4Nl => &[(0, SMALL / 72.0)],
        Format::Iq4Xs => &[(0, SMALL / 72.0 / 18.0)],
        _ => &[],
    };
    for block in blocks.chunks_exact_mut(bytes) {
        for &(at, scale) in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
        let mut set = |at: usize, scale: f32| block[at..at + 4].copy_from_slice(&scale.to_le_bytes());
        match format {
            Format::Fp8 | Format::Fp8x128 => {
                set(0, SMALL / 110.0);
                // All bits but the sign: not a number.
                block[4..].iter_mut().filter(|code| **code & 0x7F == 0x7F).for_each(|code| *code ^= 1);
            }
            Format::Int8 | Format::Int8x128 => set(0, SMALL / 74.0),
            // An fp32 scale with the zero point in its lowest bits.
            Format::Int4x32 | Format::Int4x128 => {
                block[..4].copy_from_slice(&((SMALL / 4.6).to_bits() & !0x1fff | 8).to_le_bytes());
            }
            Format::Nvfp4 => {
                set(0, SMALL / 2.9);
                set(4, SMALL / 2.9);
            }
            // 2^-7.
            Format::Mxfp4 => block[0] = 120,
            _ => {}
        }
    }
}

/// One row of a row tile, from the column `first` on.
struct Row<'o> {
    out: &'o mut [u8],
    row: usize,
    step_bytes: usize,
    columns: usize,
    /// Lanes have the columns of a fragment in their order.
    natural: bool,
    first: usize,
}

/// Where a code lies: the lane's share of a step, and which register and half of which fragment it becomes.
struct Spot {
    step: usize,
    pair: usize,
    lane: usize,
    fragment: usize,
    register: usize,
    half: usize,
}

impl Row<'_> {
    /// Where the step of a column begins.
    fn step(&self, column: usize) -> usize {
        (self.first + column) / self.columns * self.step_bytes
    }

    /// A column's pair of its step.
    fn pair(&self, column: usize) -> usize {
        (self.first + column) % self.columns / 32
    }

    /// An 8-bit code: a lane has 16 bytes of each pair.
    fn set_byte(&mut self, column: usize, code: u8) {
        let (step, pair, c) = (self.step(column), self.pair(column), (self.first + column) % 32);
        let lane = self.row % 8 * 4 + c / 8;
        self.out[step + 512 * pair + 16 * lane + c % 8 / 2 * 4 + c % 2 * 2 + self.row / 8] = code;
    }

    /// A 4-bit code: a lane has two words of each pair, and 16 bytes of two pairs; the codes of one fragment lie in the lower halves of bytes.
    fn set_nibble(&mut self, column: usize, code: u8) {
        let (step, pair, c) = (self.step(column), self.pair(column), (self.first + column) % 32);
        let lane = self.row % 8 * 4 + c / 8;
        let at = step + pair / 2 * 512 + 16 * lane + (pair % 2 * 2 + c % 4 / 2) * 4;
        self.set_bits(at, c % 2 * 16 + self.row / 8 * 8 + c % 8 / 4 * 4, u32::from(code));
    }

    /// A 6-bit code: a lane has three words of each pair for the eight registers of two fragments, whose columns are in their order.
    fn set_six_bits(&mut self, column: usize, code: u8) {
        let (step, pair, c) = (self.step(column), self.pair(column), (self.first + column) % 32);
        let (lane, shift) = (self.row % 8 * 4 + c % 8 / 2, c % 2 * 16);
        let register = c / 16 * 4 + self.row / 8 + c % 16 / 8 * 2;
        let code = u32::from(code);
        let mut set = |word: usize, bit: usize, bits: u32| {
            let number = 3 * pair + word;
            self.set_bits(step + number / 4 * 512 + 16 * lane + number % 4 * 4, shift + bit, bits);
        };
        match register {
            0..6 => set(register / 2, register % 2 * 6, code),
            6 => {
                set(0, 12, code & 15);
                set(1, 12, code >> 4);
            }
            _ => {
                set(1, 14, code & 3);
                set(2, 12, code >> 2);
            }
        }
    }

    fn set_bits(&mut self, at: usize, shift: usize, bits: u32) {
        (bits << shift).to_le_bytes().iter().zip(&mut self.out[at..at + 4]).for_each(|(bits, byte)| *byte |= bits);
    }

    /// The scale of the block's pair, behind `before` bytes of a step of two pairs.
    fn set_pair_scale(&mut self, before: usize, scale: &[u8]) {
        let at = self.step(0) + before + self.row % 8 * 8 + self.pair(0) * 4 + self.row / 8 * 2;
        self.out[at..at + 2].copy_from_slice(scale);
    }

    fn spot(&self, column: usize) -> Spot {
        let (c, low_lane, high) = ((self.first + column) % 32, self.row % 8 * 4, self.row / 8);
        let (step, pair, half) = (self.step(column), self.pair(column), c % 2);
        if self.natural {
            let (lane, fragment, register) = (low_lane + c % 8 / 2, c / 16, high + c % 16 / 8 * 2);
            return Spot { step, pair, lane, fragment, register, half };
        }
        let (lane, fragment, register) = (low_lane + c / 8, c % 8 / 4, high + c % 4 / 2 * 2);
        Spot { step, pair, lane, fragment, register, half }
    }

    /// An 8-bit float: the same, but for the order within a word.
    fn set_float(&mut self, column: usize, code: u8) {
        let Spot { step, pair, lane, fragment, register, half } = self.spot(column);
        self.out[step + 512 * pair + 16 * lane + 8 * fragment + register / 2 * 4 + register % 2 * 2 + half] = code;
    }

    /// Bits of a fragment's word: a lane has two words of each pair, one per fragment, and 16 bytes of two pairs.
    fn set_in_word(&mut self, spot: &Spot, shift: usize, bits: u8) {
        let at = spot.step + spot.pair / 2 * 512 + 16 * spot.lane + (spot.pair % 2 * 2 + spot.fragment) * 4;
        self.set_bits(at, shift, u32::from(bits));
    }

    /// A 4-bit number of an integer in a table.
    fn set_chosen(&mut self, column: usize, code: u8) {
        let spot = self.spot(column);
        self.set_in_word(&spot, spot.register / 2 * 16 + 8 * spot.half + spot.register % 2 * 4, code);
    }

    /// A 4-bit float: sign and size of each register have places of their own.
    fn set_small_float(&mut self, column: usize, code: u8) {
        let spot = self.spot(column);
        let (sign, size) = [(15, 9), (12, 6), (14, 3), (13, 0)][spot.register];
        self.set_in_word(&spot, 16 * spot.half + size, code & 7);
        self.set_in_word(&spot, 16 * spot.half + sign, code >> 3);
    }

    /// A 5-bit integer: four bits as those of four, and behind all of them a word of fifth bits of each lane for two pairs.
    fn set_five_bits(&mut self, column: usize, code: u8) {
        self.set_nibble(column, code & 15);
        let Spot { step, pair, lane, fragment, register, half } = self.spot(column);
        let at = step + 8 * self.columns + pair / 2 * 128 + 4 * lane;
        self.set_bits(at, 16 * half + pair % 2 * 8 + 4 * fragment + register, u32::from(code >> 4));
    }

    /// A 2-bit integer: a lane has a word of each of four pairs.
    fn set_two_bits(&mut self, column: usize, code: u8) {
        let Spot { step, pair, lane, fragment, register, half } = self.spot(column);
        self.set_bits(step + 16 * lane + 4 * pair, 16 * half + 8 * fragment + 2 * register, u32::from(code));
    }

    /// The third bit of one: behind the others a lane has a word of two pairs.
    fn set_third_bit(&mut self, column: usize, bit: u8) {
        let Spot { step, pair, lane, fragment, register, half } = self.spot(column);
        let at = step + 512 + 8 * lane + pair / 2 * 4;
        self.set_bits(at, 16 * half + pair % 2 * 8 + 4 * fragment + register, u32::from(bit));
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.out[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A scale and an addend of the block's pair.
    fn set_pair_scales(&mut self, before: usize, scales: &[u8]) {
        let at = self.step(0) + before + self.row % 8 * 16 + self.pair(0) * 8 + self.row / 8 * 4;
        self.put(at, scales);
    }

    /// Four bytes of a run of so many columns.
    fn set_word(&mut self, column: usize, before: usize, columns: usize, word: &[u8]) {
        let run = (self.first + column) % self.columns / columns;
        let at = self.step(column) + before + run * 64 + self.row % 8 * 8 + self.row / 8 * 4;
        self.put(at, word);
    }

    /// A byte of a pair, of four in a step.
    fn set_pair_byte(&mut self, column: usize, before: usize, byte: u8) {
        let pair = self.pair(column);
        let at = self.step(column) + before + self.row % 8 * 8 + pair / 2 * 4 + self.row / 8 * 2 + pair % 2;
        self.out[at] = byte;
    }

    /// A byte of a fragment, of eight in a step.
    fn set_fragment_byte(&mut self, column: usize, before: usize, byte: u8) {
        let fragment = (self.first + column) % self.columns / 16;
        let at = self.step(column) + before + self.row % 8 * 16 + self.row / 8 * 8 + fragment;
        self.out[at] = byte;
    }

    /// The unit of a step's scales.
    fn set_unit(&mut self, column: usize, before: usize, unit: &[u8]) {
        let at = self.step(column) + before + self.row % 8 * 4 + self.row / 8 * 2;
        self.put(at, unit);
    }

    /// Those of its scales and of its minima.
    fn set_units(&mut self, column: usize, before: usize, units: &[u8]) {
        let at = self.step(column) + before + self.row % 8 * 8 + self.row / 8 * 4;
        self.put(at, units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::decode;

    /// What `bench` times has the sizes of weights, whatever the format.
    #[test]
    fn dummy_blocks_are_small_weights() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for format in Format::ALL.into_iter().filter(|format| format.is_read()) {
            let mut blocks: Vec<u8> = (0..format.bytes(1 << 14).expect("whole blocks")).map(|_| random()).collect();
            set_scales(format, &mut blocks);
            let mut values = Vec::new();
            decode(format, &blocks, &mut values);
            let mean =
                |of: &dyn Fn(f32) -> f32| values.iter().map(|&value| of(value)).sum::<f32>() / values.len() as f32;
            let (average, rms) = (mean(&|value| value), mean(&|value| value * value).sqrt());
            println!("{}: average {average:.4}, rms {rms:.4}", format.name());
            assert!((0.015..0.025).contains(&rms), "{}: {rms}", format.name());
            assert!(average.abs() < 0.005, "{}: {average}", format.name());
        }
    }

    #[test]
    fn floats_that_are_no_numbers_are_refused() {
        let mut blocks = vec![0u8; 132];
        blocks[77] = 0xFF;
        let mut out = vec![0u8; 2112];
        let error = pack_row(Format::Fp8x128, 0, &blocks, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "a weight that is not a number (e4m3)");
    }
}
