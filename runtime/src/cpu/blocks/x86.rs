//! The lanes of AVX2 and of AVX-512.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Eight rows: AVX2 and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256i);

/// Sixteen rows: AVX-512 F, BW and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512i);

impl Lanes for Avx2 {
    const ROWS: usize = 8;
    type Floats = __m256;
    type Table = __m256i;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Avx2 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { Avx2(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Avx2 {
        // SAFETY: the instructions are there.
        unsafe { Avx2(_mm256_set1_epi32(word as i32)) }
    }

    #[inline(always)]
    unsafe fn and(self, mask: Avx2) -> Avx2 {
        // SAFETY: the instructions are there.
        unsafe { Avx2(_mm256_and_si256(self.0, mask.0)) }
    }

    #[inline(always)]
    unsafe fn or_and(self, high: Avx2, mask: Avx2) -> Avx2 {
        // SAFETY: the instructions are there.
        unsafe { Avx2(_mm256_or_si256(self.0, _mm256_and_si256(high.0, mask.0))) }
    }

    #[inline(always)]
    unsafe fn right<const N: i32>(self) -> Avx2 {
        // A count that is not negative, of one direction or the other: the compiler drops the one that is 0.
        // SAFETY: the instructions are there.
        unsafe {
            Avx2(_mm256_sll_epi16(
                _mm256_srl_epi16(self.0, _mm_cvtsi32_si128(N.max(0))),
                _mm_cvtsi32_si128((-N).max(0)),
            ))
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[i16; 16]) -> __m256i {
        // Low bytes, then a table of high bytes would be needed: the values fit a byte, and the sign is spread after the look-up.
        let bytes = values.map(|value| value as i8);
        // SAFETY: the instructions are there.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(self, table: __m256i) -> Avx2 {
        // SAFETY: the instructions are there.
        unsafe {
            // The byte in the upper half of each 16 bits, then spread downwards with its sign.
            let upper = _mm256_slli_epi16::<8>(self.0);
            Avx2(_mm256_srai_epi16::<8>(_mm256_shuffle_epi8(table, upper)))
        }
    }

    #[inline(always)]
    unsafe fn dot(self, weights: Avx2, x: *const u32) -> Avx2 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe {
            let x = _mm256_set1_epi32(x.read_unaligned() as i32);
            Avx2(_mm256_add_epi32(self.0, _mm256_madd_epi16(weights.0, x)))
        }
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_cvtepi32_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn as_floats(self) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_castsi256_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn float(value: f32) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn floats(at: *const u8) -> __m256 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m256 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> __m256 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> __m256 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn store(values: __m256, at: *mut f32) {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm256_storeu_ps(at, values) }
    }
}

impl Lanes for Avx512 {
    const ROWS: usize = 16;
    type Floats = __m512;
    type Table = __m512i;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Avx512 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { Avx512(_mm512_loadu_si512(at.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Avx512 {
        // SAFETY: the instructions are there.
        unsafe { Avx512(_mm512_set1_epi32(word as i32)) }
    }

    #[inline(always)]
    unsafe fn and(self, mask: Avx512) -> Avx512 {
        // SAFETY: the instructions are there.
        unsafe { Avx512(_mm512_and_si512(self.0, mask.0)) }
    }

    #[inline(always)]
    unsafe fn or_and(self, high: Avx512, mask: Avx512) -> Avx512 {
        // a | b & c.
        // SAFETY: the instructions are there.
        unsafe { Avx512(_mm512_ternarylogic_epi32::<0xF8>(self.0, high.0, mask.0)) }
    }

    #[inline(always)]
    unsafe fn right<const N: i32>(self) -> Avx512 {
        // SAFETY: the instructions are there.
        unsafe {
            Avx512(_mm512_sll_epi16(
                _mm512_srl_epi16(self.0, _mm_cvtsi32_si128(N.max(0))),
                _mm_cvtsi32_si128((-N).max(0)),
            ))
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[i16; 16]) -> __m512i {
        // SAFETY: the instructions are there.
        unsafe { _mm512_castsi256_si512(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(self, table: __m512i) -> Avx512 {
        // SAFETY: the instructions are there.
        unsafe { Avx512(_mm512_permutexvar_epi16(self.0, table)) }
    }

    // As an intrinsic, compilers make two slower instructions of it for the sake of a latency that other rows hide.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot(self, weights: Avx512, x: *const u32) -> Avx512 {
        let mut sum = self.0;
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe {
            asm!(
                "vpdpwssd {sum}, {weights}, dword ptr [{x}]{{1to16}}",
                sum = inout(zmm_reg) sum,
                weights = in(zmm_reg) weights.0,
                x = in(reg) x,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        Avx512(sum)
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_cvtepi32_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn as_floats(self) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_castsi512_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn float(value: f32) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn floats(at: *const u8) -> __m512 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m512 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> __m512 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> __m512 {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn store(values: __m512, at: *mut f32) {
        // SAFETY: the instructions are there, and the pointer is as the trait says.
        unsafe { _mm512_storeu_ps(at, values) }
    }
}
