//! Planted mistakes in what kernels make of codes and scales: each must be caught by the comparison.

use fuse_kernels::{Format, Matvec};

use crate::caught::caught;
use crate::matvec::Case;
use crate::support::tiles;

/// Each mistake in a product with such weights, as what stands in the source and what would stand there.
fn wrong_with(subject: &'static str, format: Format, mistakes: &[(&'static str, &'static str)]) {
    let (values, _) = format.block();
    let weights = fuse_kernels::Tiles { weights: format, ..tiles((512 / values).max(1) * values, &[40]) };
    let case =
        Case::of(Matvec { warps: 4, depth: 2, blocks: 2, staged: true, residual: true, ..Matvec::plain(weights, 2) });
    let outputs: Vec<(&str, &str, &str)> = mistakes.iter().map(|&(from, to)| (from, to, "output")).collect();
    caught(subject, |mutation| case.check(mutation), &outputs);
}

#[test]
fn in_codes() {
    wrong_with(
        "in_codes_of_five_bits",
        Format::Q5_0,
        &[
            ("left - 3) & fifth", "left - 2) & fifth"),
            ("4 - 8 * (pair % 2)", "4 - 7 * (pair % 2)"),
            ("0x00100010 : 0x01000100", "0x00100010 : 0x00100010"),
            ("SPREAD ? 16 * TAKEN", "SPREAD ? 15 * TAKEN"),
            ("CENTRE = 16", "CENTRE = 15"),
        ],
    );
    wrong_with(
        "in_codes_of_three_bits",
        Format::Q3K,
        &[
            (">> 8 * (pair % 2)", ""),
            ("<< 2 >> 4 * fragment", "<< 2"),
            ("thirds >> 3 & THIRD", "thirds >> 2 & THIRD"),
            ("w >> 4 & TWO", "w >> 6 & TWO"),
        ],
    );
    wrong_with(
        "in_codes_of_two_bits",
        Format::Q2K,
        &[(">> 8 * fragment;", ";"), ("w >> 2 & TWO, w >> 4 & TWO", "w >> 4 & TWO, w >> 2 & TWO")],
    );
    wrong_with(
        "in_codes_of_a_table",
        Format::Iq4Nl,
        &[
            ("0x766a5d4f", "0x776a5d4f"),
            ("w >> 1 & 0x4444", "w & 0x4444"),
            ("chosen_bytes(w & 0xffff), second", "chosen_bytes(w >> 16), second"),
        ],
    );
    wrong_with(
        "in_floats_of_eight_bits",
        Format::Fp8x128,
        &[
            ("0x3f803f80", "0x3f003f80"),
            ("(upper & 0x80008000)", "(upper & 0x80000000)"),
            ("e4m3_low(w0), e4m3_high(w0)", "e4m3_high(w0), e4m3_low(w0)"),
        ],
    );
    wrong_with(
        "in_floats_of_four_bits",
        Format::Mxfp4,
        &[
            ("w << 3 & BOTH", "w << 2 & BOTH"),
            ("w << 1 & SIGNS", "w << 2 & SIGNS"),
            ("w << 9 & SIZES", "w << 6 & SIZES"),
            ("SIZES = 0x0e000e00", "SIZES = 0x0c000e00"),
        ],
    );
}

#[test]
fn in_scales() {
    wrong_with(
        "in_scales_of_32_bits",
        Format::Fp8,
        &[("(32 * pair + 16 * fragment) / SCALE_COLUMNS", "0"), (">> 32 * eight", ">> 0 * eight")],
    );
    wrong_with("in_scales_of_16_columns", Format::Nvfp4, &[("(32 * pair + 16 * fragment)", "(32 * pair)")]);
    wrong_with(
        "in_scales_with_an_addend",
        Format::Q5_1,
        &[("f16_high(word(scales, 2 * pair + eight))", "f16_high(word(scales, 2 * pair))")],
    );
    wrong_with(
        "in_scales_with_a_zero_point",
        Format::Int4x32,
        &[("-(float)(word & 31u)", "-(float)(word & 15u)"), ("scales.of[pair] >> 32", "scales.of[0] >> 32")],
    );
    wrong_with(
        "in_powers_of_two",
        Format::Mxfp4,
        &[("(16 * pair + 8 * eight) & 0xff) << 23", "(16 * pair) & 0xff) << 23"), ("& 0xff) << 23", "& 0xff) << 22")],
    );
    wrong_with(
        "in_signed_scales_of_32_columns",
        Format::Iq4Xs,
        &[("2 * eight + pair % 2", "2 * eight"), ("eight ? f16_high(scales.units)", "!eight ? f16_high(scales.units)")],
    );
    wrong_with(
        "in_signed_scales_of_16_columns",
        Format::Q3K,
        &[("pair % 2 * 2 + fragment", "pair % 2 * 2"), ("2 * eight + pair / 2", "2 * eight")],
    );
    wrong_with(
        "in_scales_with_minima",
        Format::Q2K,
        &[("byte_of(scales, pair, fragment, eight) >> 4", "byte_of(scales, pair, 0, eight) >> 4"), ("& 15)", "& 7)")],
    );
}
