//! Values as quantised blocks: the inverse of [`decode`](super::decode). Scales and minima are those of the least squared error among some that are tried, so no
//! format is worse than its reference.

use anyhow::{Result, bail, ensure};
use fusec::ir::Format;
use half::f16;

use super::{TWICE, with_zero};

/// Appends whole blocks that stand for `values`.
///
/// # Errors
/// A format that nothing quantises to, values that are no whole blocks, one that is not finite, or one so large that its scale is not.
pub fn encode(format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let (size, bytes) = format.block();
    ensure!(values.len().is_multiple_of(size), "{} values are no whole blocks of {}", values.len(), format.name());
    if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
        bail!("a weight is {wrong}, which no quantised format holds");
    }
    out.reserve(values.len() / size * bytes);
    for block in values.chunks_exact(size) {
        match format {
            Format::Q8_0 => q8_0(block, out)?,
            Format::Q4_0 => q4_0(block, out)?,
            Format::Q5_0 => q5_0(block, out)?,
            Format::Q4_1 => q4_1(block, out)?,
            Format::Q5_1 => q5_1(block, out)?,
            Format::Q4K | Format::Q5K => with_minima(format, block, out)?,
            Format::Q6K => q6_k(block, out)?,
            Format::Mxfp4 => mxfp4(block, out),
            Format::Fp8 | Format::Fp8x128 => fp8(block, out),
            Format::Int8 | Format::Int8x128 => int8(block, out),
            Format::Int4x32 | Format::Int4x128 => int4(block, out)?,
            _ => bail!("nothing quantises weights to {}", format.name()),
        }
    }
    Ok(())
}

fn q8_0(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let scale = half(largest(values).abs() / 127.0)?;
    out.extend(scale.to_le_bytes());
    let inverse = inverse(scale.to_f32());
    out.extend(values.iter().map(|value| nearest(value * inverse, -128, 127) as i8 as u8));
    Ok(())
}

fn q4_0(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let scale = half(symmetric(values, 8))?;
    out.extend(scale.to_le_bytes());
    fold(&centred(values, scale.to_f32(), 8), out);
    Ok(())
}

fn q5_0(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let scale = half(symmetric(values, 16))?;
    out.extend(scale.to_le_bytes());
    fold_five(&centred(values, scale.to_f32(), 16), out);
    Ok(())
}

fn q4_1(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let codes = affine_codes(values, 15, out)?;
    fold(&codes, out);
    Ok(())
}

fn q5_1(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let codes = affine_codes(values, 31, out)?;
    fold_five(&codes, out);
    Ok(())
}

/// Appends the scale and the minimum of a block of Q4_1 or Q5_1; gives its codes.
fn affine_codes(values: &[f32], top: i32, out: &mut Vec<u8>) -> Result<Vec<u8>> {
    let (scale, minimum) = affine(values, top, true);
    let (scale, minimum) = (half(scale)?, half(minimum)?);
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    Ok(from_minimum(values, scale.to_f32(), minimum.to_f32(), top))
}

/// Q4_K and Q5_K: the scales and minima of 8 groups, then those as 6 bits of the largest.
fn with_minima(format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let top = if format == Format::Q4K { 15 } else { 31 };
    let groups: Vec<(f32, f32)> = values.chunks_exact(32).map(|group| affine(group, top, false)).collect();
    let most = |of: fn(&(f32, f32)) -> f32| groups.iter().map(of).fold(0.0, f32::max);
    let (scale, minimum) = (half(most(|group| group.0) / 63.0)?, half(most(|group| -group.1) / 63.0)?);
    let (unit, below) = (scale.to_f32(), minimum.to_f32());
    let (per_unit, per_below) = (inverse(unit), inverse(below));
    let mut packed = [0u8; 12];
    let mut codes = Vec::with_capacity(256);
    for (index, (group, of_group)) in groups.iter().zip(values.chunks_exact(32)).enumerate() {
        let (s, m) = (nearest(group.0 * per_unit, 0, 63) as u8, nearest(-group.1 * per_below, 0, 63) as u8);
        if index < 4 {
            packed[index] |= s;
            packed[index + 4] |= m;
        } else {
            packed[index + 4] = s & 15 | m << 4;
            packed[index - 4] |= s >> 4 << 6;
            packed[index] |= m >> 4 << 6;
        }
        codes.extend(from_minimum(of_group, unit * f32::from(s), -(below * f32::from(m)), top));
    }
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    out.extend(packed);
    if format == Format::Q5K {
        out.extend((0..32).map(|at| (0..8).fold(0, |bits, group| bits | codes[32 * group + at] >> 4 << group)));
    }
    for pair in codes.chunks_exact(64) {
        out.extend((0..32).map(|at| pair[at] & 15 | (pair[at + 32] & 15) << 4));
    }
    Ok(())
}

fn q6_k(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let groups: Vec<f32> = values.chunks_exact(16).map(|group| symmetric(group, 32)).collect();
    let scale = half(largest(&groups) / -128.0)?;
    let (unit, per_unit) = (scale.to_f32(), inverse(scale.to_f32()));
    let scales: Vec<i8> = groups.iter().map(|group| nearest(group * per_unit, -128, 127) as i8).collect();
    let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
    for (group, of_group) in values.chunks_exact(16).enumerate() {
        for (l, code) in centred(of_group, unit * f32::from(scales[group]), 32).into_iter().enumerate() {
            let at = 16 * group + l;
            let (half, run, l) = (at / 128, at / 32 % 4, at % 32);
            low[64 * half + 32 * (run % 2) + l] |= (code & 15) << (4 * (run / 2));
            high[32 * half + l] |= code >> 4 << (2 * run);
        }
    }
    out.extend(low);
    out.extend(high);
    out.extend(scales.iter().map(|scale| *scale as u8));
    out.extend(scale.to_le_bytes());
    Ok(())
}

fn mxfp4(values: &[f32], out: &mut Vec<u8>) {
    let exponent = (largest(values).abs().to_bits() >> 23) as i32 - 127;
    let of_exponent = |exponent: i32| {
        let exponent = exponent.clamp(-126, 127);
        let unit = f32::from_bits(((exponent + 127) as u32) << 23);
        let codes: Vec<u8> = values.iter().map(|value| to_e2m1(value / unit)).collect();
        let of = |code: u8| unit * f32::from(TWICE[usize::from(code)]) / 2.0;
        let error: f32 = values.iter().zip(&codes).map(|(value, &code)| (value - of(code)).powi(2)).sum();
        (error, (exponent + 127) as u8, codes)
    };
    // The largest is four to eight units, of which six is the most that there is, or two to four.
    let (first, second) = (of_exponent(exponent - 2), of_exponent(exponent - 1));
    let (_, exponent, codes) = if second.0 < first.0 { second } else { first };
    out.push(exponent);
    fold(&codes, out);
}

fn fp8(values: &[f32], out: &mut Vec<u8>) {
    let scale = largest(values).abs() / E4M3_MOST;
    out.extend(scale.to_le_bytes());
    let inverse = inverse(scale);
    out.extend(values.iter().map(|value| to_e4m3(value * inverse)));
}

fn int8(values: &[f32], out: &mut Vec<u8>) {
    let scale = largest(values).abs() / 127.0;
    out.extend(scale.to_le_bytes());
    let inverse = inverse(scale);
    out.extend(values.iter().map(|value| nearest(value * inverse, -127, 127) as i8 as u8));
}

fn int4(values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let (scale, zero) = zeroed(values);
    let scale = half(scale)?.to_f32();
    let word = with_zero(scale, zero);
    out.extend(word.unwrap_or_default().to_le_bytes());
    let inverse = inverse(scale);
    let codes: Vec<u8> = values.iter().map(|value| nearest(value * inverse + zero as f32, 0, 15) as u8).collect();
    codes.chunks_exact(32).for_each(|codes| fold(codes, out));
    Ok(())
}

/// The largest finite float of 4 exponent and 3 mantissa bits.
pub(crate) const E4M3_MOST: f32 = 448.0;

/// The nearest float of 1 sign, 4 exponent and 3 mantissa bits, of two as near the even one; what is too large is the largest.
pub(crate) fn to_e4m3(value: f32) -> u8 {
    let (sign, size) = ((value.to_bits() >> 24) as u8 & 0x80, value.abs());
    let code = if size >= E4M3_MOST {
        0x7E
    } else if size < 1.0 / 64.0 {
        nearest(size * 512.0, 0, 8) as u8
    } else {
        let bits = size.to_bits();
        let rounded = bits + 0x7_FFFF + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
}

/// The nearest float of 1 sign, 2 exponent and 1 mantissa bits.
fn to_e2m1(value: f32) -> u8 {
    const BETWEEN: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let code = BETWEEN.iter().filter(|between| value.abs() > **between).count() as u8;
    if value < 0.0 { code | 8 } else { code }
}

/// Sums over the codes of values.
struct Sums {
    codes: f32,
    /// Of codes squared.
    squares: f32,
    /// Of codes times values.
    products: f32,
}

/// The sums of the codes that `code` gives, in lanes, so that they vectorise. All groups are whole lanes.
fn sums(values: &[f32], code: impl Fn(f32) -> f32) -> Sums {
    const LANES: usize = 4;
    let (mut codes, mut squares, mut products) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for run in values.as_chunks::<LANES>().0 {
        let found = run.map(&code);
        codes.iter_mut().zip(found).for_each(|(sum, code)| *sum += code);
        squares.iter_mut().zip(found).for_each(|(sum, code)| *sum += code * code);
        products.iter_mut().zip(run.iter().zip(found)).for_each(|(sum, (value, code))| *sum += value * code);
    }
    Sums { codes: codes.iter().sum(), squares: squares.iter().sum(), products: products.iter().sum() }
}

/// The scale of codes from `-top` to `top - 1` with the least squared error: the value of the largest size is near `-top`.
fn symmetric(values: &[f32], top: i32) -> f32 {
    let most = largest(values);
    fitted(values, top, (-9..=9).map(|step| -(top as f32 + 0.1 * step as f32) / most))
}

/// The same, above zero: the largest size is near `top`, on whichever side it is.
pub(crate) fn symmetric_scale(values: &[f32], top: i32) -> f32 {
    let most = largest(values).abs();
    fitted(values, top, (-14..=4).map(|step| (top as f32 + 0.1 * step as f32) / most))
}

/// The scale with the least squared error of those that these inverses lead to.
fn fitted(values: &[f32], top: i32, inverses: impl Iterator<Item = f32>) -> f32 {
    let (mut best, mut scale) = (0.0, 0.0);
    for inverse in inverses.filter(|inverse| inverse.is_finite()) {
        let code = |value: f32| nearest_float(value * inverse).clamp(-top as f32, (top - 1) as f32);
        let Sums { squares, products, .. } = sums(values, code);
        if squares > 0.0 && products * products > best * squares {
            (best, scale) = (products * products / squares, products / squares);
        }
    }
    scale
}

/// The scale and minimum of codes from 0 to `top` with the least squared error. Unless it may be `any`, the minimum is not above zero.
fn affine(values: &[f32], top: i32, any: bool) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let low = if any { low } else { low.min(0.0) };
    let high = values.iter().copied().fold(low, f32::max);
    if high == low {
        return (0.0, low);
    }
    let (count, sum) = (values.len() as f32, values.iter().sum::<f32>());
    let mut best = f32::NEG_INFINITY;
    let mut found = ((high - low) / top as f32, low);
    for step in 0..=20 {
        let inverse = (top as f32 - 1.0 + 0.1 * step as f32) / (high - low);
        let code = |value: f32| nearest_float((value - low) * inverse).clamp(0.0, top as f32);
        let Sums { codes, squares, products } = sums(values, code);
        let spread = count * squares - codes * codes;
        if spread <= 0.0 {
            continue;
        }
        let mut scale = (count * products - sum * codes) / spread;
        let mut minimum = (squares * sum - codes * products) / spread;
        if !any && minimum > 0.0 {
            (scale, minimum) = (products / squares, 0.0);
        }
        // Of a least-squares fit, the error is the sum of squares less this.
        let gain = scale * products + minimum * sum;
        if gain > best && scale > 0.0 {
            (best, found) = (gain, (scale, minimum));
        }
    }
    found
}

/// The scale and the zero point, of 0 to 15, of 4-bit integers with the least squared error.
fn zeroed(values: &[f32]) -> (f32, i32) {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    if high == low {
        return (0.0, 0);
    }
    let (mut best, mut found) = (f32::NEG_INFINITY, (0.0, 0));
    for step in 0..12 {
        let narrowed = 1.0 - 0.025 * step as f32;
        let inverse = 15.0 / (narrowed * (high - low));
        let zero = nearest_float(-low * narrowed * inverse).clamp(0.0, 15.0);
        let code = |value: f32| nearest_float(value * inverse + zero).clamp(0.0, 15.0) - zero;
        let Sums { squares, products, .. } = sums(values, code);
        if squares > 0.0 && products * products / squares > best {
            (best, found) = (products * products / squares, (products / squares, zero as i32));
        }
    }
    found
}

/// Codes from 0 on of values whose zero is at `zero`, which is half of the codes.
fn centred(values: &[f32], scale: f32, zero: i32) -> Vec<u8> {
    let inverse = inverse(scale);
    values.iter().map(|value| (nearest(value * inverse, -zero, zero - 1) + zero) as u8).collect()
}

fn from_minimum(values: &[f32], scale: f32, minimum: f32, top: i32) -> Vec<u8> {
    let inverse = inverse(scale);
    values.iter().map(|value| nearest((value - minimum) * inverse, 0, top) as u8).collect()
}

/// The value of the largest size, with its sign; the first of several.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, &value| if value.abs() > most.abs() { value } else { most })
}

/// What to multiply by in the place of a division: of zero, zero.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 || !(1.0 / scale).is_finite() { 0.0 } else { 1.0 / scale }
}

fn half(scale: f32) -> Result<f16> {
    let rounded = f16::from_f32(scale);
    ensure!(rounded.is_finite(), "weights so large that their scale, {scale}, is beyond half precision");
    Ok(rounded)
}

fn nearest(value: f32, low: i32, high: i32) -> i32 {
    (nearest_float(value) as i32).clamp(low, high)
}

/// The nearest integer, of two as near the even one, by additions that vectorise. For sizes below 2^22; larger ones stay large.
fn nearest_float(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// 32 codes of four bits as nibbles: the first sixteen below.
fn fold(codes: &[u8], out: &mut Vec<u8>) {
    out.extend((0..16).map(|at| codes[at] | codes[at + 16] << 4));
}

/// 32 codes of five bits: their fifth bits, then nibbles.
fn fold_five(codes: &[u8], out: &mut Vec<u8>) {
    let fifth = codes.iter().enumerate().fold(0u32, |bits, (at, code)| bits | u32::from(code >> 4) << at);
    out.extend(fifth.to_le_bytes());
    out.extend((0..16).map(|at| codes[at] & 15 | (codes[at + 16] & 15) << 4));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{decode, e4m3};

    /// Every format that weights are quantised to, with the most error that it may have on normal values: what ggml's quantiser has on the same ones
    /// (`tests/blocks/errors.py` prints it), and of what ggml does not have, what the search here comes to.
    const FORMATS: [(Format, f64); 14] = [
        (Format::Q8_0, 2.8252e-5),
        (Format::Q4_0, 7.2153e-3),
        (Format::Q5_0, 1.7681e-3),
        (Format::Q4_1, 5.9945e-3),
        (Format::Q5_1, 1.4041e-3),
        (Format::Q4K, 5.1115e-3),
        (Format::Q5K, 1.2922e-3),
        (Format::Q6K, 3.1274e-4),
        (Format::Mxfp4, 1.2950e-2),
        (Format::Fp8, 8e-4),
        (Format::Fp8x128, 8e-4),
        (Format::Int8x128, 6e-5),
        (Format::Int4x32, 7.6e-3),
        (Format::Int4x128, 1.1e-2),
    ];

    /// Nearly normal numbers: sums of twelve uniform ones.
    fn normal(count: usize, deviation: f32) -> Vec<f32> {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| deviation * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect()
    }

    fn through(format: Format, values: &[f32]) -> Vec<f32> {
        let (mut blocks, mut back) = (Vec::new(), Vec::new());
        encode(format, values, &mut blocks).unwrap_or_else(|error| panic!("{}: {error}", format.name()));
        assert_eq!(Some(blocks.len()), format.bytes(values.len()));
        decode(format, &blocks, &mut back);
        back
    }

    fn error(format: Format, values: &[f32]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
        let back = through(format, values);
        squares(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / squares(&mut values.iter().copied())
    }

    #[test]
    fn no_format_is_worse_than_its_reference() {
        let values = normal(1 << 13, 0.02);
        for (format, most) in FORMATS {
            let found = error(format, &values);
            assert!(found <= most, "{}: {found:.4e} of {most:.4e}", format.name());
            assert!(found > most / 2.0, "{}: {found:.3e} is too good to be true", format.name());
        }
    }

    #[test]
    fn every_size_of_weights_keeps_its_error() {
        for deviation in [1e-3, 1.0, 300.0] {
            let values = normal(1 << 10, deviation);
            for (format, most) in FORMATS {
                let found = error(format, &values);
                assert!(found < 1.3 * most, "{} at {deviation}: {found:.3e}", format.name());
            }
        }
    }

    #[test]
    fn what_a_format_holds_comes_back_to_the_bit() {
        // Scales of one, and codes of every kind.
        let small = |count: i32, least: i32| (0..256).map(|at| (at * 7 % count + least) as f32).collect::<Vec<f32>>();
        for (format, values) in [
            (Format::Q8_0, small(255, -127)),
            (Format::Q4_0, small(16, -8)),
            (Format::Q5_0, small(32, -16)),
            (Format::Q4_1, small(16, 3)),
            (Format::Q5_1, small(32, 3)),
            (Format::Int8, small(255, -127)),
            (Format::Int4x32, small(16, -5)),
            (Format::Int4x128, small(16, -5)),
        ] {
            // A block whose largest code is another has another scale.
            let whole = |block: &&[f32]| block.len() == format.block().0;
            for block in values.chunks(format.block().0).filter(whole) {
                let most = values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
                if block.iter().any(|value| value.abs() == most) {
                    assert_eq!(through(format, block), block, "{}", format.name());
                }
            }
        }
    }

    #[test]
    fn zeros_and_tiny_weights_stay_small() {
        for (format, _) in FORMATS {
            assert!(through(format, &[0.0; 256]).iter().all(|value| *value == 0.0), "{}", format.name());
            let tiny = normal(256, 1e-12);
            assert!(through(format, &tiny).iter().all(|value| value.abs() < 1e-10), "{}", format.name());
            let one = [vec![0.0; 100], vec![0.75], vec![0.0; 155]].concat();
            let back = through(format, &one);
            assert!((back[100] - 0.75).abs() < 0.01, "{}: {}", format.name(), back[100]);
        }
    }

    #[test]
    fn every_float_of_eight_bits_rounds_to_itself_and_between_two_to_the_nearer() {
        let all: Vec<f32> = (0..=0x7E).map(e4m3).collect();
        for (code, value) in (0u8..).zip(&all) {
            assert_eq!((to_e4m3(*value), to_e4m3(-value) & 0x7F), (code, code));
        }
        for (code, pair) in (0u8..).zip(all.windows(2)) {
            let middle = (pair[0] + pair[1]) / 2.0;
            assert_eq!(to_e4m3(middle), code + code % 2, "between {} and {}", pair[0], pair[1]);
            assert_eq!((to_e4m3(middle * 0.9999), to_e4m3(middle * 1.0001)), (code, code + 1));
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-449.0)), (0x7E, 0xFE));
    }

    #[test]
    fn what_cannot_be_quantised_says_so() {
        let said = |format, values: &[f32]| encode(format, values, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(said(Format::Q8_0, &[0.0; 33]), "33 values are no whole blocks of q8_0");
        assert_eq!(said(Format::Q4K, &[f32::NAN; 256]), "a weight is NaN, which no quantised format holds");
        assert_eq!(said(Format::Iq4Xs, &[0.0; 256]), "nothing quantises weights to iq4_xs");
        let large = said(Format::Q8_0, &[1e9; 32]);
        assert!(large.starts_with("weights so large that their scale, "), "{large}");
    }
}
