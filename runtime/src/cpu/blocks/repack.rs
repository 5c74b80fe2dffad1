//! Blocks of a row, as a file has them, into a unit and back.

use std::ops::Range;

use fusec::ir::Format;

use super::layout::{COLUMNS, Layout, UNIT_ROWS};

/// Where a part of the codes of 32 columns lies in a block.
struct Field {
    first: usize,
    order: Order,
    /// How far the part stands above the lowest bit of its byte.
    shift: usize,
    bits: usize,
    /// How far it stands above the lowest bit of the code.
    above: usize,
}

/// In which order.
enum Order {
    /// A byte each.
    Bytes,
    /// Sixteen bytes: the first sixteen, then the others four bits higher.
    Folded,
    /// A bit each.
    Bits,
}

/// The parts of codes `32 sub ..` of a block; see the layouts in `src/blocks.rs`.
fn fields(format: Format, sub: usize) -> Vec<Field> {
    let field = |first, order, bits| Field { first, order, shift: 0, bits, above: 0 };
    let (half, run) = (sub / 4, sub % 4);
    match format {
        Format::F32 | Format::I32 | Format::F16 | Format::BF16 | Format::Fp8 | Format::Fp8x128 => Vec::new(),
        Format::Int8 | Format::Int8x128 => vec![field(4 + 32 * sub, Order::Bytes, 8)],
        Format::Int4x32 | Format::Int4x128 => vec![field(4 + 16 * sub, Order::Folded, 4)],
        Format::Nvfp4 => vec![field(8, Order::Folded, 4)],
        Format::Q8_0 => vec![field(2, Order::Bytes, 8)],
        Format::Q4_0 | Format::Iq4Nl => vec![field(2, Order::Folded, 4)],
        Format::Q4_1 => vec![field(4, Order::Folded, 4)],
        Format::Q5_0 => vec![field(6, Order::Folded, 4), Field { above: 4, ..field(2, Order::Bits, 1) }],
        Format::Q5_1 => vec![field(8, Order::Folded, 4), Field { above: 4, ..field(4, Order::Bits, 1) }],
        Format::Iq4Xs => vec![field(8 + 16 * sub, Order::Folded, 4)],
        Format::Mxfp4 => vec![field(1, Order::Folded, 4)],
        Format::Q2K => vec![Field { shift: 2 * run, ..field(16 + 32 * half, Order::Bytes, 2) }],
        Format::Q3K => vec![
            Field { shift: 2 * run, ..field(32 + 32 * half, Order::Bytes, 2) },
            Field { shift: sub, above: 2, ..field(0, Order::Bytes, 1) },
        ],
        Format::Q4K => vec![Field { shift: 4 * (sub % 2), ..field(16 + 32 * (sub / 2), Order::Bytes, 4) }],
        Format::Q5K => vec![
            Field { shift: 4 * (sub % 2), ..field(48 + 32 * (sub / 2), Order::Bytes, 4) },
            Field { shift: sub, above: 4, ..field(16, Order::Bytes, 1) },
        ],
        Format::Q6K => vec![
            Field { shift: 4 * (run / 2), ..field(64 * half + 32 * (run % 2), Order::Bytes, 4) },
            Field { shift: 2 * run, above: 4, ..field(128 + 32 * half, Order::Bytes, 2) },
        ],
    }
}

impl Field {
    /// The byte and the lowest bit of column `i`.
    fn place(&self, i: usize) -> (usize, usize) {
        match self.order {
            Order::Bytes => (self.first + i, self.shift),
            Order::Folded => (self.first + i % 16, self.shift + 4 * (i / 16)),
            Order::Bits => (self.first + i / 8, self.shift + i % 8),
        }
    }

    fn mask(&self) -> u8 {
        (0xFF >> (8 - self.bits)) as u8
    }

    fn read(&self, block: &[u8], codes: &mut [u8; COLUMNS]) {
        for (i, code) in codes.iter_mut().enumerate() {
            let (byte, shift) = self.place(i);
            *code |= (block[byte] >> shift & self.mask()) << self.above;
        }
    }

    fn write(&self, codes: &[u8; COLUMNS], block: &mut [u8]) {
        for (i, code) in codes.iter().enumerate() {
            let (byte, shift) = self.place(i);
            block[byte] |= (code >> self.above & self.mask()) << shift;
        }
    }
}

/// The scales of 32 columns in the order of the plane: those of 256 columns, those of 32. What is behind them is zero.
type ScaleBytes = ([u8; 4], [u8; 8]);

fn scales(format: Format, block: &[u8], sub: usize) -> ScaleBytes {
    let two = |at: usize| [block[at], block[at + 1], 0, 0];
    let four = |at: usize| [block[at], block[at + 1], block[at + 2], block[at + 3]];
    let none = [0; 4];
    let first = |[a, b, c, d]: [u8; 4]| [a, b, c, d, 0, 0, 0, 0];
    match format {
        Format::F32 | Format::I32 | Format::F16 | Format::BF16 | Format::Fp8 | Format::Fp8x128 => (none, first(none)),
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl => (none, first(two(0))),
        Format::Q4_1 | Format::Q5_1 | Format::Int8 | Format::Int8x128 | Format::Int4x32 | Format::Int4x128 => {
            (none, first(four(0)))
        }
        Format::Mxfp4 => {
            let exponent = u32::from(block[0]);
            let half = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
            (none, first(u32::to_le_bytes(half)))
        }
        Format::Nvfp4 => {
            let half = |at: usize| f32::to_le_bytes(f32::from_le_bytes(four(at)) / 2.0);
            let ([a, b, c, d], [e, f, g, h]) = (half(0), half(4));
            (none, [a, b, c, d, e, f, g, h])
        }
        Format::Iq4Xs => {
            let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * sub) & 3;
            let six = block[4 + sub / 2] >> (4 * (sub % 2)) & 15 | (high as u8) << 4;
            (two(0), first([six.wrapping_sub(32), 0, 0, 0]))
        }
        Format::Q4K | Format::Q5K => {
            let packed = &block[4..16];
            let (scale, minimum) = if sub < 4 {
                (packed[sub] & 63, packed[sub + 4] & 63)
            } else {
                let both = packed[sub + 4];
                (both & 15 | packed[sub - 4] >> 6 << 4, both >> 4 | packed[sub] >> 6 << 4)
            };
            (four(0), first([scale, minimum, 0, 0]))
        }
        Format::Q6K => (two(208), first([block[192 + 2 * sub], block[193 + 2 * sub], 0, 0])),
        Format::Q3K => {
            let six = |group: usize| {
                let low = block[96 + group % 8] >> (4 * (group / 8)) & 15;
                (low | (block[104 + group % 4] >> (2 * (group / 4)) & 3) << 4).wrapping_sub(32)
            };
            (two(108), first([six(2 * sub), six(2 * sub + 1), 0, 0]))
        }
        Format::Q2K => {
            let [a, b] = [block[2 * sub], block[2 * sub + 1]];
            (four(80), first([a & 15, b & 15, a >> 4, b >> 4]))
        }
    }
}

/// The inverse of [`scales`]: sets them in a block that has none.
fn set_scales(format: Format, block: &mut [u8], sub: usize, (of_256, of_32): ScaleBytes) {
    let [a, b, c, d, rest @ ..] = of_32;
    match format {
        Format::F32 | Format::I32 | Format::F16 | Format::BF16 | Format::Fp8 | Format::Fp8x128 => {}
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl => block[..2].copy_from_slice(&of_32[..2]),
        Format::Q4_1 | Format::Q5_1 | Format::Int8 | Format::Int8x128 | Format::Int4x32 | Format::Int4x128 => {
            block[..4].copy_from_slice(&of_32[..4]);
        }
        Format::Nvfp4 => {
            let twice = |half: [u8; 4]| f32::to_le_bytes(f32::from_le_bytes(half) * 2.0);
            block[..4].copy_from_slice(&twice([a, b, c, d]));
            block[4..8].copy_from_slice(&twice(rest));
        }
        Format::Mxfp4 => {
            let half = u32::from_le_bytes([a, b, c, d]);
            block[0] = if half < 1 << 23 { (half >> 22) as u8 } else { (half >> 23) as u8 + 1 };
        }
        Format::Iq4Xs => {
            let six = a.wrapping_add(32);
            let high = u16::from_le_bytes([block[2], block[3]]) | u16::from(six >> 4) << (2 * sub);
            block[..2].copy_from_slice(&of_256[..2]);
            block[2..4].copy_from_slice(&high.to_le_bytes());
            block[4 + sub / 2] |= (six & 15) << (4 * (sub % 2));
        }
        Format::Q4K | Format::Q5K => {
            block[..4].copy_from_slice(&of_256);
            let packed = &mut block[4..16];
            if sub < 4 {
                packed[sub] |= a;
                packed[sub + 4] |= b;
            } else {
                packed[sub + 4] = a & 15 | b << 4;
                packed[sub - 4] |= a >> 4 << 6;
                packed[sub] |= b >> 4 << 6;
            }
        }
        Format::Q6K => {
            block[192 + 2 * sub..194 + 2 * sub].copy_from_slice(&of_32[..2]);
            block[208..210].copy_from_slice(&of_256[..2]);
        }
        Format::Q3K => {
            for (group, scale) in [(2 * sub, a), (2 * sub + 1, b)] {
                let six = scale.wrapping_add(32);
                block[96 + group % 8] |= (six & 15) << (4 * (group / 8));
                block[104 + group % 4] |= six >> 4 << (2 * (group / 4));
            }
            block[108..110].copy_from_slice(&of_256[..2]);
        }
        Format::Q2K => {
            block[2 * sub] = a | c << 4;
            block[2 * sub + 1] = b | d << 4;
            block[80..84].copy_from_slice(&of_256);
        }
    }
}

/// Where the parts of a row lie in a unit, block of 32 columns by block.
struct Places {
    layout: Layout,
    planes: [usize; 4],
    row: usize,
}

/// A row's words of 32 columns in the plane of low bits or of high ones.
#[derive(Clone, Copy)]
struct Words {
    /// The first of them in the unit.
    first: usize,
    /// Bits of a column; also how many words there are.
    bits: usize,
    /// How far these bits stand above the lowest one of the code.
    above: usize,
}

impl Places {
    fn words(&self, block: usize) -> [Words; 2] {
        let Layout { low, high, .. } = self.layout;
        let of = |plane: usize, bits: usize, above: usize| Words {
            first: self.planes[plane] + 4 * (block * bits * UNIT_ROWS + self.row),
            bits,
            above,
        };
        [of(0, low, 0), of(1, high, 4)]
    }

    /// Each run of bytes: where it is in the unit, and where in the scales of 256 columns (`true`) or of 32.
    fn scales(&self, block: usize) -> impl Iterator<Item = (usize, bool, Range<usize>)> + use<> {
        let (of_256, of_32) = self.layout.scales.bytes();
        let (width, row) = (self.layout.scales.width(), self.row);
        let group = self.planes[2] + UNIT_ROWS * (block / 8 * (of_256 + 8 * of_32));
        let own = group + UNIT_ROWS * (of_256 + block % 8 * of_32);
        let halves = (0..of_256).step_by(2).map(move |at| (group + UNIT_ROWS * at + 2 * row, true, at..at + 2));
        let others =
            (0..of_32).step_by(width).map(move |at| (own + UNIT_ROWS * at + width * row, false, at..at + width));
        halves.chain(others)
    }
}

impl Words {
    /// Each word's place in the unit, with the column and the lowest bit of each of its parts.
    fn places(self) -> impl Iterator<Item = (usize, impl Iterator<Item = (usize, usize)>)> {
        let Words { first, bits, .. } = self;
        let parts = move |word: usize| {
            let columns = 32 / bits;
            (0..columns).map(move |i| (columns * word + i, bits * (i / 2) + 16 * (i % 2)))
        };
        (0..bits).map(move |word| (first + 4 * UNIT_ROWS * word, parts(word)))
    }

    fn write(self, codes: &[u8; COLUMNS], unit: &mut [u8]) {
        let mask = (1u32 << self.bits) - 1;
        for (place, parts) in self.places() {
            let bits = |(column, shift): (usize, usize)| (u32::from(codes[column]) >> self.above & mask) << shift;
            let word = parts.map(bits).fold(0, |all, bits| all | bits);
            unit[place..place + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn read(self, unit: &[u8], codes: &mut [u8; COLUMNS]) {
        let mask = (1u32 << self.bits) - 1;
        for (place, parts) in self.places() {
            let word = u32::from_le_bytes([unit[place], unit[place + 1], unit[place + 2], unit[place + 3]]);
            parts.for_each(|(column, shift)| codes[column] |= ((word >> shift & mask) << self.above) as u8);
        }
    }
}

/// What is added to Q8_0's integers, so that they are not negative.
fn sign(layout: Layout) -> u8 {
    if layout.low == 8 { 0x80 } else { 0 }
}

/// Puts a row, as the file has it, into its place in a unit, which is zero there.
pub(crate) fn pack(format: Format, blocks: &[u8], unit: &mut [u8], row: usize) {
    let (Some(layout), (values, bytes)) = (Layout::of(format), format.block()) else { return };
    let places = Places { layout, planes: layout.planes(blocks.len() / bytes * values), row };
    let subs = values / COLUMNS;
    let fields: Vec<Vec<Field>> = (0..subs).map(|sub| fields(format, sub)).collect();
    for (number, block) in blocks.chunks_exact(bytes).enumerate() {
        for (sub, fields) in fields.iter().enumerate() {
            let at = number * subs + sub;
            let mut codes = [0; COLUMNS];
            fields.iter().for_each(|field| field.read(block, &mut codes));
            codes.iter_mut().for_each(|code| *code ^= sign(layout));
            places.words(at).into_iter().for_each(|words| words.write(&codes, unit));
            let (of_256, of_32) = scales(format, block, sub);
            for (place, all, run) in places.scales(at) {
                let from: &[u8] = if all { &of_256 } else { &of_32 };
                unit[place..place + run.len()].copy_from_slice(&from[run]);
            }
        }
    }
}

/// The inverse of [`pack`]: replaces the contents of `blocks` by a row of `columns`, as the file has it.
pub(crate) fn unpack(format: Format, unit: &[u8], row: usize, columns: usize, blocks: &mut Vec<u8>) {
    blocks.clear();
    let (Some(layout), (values, bytes)) = (Layout::of(format), format.block()) else { return };
    blocks.resize(columns / values * bytes, 0);
    let places = Places { layout, planes: layout.planes(columns), row };
    let subs = values / COLUMNS;
    for (number, block) in blocks.chunks_exact_mut(bytes).enumerate() {
        for sub in 0..subs {
            let at = number * subs + sub;
            let mut codes = [0; COLUMNS];
            places.words(at).into_iter().for_each(|words| words.read(unit, &mut codes));
            codes.iter_mut().for_each(|code| *code ^= sign(layout));
            fields(format, sub).iter().for_each(|field| field.write(&codes, block));
            let mut found: ScaleBytes = ([0; 4], [0; 8]);
            for (place, all, run) in places.scales(at) {
                let into: &mut [u8] = if all { &mut found.0 } else { &mut found.1 };
                into[run.clone()].copy_from_slice(&unit[place..place + run.len()]);
            }
            set_scales(format, block, sub, found);
        }
    }
}
