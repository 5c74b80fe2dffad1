//! The inner kernel: four weight rows against one to three activation rows.
//!
//! A panel is four rows of a matrix, sixteen columns of each in turn, so that reading it is one stream. Each product is one chain of
//! sums in eight lanes, whatever the number of activation rows: a prompt and a decode step give the same bits.
#![allow(unsafe_code)]

use fusec::ir::Format;

use super::blocks::{self, Coded, UNIT_ROWS, is_of_blocks};
use super::math::{Isa, LANES, sum_lanes};

/// Rows of a panel.
pub(crate) const PANEL_ROWS: usize = 4;
/// Columns of one row that lie together in a panel.
pub(crate) const GROUP: usize = 16;
/// The most activation rows that one call takes.
pub(crate) const TILE_TOKENS: usize = 3;

/// A row of activations as a product reads it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Operand<'a> {
    pub x: &'a [f32],
    /// The same in 16 bits, where a weight is of quantised blocks.
    pub coded: Coded<'a>,
}

/// Results of some rows of activations and the rows of a unit.
pub(crate) type Sums = [[f32; UNIT_ROWS]; blocks::TOKENS];

/// Bytes of a unit of `rows` rows.
pub(crate) fn unit_bytes(format: Format, columns: usize, rows: usize) -> usize {
    match is_of_blocks(format) {
        true => blocks::unit_bytes(format, columns),
        false => rows / PANEL_ROWS * panel_bytes(format, columns),
    }
}

/// `out[m][r] = unit row r · x[m]` for each of `x`, which are one to [`blocks::TOKENS`] rows of equal length. A unit that is not of quantised blocks may
/// have fewer rows.
pub(crate) fn multiply_unit(isa: Isa, format: Format, unit: &[u8], x: &[Operand<'_>], out: &mut Sums) {
    if is_of_blocks(format) {
        let mut coded = [Coded::default(); blocks::TOKENS];
        coded.iter_mut().zip(x).for_each(|(coded, x)| *coded = x.coded);
        return blocks::multiply(isa, format, unit, &coded[..x.len()], out);
    }
    let mut sums = [[0.0; PANEL_ROWS]; TILE_TOKENS];
    for (panel, bytes) in unit.chunks_exact(panel_bytes(format, x[0].x.len())).enumerate() {
        for (x, out) in x.chunks(TILE_TOKENS).zip(out.chunks_mut(TILE_TOKENS)) {
            let mut rows: [&[f32]; TILE_TOKENS] = [&[]; TILE_TOKENS];
            rows.iter_mut().zip(x).for_each(|(row, x)| *row = x.x);
            multiply(isa, format, bytes, &rows[..x.len()], &mut sums);
            for (out, sums) in out.iter_mut().zip(&sums).take(x.len()) {
                out[panel * PANEL_ROWS..][..PANEL_ROWS].copy_from_slice(sums);
            }
        }
    }
}

/// What lowering has refused.
pub(crate) const NO_PANELS: &str = "panels are of f16, bf16, f32 or fp8";

/// Bytes of a group of one row. One of fp8 has an `f32` before its floats, 256 times their scale: [`fp8_group`].
pub(crate) fn group_bytes(format: Format) -> usize {
    match format {
        Format::Fp8 | Format::Fp8x128 => 4 + GROUP,
        Format::F16 | Format::BF16 => 2 * GROUP,
        _ => 4 * GROUP,
    }
}

/// Bytes of a panel of matrices with `columns` columns.
pub(crate) fn panel_bytes(format: Format, columns: usize) -> usize {
    columns.div_ceil(GROUP) * PANEL_ROWS * group_bytes(format)
}

/// Bits of an e4m3 float without its sign; all of them: not a number.
const FP8_SIZE: u8 = 0x7F;

/// Writes a group of fp8. A half whose upper bits are those of an e4m3 float is a 256th of it, which is how it is widened; one that is not a number makes the group so.
pub(crate) fn fp8_group(scale: f32, codes: &[u8; GROUP], group: &mut [u8]) {
    let finite = codes.iter().all(|code| code & FP8_SIZE != FP8_SIZE);
    let scale = if finite { 256.0 * scale } else { f32::NAN };
    group[..4].copy_from_slice(&scale.to_le_bytes());
    group[4..4 + GROUP].copy_from_slice(codes);
}

/// Where in its group of sixteen a column is stored. bf16 pairs column `i` with column `i + 8`, so that widening the lower and the
/// upper half of each 32-bit word gives eight consecutive columns each.
pub(crate) fn slot(format: Format, column: usize) -> usize {
    match format {
        Format::BF16 => column % LANES * 2 + column / LANES,
        _ => column,
    }
}

/// `out[m][r] = panel row r · x[m]` for each of `x`, which are one to [`TILE_TOKENS`] rows of equal length.
///
/// `panel` is as long as [`panel_bytes`] says for that length.
fn multiply(isa: Isa, format: Format, panel: &[u8], x: &[&[f32]], out: &mut [[f32; PANEL_ROWS]; TILE_TOKENS]) {
    assert_eq!(panel.len(), panel_bytes(format, x[0].len()));
    assert!(x.iter().all(|row| row.len() == x[0].len()));
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `Isa::detect` found AVX2, FMA and F16C; the panel's length was checked above.
        unsafe {
            match (format, x) {
                (Format::BF16, &[a]) => avx2::tile::<{ avx2::BF16 }, 1>(panel, [a], out),
                (Format::BF16, &[a, b]) => avx2::tile::<{ avx2::BF16 }, 2>(panel, [a, b], out),
                (Format::BF16, &[a, b, c]) => avx2::tile::<{ avx2::BF16 }, 3>(panel, [a, b, c], out),
                (Format::F16, &[a]) => avx2::tile::<{ avx2::F16 }, 1>(panel, [a], out),
                (Format::F16, &[a, b]) => avx2::tile::<{ avx2::F16 }, 2>(panel, [a, b], out),
                (Format::F16, &[a, b, c]) => avx2::tile::<{ avx2::F16 }, 3>(panel, [a, b, c], out),
                (Format::F32, &[a]) => avx2::tile::<{ avx2::F32 }, 1>(panel, [a], out),
                (Format::F32, &[a, b]) => avx2::tile::<{ avx2::F32 }, 2>(panel, [a, b], out),
                (Format::F32, &[a, b, c]) => avx2::tile::<{ avx2::F32 }, 3>(panel, [a, b, c], out),
                (Format::Fp8 | Format::Fp8x128, &[a]) => avx2::tile::<{ avx2::FP8 }, 1>(panel, [a], out),
                (Format::Fp8 | Format::Fp8x128, &[a, b]) => avx2::tile::<{ avx2::FP8 }, 2>(panel, [a, b], out),
                (Format::Fp8 | Format::Fp8x128, &[a, b, c]) => avx2::tile::<{ avx2::FP8 }, 3>(panel, [a, b, c], out),
                (Format::F16 | Format::BF16 | Format::F32 | Format::Fp8 | Format::Fp8x128, _) => {
                    unreachable!("a tile has one to {TILE_TOKENS} rows")
                }
                _ => unreachable!("{NO_PANELS}"),
            }
        }
        return;
    }
    let _ = isa;
    portable(format, panel, x, out);
}

/// The elements of one row's group, in order of their columns. `bytes` is that group.
pub(crate) fn widen_group(format: Format, bytes: &[u8]) -> [f32; GROUP] {
    let half_word = |i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    let single = |i: usize| f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
    let fp8 =
        |code: u8| half::f16::from_bits(u16::from(code & FP8_SIZE) << 7 | u16::from(code & !FP8_SIZE) << 8).to_f32();
    std::array::from_fn(|column| match format {
        Format::BF16 => f32::from_bits((half_word(slot(format, column)) as u32) << 16),
        Format::F16 => half::f16::from_bits(half_word(column)).to_f32(),
        Format::F32 => single(column),
        Format::Fp8 | Format::Fp8x128 => fp8(bytes[4 + column]) * single(0),
        _ => unreachable!("{NO_PANELS}"),
    })
}

fn portable(format: Format, panel: &[u8], x: &[&[f32]], out: &mut [[f32; PANEL_ROWS]; TILE_TOKENS]) {
    let group_bytes = group_bytes(format);
    let mut lanes = [[[0.0f32; LANES]; PANEL_ROWS]; TILE_TOKENS];
    for (group, bytes) in panel.chunks_exact(PANEL_ROWS * group_bytes).enumerate() {
        let weights: [[f32; GROUP]; PANEL_ROWS] =
            std::array::from_fn(|row| widen_group(format, &bytes[row * group_bytes..][..group_bytes]));
        for (row_of_x, lanes) in x.iter().zip(&mut lanes) {
            let rest = &row_of_x[group * GROUP..];
            let mut columns = [0.0; GROUP];
            let count = rest.len().min(GROUP);
            columns[..count].copy_from_slice(&rest[..count]);
            for (weights, lanes) in weights.iter().zip(lanes) {
                for lane in 0..LANES {
                    lanes[lane] += weights[lane] * columns[lane];
                    lanes[lane] += weights[lane + LANES] * columns[lane + LANES];
                }
            }
        }
    }
    for (out, lanes) in out.iter_mut().zip(&lanes).take(x.len()) {
        for (out, lanes) in out.iter_mut().zip(lanes) {
            *out = sum_lanes(*lanes);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{GROUP, LANES, PANEL_ROWS, TILE_TOKENS};

    pub const BF16: u8 = 0;
    pub const F16: u8 = 1;
    pub const F32: u8 = 2;
    pub const FP8: u8 = 3;

    /// How far ahead of its reads a tile prefetches: the panels of a thread follow each other in memory.
    const PREFETCH_BYTES: usize = 1024;

    const fn group_bytes(kind: u8) -> usize {
        match kind {
            F32 => 4 * GROUP,
            FP8 => 4 + GROUP,
            _ => 2 * GROUP,
        }
    }

    /// # Safety
    /// The CPU has AVX2, FMA and F16C; `panel` holds `x[0].len()` columns, rounded up to whole groups; all of `x` are of one length.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn tile<const KIND: u8, const M: usize>(
        panel: &[u8],
        x: [&[f32]; M],
        out: &mut [[f32; PANEL_ROWS]; TILE_TOKENS],
    ) {
        let columns = x[0].len();
        let whole = columns / GROUP;
        let mut sums = [[_mm256_setzero_ps(); M]; PANEL_ROWS];
        let mut weights = panel.as_ptr();
        let mut starts: [*const f32; M] = std::array::from_fn(|m| x[m].as_ptr());
        for _ in 0..whole {
            // SAFETY: `whole` groups are in the panel and in each row of `x`; a prefetch may name any address.
            unsafe {
                if M == 1 {
                    let ahead = weights.wrapping_add(PREFETCH_BYTES).cast::<i8>();
                    for line in 0..(PANEL_ROWS * group_bytes(KIND)).div_ceil(64) {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line));
                    }
                }
                group::<KIND, M>(weights, starts, &mut sums);
                weights = weights.add(PANEL_ROWS * group_bytes(KIND));
                starts = starts.map(|start| start.add(GROUP));
            }
        }
        let rest = columns % GROUP;
        if rest > 0 {
            let mut tails = [[0.0f32; GROUP]; M];
            for (tail, x) in tails.iter_mut().zip(x) {
                tail[..rest].copy_from_slice(&x[columns - rest..]);
            }
            // SAFETY: the panel's last group is whole, filled up with zeros, and so are the tails.
            unsafe { group::<KIND, M>(weights, std::array::from_fn(|m| tails[m].as_ptr()), &mut sums) };
        }
        for (m, out) in out.iter_mut().enumerate().take(M) {
            *out = sum_rows(sums.map(|row| row[m]));
        }
    }

    /// One group of all four rows against each of `x`.
    ///
    /// # Safety
    /// A panel's group can be read at `weights` and [`GROUP`] values at each of `x`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group<const KIND: u8, const M: usize>(
        weights: *const u8,
        x: [*const f32; M],
        sums: &mut [[__m256; M]; PANEL_ROWS],
    ) {
        // SAFETY: as this function asks.
        unsafe {
            for (row, sums) in sums.iter_mut().enumerate() {
                let (low, high) = widen::<KIND>(weights.add(row * group_bytes(KIND)));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm256_fmadd_ps(low, _mm256_loadu_ps(x), *sum);
                    *sum = _mm256_fmadd_ps(high, _mm256_loadu_ps(x.add(LANES)), *sum);
                }
            }
        }
    }

    /// The first and the second eight columns of a row's group.
    ///
    /// # Safety
    /// A group can be read at `weights`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen<const KIND: u8>(weights: *const u8) -> (__m256, __m256) {
        // SAFETY: as this function asks; the loads need no alignment.
        unsafe {
            match KIND {
                BF16 => {
                    let pairs = _mm256_loadu_si256(weights.cast());
                    let low = _mm256_slli_epi32::<16>(pairs);
                    let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
                    (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
                }
                F16 => {
                    let low = _mm_loadu_si128(weights.cast());
                    let high = _mm_loadu_si128(weights.add(16).cast());
                    (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
                }
                F32 => (_mm256_loadu_ps(weights.cast()), _mm256_loadu_ps(weights.add(32).cast())),
                FP8 => {
                    let scale = _mm256_set1_ps(weights.cast::<f32>().read_unaligned());
                    // Spread by its sign and moved, a code has its sign in both upper bits: the second is not the exponent's.
                    let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(4).cast()));
                    let halves = _mm256_and_si256(_mm256_slli_epi16::<7>(codes), _mm256_set1_epi16(!0x4000));
                    let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
                    let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
                    (_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale))
                }
                _ => unreachable!("a tile is of one of these kinds"),
            }
        }
    }

    /// The sum of the lanes of each row.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sum_rows(rows: [__m256; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
        let sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        let mut out = [0.0; PANEL_ROWS];
        // SAFETY: `out` holds four values.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        out
    }
}
