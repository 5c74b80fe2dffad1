//! How units hold quantised rows, bit by bit.
//!
//! A unit is sixteen rows. It has three planes, each 32 columns after 32 columns: the low bits of the codes, their high bits, the scales. In the first
//! two, each row has a 32-bit word in its turn of sixteen, so that a vector of words is a vector of rows. Halves of a word hold even and odd columns:
//! two columns of a row are one step of a product.
//!
//! | plane | a row's words of 32 columns |
//! | --- | --- |
//! | low, 4 bits | four, of 8 columns: bits 4t to 4t + 3 of the lower half are column 2t, of the upper half column 2t + 1 |
//! | low, 8 bits | eight, of 4 columns: bytes are columns 0, 2, 1, 3 |
//! | high, 1 bit | one: bit t of the lower half is column 2t, of the upper half column 2t + 1 |
//! | high, 2 bits | two, of 16 columns: bits 2t and 2t + 1 in the same way |
//!
//! Codes and scales keep the bits that they have in the file, but for the integers of Q8_0 and int8, which are 128 more, and for the scales of Q3_K, MXFP4 and
//! NVFP4, which are written as the signed integer and as half the float that they stand for.

use fusec::ir::Format;

/// Rows of a unit.
pub(crate) const UNIT_ROWS: usize = 16;
/// Columns that share a scale of activations.
pub(crate) const COLUMNS: usize = 32;

/// How a format's codes become values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bits of a code in the plane of low bits: 4 or 8.
    pub low: usize,
    /// Those above them: 0, 1 or 2.
    pub high: usize,
    /// What is taken from a code.
    pub offset: u32,
    /// What codes stand for, where it is not themselves.
    pub table: Option<&'static [i16; 16]>,
    /// What codes are multiplied by.
    pub scales: Scales,
}

/// The plane of scales, per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// A half per 32 columns.
    Half,
    /// A half, and a half to be added.
    HalfMinimum,
    /// A float.
    Float,
    /// A float with a zero point in its lowest bits: [`crate::blocks::scale_and_zero`].
    FloatZero,
    /// A float per 16 columns.
    Float16,
    /// Per 256 columns a half; per 32 a signed byte that multiplies it.
    Signed,
    /// Per 256 columns two halves; per 32 a byte that multiplies the first, and one that multiplies the second to be taken away.
    BytesMinimum,
    /// Per 256 columns a half; per 16 a signed byte.
    Signed16,
    /// Per 256 columns two halves; per 16 two bytes.
    BytesMinimum16,
}

impl Scales {
    /// Bytes of one of those per 32 columns.
    pub const fn width(self) -> usize {
        match self {
            Scales::Half | Scales::HalfMinimum => 2,
            Scales::Float | Scales::FloatZero | Scales::Float16 => 4,
            Scales::Signed | Scales::BytesMinimum | Scales::Signed16 | Scales::BytesMinimum16 => 1,
        }
    }

    /// Bytes of a row per 256 columns, and then per 32.
    pub const fn bytes(self) -> (usize, usize) {
        match self {
            Scales::Half => (0, 2),
            Scales::HalfMinimum | Scales::Float | Scales::FloatZero => (0, 4),
            Scales::Float16 => (0, 8),
            Scales::Signed => (2, 1),
            Scales::BytesMinimum => (4, 2),
            Scales::Signed16 => (2, 2),
            Scales::BytesMinimum16 => (4, 4),
        }
    }
}

/// The values of IQ4_NL's and IQ4_XS's codes.
const TABLE: [i16; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of MXFP4's and NVFP4's.
const TWICE: [i16; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Layout {
    /// The layout of a format; `None` where products read it otherwise.
    pub const fn of(format: Format) -> Option<Layout> {
        let plain = Layout { low: 4, high: 0, offset: 0, table: None, scales: Scales::Half };
        Some(match format {
            Format::F32 | Format::I32 | Format::F16 | Format::BF16 | Format::Fp8 | Format::Fp8x128 => return None,
            Format::Q8_0 => Layout { low: 8, offset: 128, ..plain },
            Format::Q4_0 => Layout { offset: 8, ..plain },
            Format::Q4_1 => Layout { scales: Scales::HalfMinimum, ..plain },
            Format::Q5_0 => Layout { high: 1, offset: 16, ..plain },
            Format::Q5_1 => Layout { high: 1, scales: Scales::HalfMinimum, ..plain },
            Format::Q2K => Layout { scales: Scales::BytesMinimum16, ..plain },
            Format::Q3K => Layout { offset: 4, scales: Scales::Signed16, ..plain },
            Format::Q4K => Layout { scales: Scales::BytesMinimum, ..plain },
            Format::Q5K => Layout { high: 1, scales: Scales::BytesMinimum, ..plain },
            Format::Q6K => Layout { high: 2, offset: 32, scales: Scales::Signed16, ..plain },
            Format::Iq4Nl => Layout { table: Some(&TABLE), ..plain },
            Format::Iq4Xs => Layout { table: Some(&TABLE), scales: Scales::Signed, ..plain },
            Format::Mxfp4 => Layout { table: Some(&TWICE), scales: Scales::Float, ..plain },
            Format::Int8 | Format::Int8x128 => Layout { low: 8, offset: 128, scales: Scales::Float, ..plain },
            Format::Int4x32 | Format::Int4x128 => Layout { scales: Scales::FloatZero, ..plain },
            Format::Nvfp4 => Layout { table: Some(&TWICE), scales: Scales::Float16, ..plain },
        })
    }

    /// Where the planes begin, and where the last one ends, in a unit of so many columns.
    pub const fn planes(self, columns: usize) -> [usize; 4] {
        let blocks = columns / COLUMNS;
        let low = blocks * UNIT_ROWS * COLUMNS * self.low / 8;
        let high = blocks * UNIT_ROWS * COLUMNS * self.high / 8;
        let (per_256, per_32) = self.scales.bytes();
        let scales = UNIT_ROWS * (blocks.div_ceil(8) * per_256 + blocks * per_32);
        [0, low, low + high, low + high + scales]
    }

    /// Bytes of a unit.
    pub const fn unit_bytes(self, columns: usize) -> usize {
        self.planes(columns)[3].next_multiple_of(64)
    }
}
