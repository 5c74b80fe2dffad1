//! Quantised weights as products read them: sixteen rows together, their integers and scales as the file has them.
#![allow(unsafe_code)]

mod codes;
mod kernel;
mod lanes;
mod layout;
mod repack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use fusec::ir::Format;

use super::math::Isa;
pub(crate) use codes::{Coded, HEAD, coded_floats, encode_blocks};
use kernel::Known;
use layout::Layout;
pub(crate) use layout::{COLUMNS, UNIT_ROWS};
pub(crate) use repack::{pack, unpack};

/// The most rows of activations that one call takes.
pub(crate) const TOKENS: usize = 8;

/// Whether a format is one of blocks of integers, which products take with activations in 16 bits.
pub(crate) fn is_of_blocks(format: Format) -> bool {
    Layout::of(format).is_some()
}

/// Bytes of a unit of matrices with `columns` columns; 0 for formats that are not of such blocks.
pub(crate) fn unit_bytes(format: Format, columns: usize) -> usize {
    Layout::of(format).map_or(0, |layout| layout.unit_bytes(columns))
}

/// `out[m][r] = unit row r · x[m]` for each of `x`, which are one to [`TOKENS`] rows of equal length.
pub(crate) fn multiply(isa: Isa, format: Format, unit: &[u8], x: &[Coded<'_>], out: &mut [[f32; UNIT_ROWS]; TOKENS]) {
    let columns = layout::COLUMNS * x[0].blocks.len();
    assert_eq!(unit.len(), unit_bytes(format, columns));
    assert!(x.iter().all(|row| row.blocks.len() == x[0].blocks.len() && row.codes.len() == columns));
    match format {
        Format::Q8_0 => of::<Q8_0>(isa, unit, x, out),
        Format::Q4_0 => of::<Q4_0>(isa, unit, x, out),
        Format::Q4_1 => of::<Q4_1>(isa, unit, x, out),
        Format::Q5_0 => of::<Q5_0>(isa, unit, x, out),
        Format::Q5_1 => of::<Q5_1>(isa, unit, x, out),
        Format::Q2K => of::<Q2K>(isa, unit, x, out),
        Format::Q3K => of::<Q3K>(isa, unit, x, out),
        Format::Q4K => of::<Q4K>(isa, unit, x, out),
        Format::Q5K => of::<Q5K>(isa, unit, x, out),
        Format::Q6K => of::<Q6K>(isa, unit, x, out),
        Format::Iq4Nl => of::<Iq4Nl>(isa, unit, x, out),
        Format::Iq4Xs => of::<Iq4Xs>(isa, unit, x, out),
        Format::Mxfp4 => of::<Mxfp4>(isa, unit, x, out),
        Format::Int8 | Format::Int8x128 => of::<Int8>(isa, unit, x, out),
        Format::Int4x32 | Format::Int4x128 => of::<Int4x32>(isa, unit, x, out),
        Format::Nvfp4 => of::<Nvfp4>(isa, unit, x, out),
        Format::F32 | Format::I32 | Format::F16 | Format::BF16 | Format::Fp8 | Format::Fp8x128 => {
            unreachable!("units are of formats of blocks")
        }
    }
}

macro_rules! known {
    ($($name:ident),*) => {$(
        struct $name;

        impl Known for $name {
            const LAYOUT: Layout = Layout::of(Format::$name).expect("it is a format of blocks");
        }
    )*};
}
known!(Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs, Mxfp4, Int8, Int4x32, Nvfp4);

/// Where some rows of activations begin, and how many the kernel takes at a time.
fn of<K: Known>(isa: Isa, unit: &[u8], x: &[Coded<'_>], out: &mut [[f32; UNIT_ROWS]; TOKENS]) {
    let mut first = 0;
    while first < x.len() {
        let rest = &x[first..];
        let out = &mut out[first..];
        // SAFETY: `multiply` has checked the sizes, `Isa` what the machine has.
        first += unsafe {
            match rest {
                [a, b, c, d, e, f, g, h, ..] => by_isa::<K, 8>(isa, unit, [*a, *b, *c, *d, *e, *f, *g, *h], out),
                [a, b, c, d, ..] => by_isa::<K, 4>(isa, unit, [*a, *b, *c, *d], out),
                [a, b, ..] => by_isa::<K, 2>(isa, unit, [*a, *b], out),
                [a, ..] => by_isa::<K, 1>(isa, unit, [*a], out),
                [] => return,
            }
        };
    }
}

/// Returns how many rows it has multiplied.
///
/// # Safety
/// As [`kernel::multiply`].
unsafe fn by_isa<K: Known, const M: usize>(
    isa: Isa,
    unit: &[u8],
    x: [Coded<'_>; M],
    out: &mut [[f32; UNIT_ROWS]],
) -> usize {
    // SAFETY: as this function asks; `isa` says which instructions there are.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_avx512() {
                in_avx512::<K, M>(unit, x, out);
                return M;
            }
            if isa.has_avx2() {
                in_avx2::<K, M>(unit, x, out);
                return M;
            }
        }
        let _ = isa;
        kernel::multiply::<lanes::Plain, K, M>(unit, x, out);
        M
    }
}

/// # Safety
/// As [`kernel::multiply`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn in_avx512<K: Known, const M: usize>(unit: &[u8], x: [Coded<'_>; M], out: &mut [[f32; UNIT_ROWS]]) {
    // SAFETY: as this function asks.
    unsafe { kernel::multiply::<x86::Avx512, K, M>(unit, x, out) }
}

/// # Safety
/// As [`kernel::multiply`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn in_avx2<K: Known, const M: usize>(unit: &[u8], x: [Coded<'_>; M], out: &mut [[f32; UNIT_ROWS]]) {
    // SAFETY: as this function asks.
    unsafe { kernel::multiply::<x86::Avx2, K, M>(unit, x, out) }
}
