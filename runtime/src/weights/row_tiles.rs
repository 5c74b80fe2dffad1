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
        let mut to = Row { out, row, step_bytes: packed.bytes, columns: packed.columns, first: block * values };
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
            other => anyhow::bail!("no packer for {} weights", other.name()),
        }
    }
    Ok(())
}

/// Gives random blocks the scales of weights with a standard deviation near 0.02.
pub fn set_scales(format: Format, blocks: &mut [u8]) {
    let (_, bytes) = format.block();
    // Where f16 scales lie in a block, and their values.
    let scales: &[(usize, f32)] = match format {
        Format::Q8_0 => &[(0, 0.02 / 74.0)],
        Format::Q4_0 => &[(0, 0.02 / 4.6)],
        Format::Q4_1 => &[(0, 0.02 / 4.6), (2, -7.5 * 0.02 / 4.6)],
        Format::Q4K => &[(0, 0.02 / 4.6 / 32.0), (2, 7.5 * 0.02 / 4.6 / 32.0)],
        Format::Q6K => &[(208, 0.02 / 18.0 / 74.0)],
        _ => &[],
    };
    for block in blocks.chunks_exact_mut(bytes) {
        if format == Format::Int4x128 {
            // An fp32 scale with the zero point in its lowest bits.
            block[..4].copy_from_slice(&((0.02f32 / 4.6).to_bits() & !0x1fff | 8).to_le_bytes());
        }
        for &(at, scale) in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
}

/// One row of a row tile, from the column `first` on.
struct Row<'o> {
    out: &'o mut [u8],
    row: usize,
    step_bytes: usize,
    columns: usize,
    first: usize,
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
}
