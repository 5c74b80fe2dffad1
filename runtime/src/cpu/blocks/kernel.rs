//! The kernel: sixteen quantised rows against activations in 16 bits.
//!
//! Of 32 columns, codes times activations are summed as integers, exactly. Then the sum is made a float and multiplied by both scales, and such
//! products are added block after block. Integers are exact and nothing is contracted, so all instruction sets give the same bits.
#![allow(unsafe_code)]

use super::codes::{Block, Coded};
use super::lanes::Lanes;
use super::layout::{Layout, Scales, UNIT_ROWS};
use crate::blocks::{BELOW_SCALE, ZERO_POINT};

/// How far ahead of its reads a product of few rows asks for weights: the units of a thread follow each other in memory.
const PREFETCH_BYTES: usize = 16 << 10;

/// Formats by number, for a parameter of the kernel that is known when it is compiled.
pub(super) trait Known {
    /// The format's layout.
    const LAYOUT: Layout;
}

/// Runs an expression for each of the sixteen steps of 32 columns, whose number is then a constant.
macro_rules! for_each_step {
    (|$step:ident| $body:expr) => {
        for_each_step!(@ $step $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $step:ident $body:expr; $($number:literal)*) => {
        [$({ const $step: usize = $number; $body }),*]
    };
}

/// `out[m][r] = unit row r · x[m]`.
///
/// # Safety
/// The machine has the instructions of `L`; `unit` is a unit of `K`'s layout with as many columns as each of `x`.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, K: Known, const M: usize>(
    unit: &[u8],
    x: [Coded<'_>; M],
    out: &mut [[f32; UNIT_ROWS]],
) {
    // SAFETY: as this function asks; the planes of a unit hold what is read of them, see `Layout::planes`.
    unsafe {
        let blocks = x[0].blocks.len();
        let [_, high, scales, _] = K::LAYOUT.planes(32 * blocks);
        let (per_256, per_32) = K::LAYOUT.scales.bytes();
        let (low_bytes, high_bytes) = (64 * K::LAYOUT.low, 64 * K::LAYOUT.high);
        // A machine's vector may have fewer lanes than a unit has rows.
        for part in 0..UNIT_ROWS / L::ROWS {
            let row = part * L::ROWS;
            let mut low = unit.as_ptr().add(4 * row);
            let mut high = unit.as_ptr().add(high + 4 * row);
            let mut scale = unit.as_ptr().add(scales);
            let mut super_scale = scale;
            let mut sums = [L::float(0.0); M];
            for block in 0..blocks {
                if per_256 > 0 && block % 8 == 0 {
                    super_scale = scale;
                    scale = scale.add(UNIT_ROWS * per_256);
                }
                if M <= 4 && part == 0 {
                    // All planes of a unit later, evenly.
                    let ahead = unit.as_ptr().wrapping_add(PREFETCH_BYTES + unit.len() / blocks * block);
                    prefetch(ahead, unit.len() / blocks);
                }
                let weights = steps::<L, K>(low, high);
                let factors = Factors::<L>::load(K::LAYOUT.scales, super_scale, scale, row);
                for (sum, x) in sums.iter_mut().zip(&x) {
                    let &Block { scale, sum: whole, first, weighted } = &x.blocks[block];
                    let codes = x.codes.as_ptr().add(32 * block).cast::<u32>();
                    let start = |sum: i32| L::splat(sum.wrapping_mul(-(K::LAYOUT.offset as i32)) as u32);
                    let products = match factors.second {
                        None => {
                            let sum = dot::<L, 0, 16>(start(whole), &weights, codes);
                            L::multiply(sum.to_floats(), L::multiply(factors.first, L::float(scale)))
                        }
                        Some(second) => {
                            let low = dot::<L, 0, 8>(start(first), &weights, codes);
                            let high = dot::<L, 8, 16>(start(whole - first), &weights, codes);
                            L::add(
                                L::multiply(low.to_floats(), L::multiply(factors.first, L::float(scale))),
                                L::multiply(high.to_floats(), L::multiply(second, L::float(scale))),
                            )
                        }
                    };
                    *sum = L::add(*sum, products);
                    let minimum = match factors.minimum {
                        None => continue,
                        Some((all, None)) => L::multiply(all, L::float(weighted)),
                        Some((low, Some(high))) => L::add(
                            L::multiply(low, L::float(scale * first as f32)),
                            L::multiply(high, L::float(scale * (whole - first) as f32)),
                        ),
                    };
                    *sum = L::add(*sum, minimum);
                }
                low = low.add(low_bytes);
                high = high.add(high_bytes);
                scale = scale.add(UNIT_ROWS * per_32);
            }
            for (sum, out) in sums.iter().zip(out.iter_mut()) {
                L::store(*sum, out.as_mut_ptr().add(row));
            }
        }
    }
}

/// Adds the products of steps `FROM` to `TO`, without the latter, to `sum`.
///
/// # Safety
/// As [`multiply`]; `codes` are the activations of 32 columns.
#[inline(always)]
unsafe fn dot<L: Lanes, const FROM: usize, const TO: usize>(mut sum: L, weights: &[L; 16], codes: *const u32) -> L {
    for_each_step!(|STEP| if (FROM..TO).contains(&STEP) {
        // SAFETY: as this function asks.
        sum = unsafe { sum.dot(weights[STEP], codes.add(STEP)) };
    });
    sum
}

/// What 32 columns of the rows are multiplied by. Of formats with a scale per 16 columns there are two.
struct Factors<L: Lanes> {
    first: L::Floats,
    second: Option<L::Floats>,
    /// To be added once per activation.
    minimum: Option<(L::Floats, Option<L::Floats>)>,
}

impl<L: Lanes> Factors<L> {
    /// # Safety
    /// As [`multiply`]; the pointers are to the scales of 256 columns and of 32, `row` is the vector's first row.
    #[inline(always)]
    unsafe fn load(scales: Scales, super_scale: *const u8, scale: *const u8, row: usize) -> Factors<L> {
        // SAFETY: as this function asks.
        unsafe {
            let of = |first| Factors { first, second: None, minimum: None };
            let d = || L::halves(super_scale.add(2 * row));
            let negative_minimum = || L::multiply(L::halves(super_scale.add(2 * (UNIT_ROWS + row))), L::float(-1.0));
            let bytes = |place: usize| L::bytes(scale.add(UNIT_ROWS * place + row));
            let signed = |place: usize| L::signed(scale.add(UNIT_ROWS * place + row));
            match scales {
                Scales::Half => of(L::halves(scale.add(2 * row))),
                Scales::HalfMinimum => {
                    let minimum = L::halves(scale.add(2 * (UNIT_ROWS + row)));
                    Factors { minimum: Some((minimum, None)), ..of(L::halves(scale.add(2 * row))) }
                }
                Scales::Float => of(L::floats(scale.add(4 * row))),
                Scales::FloatZero => {
                    let word = L::load(scale.add(4 * row));
                    let first = word.and(L::splat(!BELOW_SCALE)).as_floats();
                    let zero = L::multiply(word.and(L::splat(ZERO_POINT)).to_floats(), L::float(-1.0));
                    Factors { minimum: Some((L::multiply(first, zero), None)), ..of(first) }
                }
                Scales::Float16 => {
                    let second = L::floats(scale.add(4 * (UNIT_ROWS + row)));
                    Factors { second: Some(second), ..of(L::floats(scale.add(4 * row))) }
                }
                Scales::Signed => of(L::multiply(d(), signed(0))),
                Scales::BytesMinimum => {
                    let minimum = L::multiply(negative_minimum(), bytes(1));
                    Factors { minimum: Some((minimum, None)), ..of(L::multiply(d(), bytes(0))) }
                }
                Scales::Signed16 => {
                    let d = d();
                    Factors { second: Some(L::multiply(d, signed(1))), ..of(L::multiply(d, signed(0))) }
                }
                Scales::BytesMinimum16 => {
                    let (d, minimum) = (d(), negative_minimum());
                    Factors {
                        first: L::multiply(d, bytes(0)),
                        second: Some(L::multiply(d, bytes(1))),
                        minimum: Some((L::multiply(minimum, bytes(2)), Some(L::multiply(minimum, bytes(3))))),
                    }
                }
            }
        }
    }
}

/// The codes of 32 columns as signed 16-bit integers, two columns a vector.
///
/// # Safety
/// As [`multiply`]; the pointers are to the vector's first row in the planes.
#[inline(always)]
unsafe fn steps<L: Lanes, K: Known>(low: *const u8, high: *const u8) -> [L; 16] {
    const LINE: usize = 4 * UNIT_ROWS;
    // SAFETY: as this function asks.
    unsafe {
        if K::LAYOUT.low == 8 {
            let mask = L::splat(0x00FF_00FF);
            return for_each_step!(|STEP| {
                let word = L::load(low.add(LINE * (STEP / 2)));
                if STEP.is_multiple_of(2) { word.and(mask) } else { word.right::<8>() }
            });
        }
        let mask = L::splat(0x000F_000F);
        let codes: [L; 16] = for_each_step!(|STEP| {
            const BITS: i32 = 4 * (STEP as i32 % 4);
            let moved = L::load(low.add(LINE * (STEP / 4))).right::<BITS>();
            if BITS == 12 { moved } else { moved.and(mask) }
        });
        if let Some(table) = K::LAYOUT.table {
            let table = L::table(table);
            return for_each_step!(|STEP| codes[STEP].look_up(table));
        }
        match K::LAYOUT.high {
            0 => codes,
            1 => {
                let (bits, mask) = (L::load(high), L::splat(0x0010_0010));
                for_each_step!(|STEP| codes[STEP].or_and(bits.right::<{ STEP as i32 - 4 }>(), mask))
            }
            _ => {
                let mask = L::splat(0x0030_0030);
                for_each_step!(|STEP| {
                    let bits = L::load(high.add(LINE * (STEP / 8)));
                    codes[STEP].or_and(bits.right::<{ 2 * (STEP as i32 % 8) - 4 }>(), mask)
                })
            }
        }
    }
}

/// Asks for memory that will be read soon. Any address may be named.
#[inline(always)]
fn prefetch(at: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..bytes.div_ceil(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that a program sees, and x86-64 always has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64 * line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, bytes);
}
