//! Vectors of 32-bit words, one lane per row: what the kernel of blocks is written in. Every implementation gives the same bits.
#![allow(unsafe_code)]

/// A vector of words, each of two 16-bit halves.
///
/// # Safety
/// An implementation is used only where the machine has its instructions. Pointers are readable (or writable) for [`Lanes::ROWS`] of what they are of, and
/// need no alignment.
pub(super) trait Lanes: Copy {
    /// Lanes.
    const ROWS: usize;
    /// As many floats.
    type Floats: Copy;
    /// Sixteen 16-bit values to look up.
    type Table: Copy;

    /// Words from memory.
    unsafe fn load(at: *const u8) -> Self;
    /// The same word in each lane.
    unsafe fn splat(word: u32) -> Self;
    /// `self & mask`.
    unsafe fn and(self, mask: Self) -> Self;
    /// `self | high & mask`.
    unsafe fn or_and(self, high: Self, mask: Self) -> Self;
    /// Each half moved `N` bits to the right, or `-N` to the left; zeros come in.
    unsafe fn right<const N: i32>(self) -> Self;
    /// A table.
    unsafe fn table(values: &[i16; 16]) -> Self::Table;
    /// Each half, which is 0 to 15, replaced by the value in that place of the table.
    unsafe fn look_up(self, table: Self::Table) -> Self;
    /// `self + weights.low · x.low + weights.high · x.high`, halves being signed, where `x` is one word for all lanes.
    unsafe fn dot(self, weights: Self, x: *const u32) -> Self;
    /// The words as floats.
    unsafe fn to_floats(self) -> Self::Floats;
    /// The floats whose bits the words are.
    unsafe fn as_floats(self) -> Self::Floats;

    /// The same float in each lane.
    unsafe fn float(value: f32) -> Self::Floats;
    /// Floats from memory.
    unsafe fn floats(at: *const u8) -> Self::Floats;
    /// Floats from halves in memory.
    unsafe fn halves(at: *const u8) -> Self::Floats;
    /// Floats from unsigned bytes.
    unsafe fn bytes(at: *const u8) -> Self::Floats;
    /// Floats from signed bytes.
    unsafe fn signed(at: *const u8) -> Self::Floats;
    /// `a + b`.
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b`.
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Floats to memory.
    unsafe fn store(values: Self::Floats, at: *mut f32);
}

/// Eight lanes in plain code, which compilers make the machine's vectors of.
#[derive(Clone, Copy)]
pub(super) struct Plain([u32; 8]);

impl Plain {
    #[inline(always)]
    fn map(self, f: impl Fn(u32) -> u32) -> Plain {
        Plain(self.0.map(f))
    }

    #[inline(always)]
    unsafe fn read<const N: usize>(at: *const u8, value: impl Fn([u8; N]) -> f32) -> [f32; 8] {
        // SAFETY: the caller's pointer is readable for eight values of N bytes.
        std::array::from_fn(|lane| value(unsafe { at.cast::<[u8; N]>().add(lane).read() }))
    }
}

impl Lanes for Plain {
    const ROWS: usize = 8;
    type Floats = [f32; 8];
    type Table = [u32; 16];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Plain {
        // SAFETY: the pointer is as the trait says.
        let word = |lane| unsafe { at.cast::<[u8; 4]>().add(lane).read() };
        Plain(std::array::from_fn(|lane| u32::from_le_bytes(word(lane))))
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Plain {
        Plain([word; 8])
    }

    #[inline(always)]
    unsafe fn and(self, mask: Plain) -> Plain {
        Plain(std::array::from_fn(|lane| self.0[lane] & mask.0[lane]))
    }

    #[inline(always)]
    unsafe fn or_and(self, high: Plain, mask: Plain) -> Plain {
        Plain(std::array::from_fn(|lane| self.0[lane] | high.0[lane] & mask.0[lane]))
    }

    #[inline(always)]
    unsafe fn right<const N: i32>(self) -> Plain {
        let both = |half: u32| half << 16 | half;
        match N {
            0.. => self.map(|word| word >> N & both(0xFFFF >> N)),
            _ => self.map(|word| word << -N & both(0xFFFF << -N & 0xFFFF)),
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[i16; 16]) -> [u32; 16] {
        values.map(|value| u32::from(value as u16))
    }

    #[inline(always)]
    unsafe fn look_up(self, table: [u32; 16]) -> Plain {
        self.map(|word| table[(word & 15) as usize] | table[(word >> 16 & 15) as usize] << 16)
    }

    #[inline(always)]
    unsafe fn dot(self, weights: Plain, x: *const u32) -> Plain {
        let halves = |word: u32| (i32::from(word as i16), word as i32 >> 16);
        // SAFETY: the pointer is as the trait says.
        let (c, d) = halves(unsafe { x.read_unaligned() });
        Plain(std::array::from_fn(|lane| {
            let (a, b) = halves(weights.0[lane]);
            (self.0[lane] as i32).wrapping_add(a.wrapping_mul(c)).wrapping_add(b.wrapping_mul(d)) as u32
        }))
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> [f32; 8] {
        self.0.map(|word| word as i32 as f32)
    }

    #[inline(always)]
    unsafe fn as_floats(self) -> [f32; 8] {
        self.0.map(f32::from_bits)
    }

    #[inline(always)]
    unsafe fn float(value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn floats(at: *const u8) -> [f32; 8] {
        // SAFETY: the pointer is as the trait says.
        unsafe { Plain::read(at, f32::from_le_bytes) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> [f32; 8] {
        // SAFETY: the pointer is as the trait says.
        unsafe { Plain::read(at, |bytes| half::f16::from_le_bytes(bytes).to_f32_const()) }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> [f32; 8] {
        // SAFETY: the pointer is as the trait says.
        unsafe { Plain::read(at, |[byte]| f32::from(byte)) }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> [f32; 8] {
        // SAFETY: the pointer is as the trait says.
        unsafe { Plain::read(at, |[byte]| f32::from(byte as i8)) }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn multiply(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn store(values: [f32; 8], at: *mut f32) {
        // SAFETY: the caller's pointer is writable for eight floats.
        unsafe { at.cast::<[f32; 8]>().write_unaligned(values) }
    }
}
