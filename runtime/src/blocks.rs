//! Stored values as f32, exactly; quantised ones to the bit as ggml's reference has them, or as the product of integer and scale that the makers of
//! quantised safetensors define, rounded once. The layout of a block stands above its function, in bytes, little-endian.

mod encode;

use fusec::ir::Format;

pub use encode::encode;
pub(crate) use encode::{E4M3_MOST, symmetric_scale, to_e4m3};

/// Appends the values of whole blocks, each as exact as f32 holds it.
///
/// Bytes behind the last whole block are not looked at.
///
/// # Panics
/// Of [`Format::I32`], which no weight has.
pub fn decode(format: Format, bytes: &[u8], out: &mut Vec<f32>) {
    let (values, size) = format.block();
    out.reserve(bytes.len() / size * values);
    let one: fn(&[u8], &mut Vec<f32>) = match format {
        Format::F32 => |bytes, out| out.push(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        Format::F16 => |bytes, out| out.push(half_at(bytes, 0)),
        Format::BF16 => |bytes, out| out.push(half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Q2K => q2_k,
        Format::Q3K => q3_k,
        Format::Q4K => q4_k,
        Format::Q5K => q5_k,
        Format::Q6K => q6_k,
        Format::Iq4Nl => iq4_nl,
        Format::Iq4Xs => iq4_xs,
        Format::Mxfp4 => mxfp4,
        Format::Fp8 | Format::Fp8x128 => fp8,
        Format::Int8 | Format::Int8x128 => int8,
        Format::Int4x32 | Format::Int4x128 => int4,
        Format::Nvfp4 => nvfp4,
        Format::I32 => panic!("no weight is of i32"),
    };
    bytes.chunks_exact(size).for_each(|block| one(block, out));
}

/// `scale: f16, q: [i8; 32]`; value i = scale · q\[i].
fn q8_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(block[2..34].iter().map(|&q| scale * f32::from(q as i8)));
}

/// `scale: f16, q: [u8; 16]`; value i < 16 is the low nibble of byte i, value 16 + i its high nibble; value = scale · (nibble − 8).
fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    let q = &block[2..18];
    out.extend(nibbles(q).map(|nibble| scale * (f32::from(nibble) - 8.0)));
}

/// `scale: f16, minimum: f16, q: [u8; 16]`; nibbles as in Q4_0; value = scale · nibble + minimum.
fn q4_1(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..20]).map(|nibble| scale * f32::from(nibble) + minimum));
}

/// `scale: f16, high: u32, q: [u8; 16]`; value i has nibble i as in Q4_0 and bit i of `high` as its fifth bit; value = scale · (five bits − 16).
fn q5_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(five_bits(&block[2..22]).map(|q| scale * (f32::from(q) - 16.0)));
}

/// `scale: f16, minimum: f16, high: u32, q: [u8; 16]`; bits as in Q5_0; value = scale · five bits + minimum.
fn q5_1(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    out.extend(five_bits(&block[4..24]).map(|q| scale * f32::from(q) + minimum));
}

/// `scale: f16, minimum: f16, packed: [u8; 12], q: [u8; 128]`.
///
/// 8 groups of 32 values; group g has a 6-bit scale s and minimum m (see [`group_scale`]). Groups 2p and 2p + 1 are the low and the high nibbles
/// of bytes 32p to 32p + 32 of `q`; value = (scale · s) · nibble − minimum · m.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    for group in 0..8 {
        let (s, m) = group_scale(packed, group);
        let (s, m) = (scale * f32::from(s), minimum * f32::from(m));
        let q = &block[16 + 32 * (group / 2)..][..32];
        out.extend(q.iter().map(|q| s * f32::from(nibble_of(*q, group % 2)) - m));
    }
}

/// `scale: f16, minimum: f16, packed: [u8; 12], high: [u8; 32], q: [u8; 128]`; as Q4_K, with bit g of `high[i]` as the fifth bit of value i of group g.
fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, high) = (&block[4..16], &block[16..48]);
    for group in 0..8 {
        let (s, m) = group_scale(packed, group);
        let (s, m) = (scale * f32::from(s), minimum * f32::from(m));
        let q = &block[48 + 32 * (group / 2)..][..32];
        out.extend(
            q.iter().zip(high).map(|(q, high)| s * f32::from(nibble_of(*q, group % 2) | (high >> group & 1) << 4) - m),
        );
    }
}

/// `low: [u8; 128], high: [u8; 64], scales: [i8; 16], scale: f16`.
///
/// Two halves of 128 values, each four runs of 32. Run r of half h: value l has the low nibbles (r < 2) or high nibbles (r ≥ 2) of
/// `low[64h + 32(r mod 2) + l]` and bits 2r and 2r + 1 of `high[32h + l]` above them; its group of 16 is 8h + 2r + l / 16;
/// value = (scale · scales\[group]) · (six bits − 32).
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 208);
    for half in 0..2 {
        for run in 0..4 {
            let low = &block[64 * half + 32 * (run % 2)..][..32];
            let high = &block[128 + 32 * half..][..32];
            let scales = &block[192 + 8 * half + 2 * run..][..2];
            out.extend(low.iter().zip(high).enumerate().map(|(l, (low, high))| {
                let q = nibble_of(*low, run / 2) | (high >> (2 * run) & 3) << 4;
                scale * f32::from(scales[l / 16] as i8) * (f32::from(q) - 32.0)
            }));
        }
    }
}

/// `groups: [u8; 16], q: [u8; 64], scale: f16, minimum: f16`.
///
/// 16 groups of 16 values; the low nibble of a group's byte is its scale s, the high one its minimum m. Two halves of 128 values, each four runs of 32:
/// run r of half h has bits 2r and 2r + 1 of `q[32h..32h + 32]`, its groups are 8h + 2r and 8h + 2r + 1; value = (scale · s) · two bits − minimum · m.
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for group in 0..16 {
        let both = block[group];
        let (s, m) = (scale * f32::from(both & 15), minimum * f32::from(both >> 4));
        let (q, shift) = two_bits(&block[16..80], group);
        out.extend(q.iter().map(|q| s * f32::from(q >> shift & 3) - m));
    }
}

/// `high: [u8; 32], q: [u8; 64], packed: [u8; 12], scale: f16`.
///
/// Groups and two bits as in Q2_K. Value l of run r of half h is 4 less where bit 4h + r of `high[l]` is not set. A group's 6-bit scale has its low four
/// bits in the nibbles of the first 8 packed bytes (low ones first) and its upper two in bits 2(g / 4) of byte 8 + g mod 4; it is 32 too large.
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, packed, scale) = (&block[..32], &block[96..108], half_at(block, 108));
    for group in 0..16 {
        let low = nibble_of(packed[group % 8], group / 8);
        let six = low | (packed[8 + group % 4] >> (2 * (group / 4)) & 3) << 4;
        let s = scale * (f32::from(six) - 32.0);
        let (q, shift) = two_bits(&block[32..96], group);
        let high = &high[16 * (group % 2)..][..16];
        out.extend(q.iter().zip(high).map(|(q, high)| {
            let less = if high >> (group / 2) & 1 == 1 { 0.0 } else { 4.0 };
            s * (f32::from(q >> shift & 3) - less)
        }));
    }
}

/// `scale: f16, q: [u8; 16]`; nibbles as in Q4_0; value = scale · [`TABLE`]\[nibble].
fn iq4_nl(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..18]).map(|nibble| scale * f32::from(TABLE[usize::from(nibble)])));
}

/// `scale: f16, high: u16, low: [u8; 4], q: [u8; 128]`.
///
/// 8 groups of 32 values, each 16 bytes of `q` with nibbles as in Q4_0. Group g's 6-bit scale s is nibble g of `low` with bits 2g and 2g + 1 of `high`
/// above it; value = (scale · (s − 32)) · [`TABLE`]\[nibble].
fn iq4_xs(block: &[u8], out: &mut Vec<f32>) {
    let (scale, high) = (half_at(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (group, q) in block[8..].chunks_exact(16).enumerate() {
        let six = nibble_of(block[4 + group / 2], group % 2) | ((high >> (2 * group) & 3) as u8) << 4;
        let s = scale * (f32::from(six) - 32.0);
        out.extend(nibbles(q).map(|nibble| s * f32::from(TABLE[usize::from(nibble)])));
    }
}

/// `exponent: u8, q: [u8; 16]`; nibbles as in Q4_0, each a float of 1 sign, 2 exponent and 1 mantissa bits; value = 2^(exponent − 127) · that.
///
/// [`TWICE`] has the floats doubled, so half the scale is taken: a subnormal for exponents below 2.
fn mxfp4(block: &[u8], out: &mut Vec<f32>) {
    let exponent = u32::from(block[0]);
    let half = f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 });
    out.extend(nibbles(&block[1..17]).map(|nibble| half * f32::from(TWICE[usize::from(nibble)])));
}

/// `scale: f32, q: [u8; 32]`, or 128; value i = scale · the e4m3 float q\[i].
fn fp8(block: &[u8], out: &mut Vec<f32>) {
    let scale = float_at(block, 0);
    out.extend(block[4..].iter().map(|&q| scale * e4m3(q)));
}

/// `scale: f32, q: [i8; 32]`, or 128; value i = scale · q\[i].
fn int8(block: &[u8], out: &mut Vec<f32>) {
    let scale = float_at(block, 0);
    out.extend(block[4..].iter().map(|&q| scale * f32::from(q as i8)));
}

/// `scale: u32`, and for each 32 values `q: [u8; 16]`; nibbles as in Q4_0; value = scale · (nibble − zero). See [`scale_and_zero`].
fn int4(block: &[u8], out: &mut Vec<f32>) {
    let (scale, zero) = scale_and_zero(word_at(block, 0));
    for q in block[4..].chunks_exact(16) {
        out.extend(nibbles(q).map(|nibble| scale * (f32::from(nibble) - f32::from(zero))));
    }
}

/// `scales: [f32; 2], q: [u8; 16]`; nibbles as in Q4_0, each a float as MXFP4's; value = scale · that, the first 16 by the first scale.
fn nvfp4(block: &[u8], out: &mut Vec<f32>) {
    let scales = [float_at(block, 0), float_at(block, 4)];
    for (scale, half) in scales.into_iter().zip(0..) {
        out.extend(block[8..24].iter().map(|&q| scale * e2m1(nibble_of(q, half))));
    }
}

/// A float of 1 sign, 4 exponent and 3 mantissa bits, which has a NaN and no infinity.
pub(crate) fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), u32::from(bits & 7));
    let size = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

/// A float of 1 sign, 2 exponent and 1 mantissa bits.
pub(crate) fn e2m1(nibble: u8) -> f32 {
    let size = f32::from(TWICE[usize::from(nibble & 7)]) / 2.0;
    if nibble & 8 == 0 { size } else { -size }
}

/// Bits of an `f32` below those that a scale of 16 bits can have.
pub(crate) const BELOW_SCALE: u32 = (1 << 13) - 1;
/// Those of them that hold a zero point.
pub(crate) const ZERO_POINT: u32 = 31;

/// The scale and the zero point of a block of 4-bit integers. A scale that was stored in 16 bits leaves the lower 13 of an `f32` empty: a zero point of up to 31
/// stands there.
pub(crate) fn scale_and_zero(word: u32) -> (f32, u8) {
    (f32::from_bits(word & !BELOW_SCALE), (word & ZERO_POINT) as u8)
}

/// The inverse of [`scale_and_zero`]; `None` where the scale has more than 16 bits, or the zero point more than five.
pub(crate) fn with_zero(scale: f32, zero: i32) -> Option<u32> {
    let zero = u32::try_from(zero).ok().filter(|zero| *zero <= ZERO_POINT)?;
    (scale.to_bits() & BELOW_SCALE == 0).then(|| scale.to_bits() | zero)
}

/// The values of IQ4_NL's and IQ4_XS's nibbles.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of MXFP4's nibbles.
const TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The 16 bytes that hold a group's two bits in Q2_K and Q3_K, and where in them.
fn two_bits(q: &[u8], group: usize) -> (&[u8], usize) {
    let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
    (&q[32 * half + 16 * side..][..16], 2 * run)
}

/// The 6-bit (scale, minimum) of group 0 to 7 in a K-quant's 12 packed bytes: for g < 4 the low six bits of byte g and byte g + 4; for g ≥ 4 the low and
/// the high nibble of byte g + 4 with the top two bits of byte g − 4 and byte g above them.
pub(crate) fn group_scale(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let both = packed[group + 4];
        (both & 15 | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4)
    }
}

/// Low nibbles of every byte, then high nibbles of every byte.
fn nibbles(q: &[u8]) -> impl Iterator<Item = u8> + '_ {
    q.iter().map(|q| q & 15).chain(q.iter().map(|q| q >> 4))
}

/// The 32 five-bit values of `high: u32, q: [u8; 16]`.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..20]).enumerate().map(move |(i, nibble)| nibble | ((high >> i & 1) as u8) << 4)
}

fn nibble_of(byte: u8, which: usize) -> u8 {
    byte >> (4 * which) & 15
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn float_at(block: &[u8], at: usize) -> f32 {
    f32::from_bits(word_at(block, at))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: [u8; 2] = [0x00, 0x38]; // 0.5
    const TWO: [u8; 2] = [0x00, 0x40]; // 2.0
    const MINUS_ONE: [u8; 2] = [0x00, 0xBC]; // -1.0

    fn values(block: Vec<u8>, dequantise: fn(&[u8], &mut Vec<f32>)) -> Vec<f32> {
        let mut out = Vec::new();
        dequantise(&block, &mut out);
        out
    }

    #[test]
    fn plain_types_widen_exactly() {
        let widened = |format, bytes: &[u8]| {
            let mut out = vec![7.0];
            decode(format, bytes, &mut out);
            assert_eq!(out.remove(0), 7.0, "decoding appends");
            out
        };
        assert_eq!(widened(Format::F32, &1.1f32.to_le_bytes()), [1.1f32]);
        // 0x3C01 = 1 + 2^-10, 0x0001 = 2^-24 (the smallest subnormal), 0xFC00 = -infinity
        assert_eq!(
            widened(Format::F16, &[0x01, 0x3C, 0x01, 0x00, 0x00, 0xFC]),
            [1.0 + 2f32.powi(-10), 2f32.powi(-24), f32::NEG_INFINITY]
        );
        // 0x3F81 = 1 + 2^-7, 0xC000 = -2
        assert_eq!(widened(Format::BF16, &[0x81, 0x3F, 0x00, 0xC0]), [1.0078125, -2.0]);
    }

    #[test]
    fn q8_0_scales_signed_bytes() {
        let mut block = vec![0; 34];
        block[..2].copy_from_slice(&HALF);
        (block[2], block[3], block[33]) = (0x80, 3, 0xFF); // -128, 3, ..., -1
        let out = values(block, q8_0);
        assert_eq!((out.len(), out[0], out[1], out[2], out[31]), (32, -64.0, 1.5, 0.0, -0.5));
    }

    #[test]
    fn q4_0_centres_nibbles_on_eight() {
        let mut block = vec![0x88; 18];
        block[..2].copy_from_slice(&TWO);
        (block[2], block[17]) = (0xF1, 0x0A); // low 1, high 15; low 10, high 0
        let out = values(block, q4_0);
        assert_eq!((out.len(), out[0], out[16], out[15], out[31], out[1]), (32, -14.0, 14.0, 4.0, -16.0, 0.0));
    }

    #[test]
    fn q4_1_adds_its_minimum() {
        let mut block = vec![0; 20];
        block[..2].copy_from_slice(&HALF);
        block[2..4].copy_from_slice(&MINUS_ONE);
        block[5] = 0xE3; // value 1 is 3, value 17 is 14
        let out = values(block, q4_1);
        assert_eq!((out.len(), out[0], out[1], out[17]), (32, -1.0, 0.5, 6.0));
    }

    #[test]
    fn q5_0_takes_its_fifth_bits_from_the_mask() {
        let mut block = vec![0; 22];
        block[..2].copy_from_slice(&TWO);
        block[2..6].copy_from_slice(&(1u32 << 1 | 1 << 31).to_le_bytes());
        (block[7], block[21]) = (0x02, 0x50); // value 1: 16 + 2; value 31: 16 + 5
        let out = values(block, q5_0);
        assert_eq!((out.len(), out[0], out[1], out[31]), (32, -32.0, 4.0, 10.0));
    }

    #[test]
    fn q5_1_adds_its_minimum() {
        let mut block = vec![0; 24];
        block[..2].copy_from_slice(&HALF);
        block[2..4].copy_from_slice(&TWO);
        block[4..8].copy_from_slice(&(1u32 << 16).to_le_bytes());
        block[8] = 0x97; // value 0: 7; value 16: 16 + 9
        let out = values(block, q5_1);
        assert_eq!((out.len(), out[0], out[16], out[1]), (32, 5.5, 14.5, 2.0));
    }

    /// Scales 1, 2, 3, 63 and minima 4, 5, 6, 7 for groups 0 to 3; 0x2A = 42 and 0x1C = 28 for group 4; 0x0B = 11 and 0x3E = 62 for group 7.
    fn packed_scales() -> [u8; 12] {
        let mut packed = [1, 2, 3, 63, 4, 5, 6, 7, 0, 0, 0, 0];
        packed[8] = 0x0A | 0x0C << 4; // group 4: low nibbles of 42 and 28
        packed[0] |= 2 << 6; // 42 = 2 << 4 | 10
        packed[4] |= 1 << 6; // 28 = 1 << 4 | 12
        packed[11] = 0x0B | 0x0E << 4; // group 7
        packed[7] |= 3 << 6; // 62 = 3 << 4 | 14
        packed
    }

    #[test]
    fn k_scales_unpack_from_twelve_bytes() {
        let packed = packed_scales();
        let expected = [(1, 4), (2, 5), (3, 6), (63, 7), (42, 28), (0, 0), (0, 0), (11, 62)];
        assert_eq!(std::array::from_fn(|group| group_scale(&packed, group)), expected);
    }

    #[test]
    fn q4_k_pairs_groups_in_nibbles() {
        let mut block = vec![0; 144];
        block[..2].copy_from_slice(&HALF);
        block[2..4].copy_from_slice(&TWO);
        block[4..16].copy_from_slice(&packed_scales());
        block[16] = 0xF3; // group 0 value 0 is 3, group 1 value 0 is 15
        block[16 + 32 * 2 + 31] = 0x09; // group 4 value 31 is 9
        block[16 + 32 * 3 + 1] = 0x40; // group 7 value 1 is 4
        let out = values(block, q4_k);
        assert_eq!(out.len(), 256);
        assert_eq!((out[0], out[1]), (0.5 * 3.0 - 8.0, -8.0));
        assert_eq!(out[32], 1.0 * 15.0 - 10.0);
        assert_eq!(out[4 * 32 + 31], 21.0 * 9.0 - 56.0);
        assert_eq!(out[7 * 32 + 1], 5.5 * 4.0 - 124.0);
    }

    #[test]
    fn q5_k_takes_bit_g_of_the_high_bytes() {
        let mut block = vec![0; 176];
        block[..2].copy_from_slice(&HALF);
        block[2..4].copy_from_slice(&TWO);
        block[4..16].copy_from_slice(&packed_scales());
        block[16] = 1 << 1; // fifth bit of value 0 of group 1
        block[16 + 1] = 1 << 7; // fifth bit of value 1 of group 7
        block[48] = 0x21; // value 0: group 0 is 1, group 1 is 2
        block[48 + 32 * 3 + 1] = 0x40; // value 1 of group 7 is 4
        let out = values(block, q5_k);
        assert_eq!(out.len(), 256);
        assert_eq!((out[0], out[32]), (0.5 - 8.0, 18.0 - 10.0));
        assert_eq!(out[7 * 32 + 1], 5.5 * 20.0 - 124.0);
    }

    #[test]
    fn q6_k_joins_nibbles_with_two_high_bits() {
        let mut block = vec![0; 210];
        block[208..].copy_from_slice(&HALF);
        for (group, scale) in block[192..208].iter_mut().enumerate() {
            *scale = group as u8 + 1;
        }
        block[207] = 0xFE; // group 15: -2
        block[0] = 0x5A; // half 0, l = 0: run 0 low nibble 10, run 2 high nibble 5
        block[32 + 17] = 0x0C; // half 0, l = 17: run 1 low nibble 12
        block[128] = 0b0011_0001; // l = 0: run 0 gets 1, run 2 gets 3
        block[128 + 17] = 0b0000_1000; // l = 17: run 1 gets 2
        block[64 + 32 + 31] = 0x70; // half 1, l = 31: run 3 high nibble 7
        block[128 + 32 + 31] = 0b1000_0000; // run 3 gets 2
        let out = values(block, q6_k);
        assert_eq!(out.len(), 256);
        assert_eq!(out[0], 0.5 * (26.0 - 32.0)); // group 0, scale 1
        assert_eq!(out[64], 0.5 * 5.0 * (53.0 - 32.0)); // run 2, group 4, scale 5
        assert_eq!(out[32 + 17], 0.5 * 4.0 * (44.0 - 32.0)); // run 1, group 3, scale 4
        assert_eq!(out[128 + 96 + 31], 0.5 * -2.0 * (39.0 - 32.0)); // half 1, run 3, group 15, scale -2
    }
}
