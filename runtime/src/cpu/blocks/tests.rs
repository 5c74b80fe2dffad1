//! Units against the values that their blocks stand for.

use fusec::ir::{Format, nmse};

use super::super::math::Isa;
use super::*;
use crate::blocks::decode;

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&format| is_of_blocks(format))
}

/// Random bytes. Halves among them may be anything, so scales are made small and finite: their exponents lose the upper bits.
fn blocks(format: Format, columns: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let (values, bytes) = format.block();
    let mut row: Vec<u8> = (0..columns / values * bytes).map(|_| next()).collect();
    for block in row.chunks_exact_mut(bytes) {
        let halves: &[usize] = match format {
            Format::Int8 | Format::Int8x128 | Format::Int4x32 | Format::Int4x128 | Format::Nvfp4 => &[],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[1, 3],
            Format::Q2K => &[81, 83],
            Format::Q3K => &[109],
            Format::Q6K => &[209],
            Format::Mxfp4 => &[],
            _ => &[1],
        };
        halves.iter().for_each(|&at| block[at] = block[at] & 0x87 | 0x20);
        let float = |small: u8| (f32::from(small) - 127.5) / 4096.0;
        match format {
            Format::Mxfp4 => block[0] = 120 + block[0] % 8,
            Format::Int8 | Format::Int8x128 => {
                let scale = float(block[0]);
                block[..4].copy_from_slice(&scale.to_le_bytes());
            }
            Format::Int4x32 | Format::Int4x128 => {
                let word = float(block[0]).to_bits() | u32::from(block[1] % 17);
                block[..4].copy_from_slice(&word.to_le_bytes());
            }
            Format::Nvfp4 => {
                for at in [0, 4] {
                    let scale = float(block[at]) / 3.0;
                    block[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                }
            }
            _ => {}
        }
    }
    row
}

fn encode(isa: Isa, x: &[f32], out: &mut [f32]) {
    let (heads, codes) = out.split_at_mut(HEAD * (x.len() / COLUMNS));
    encode_blocks(isa, x, bytemuck::cast_slice_mut(heads), bytemuck::cast_slice_mut(codes));
}

fn activations(columns: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    (0..columns)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            if state >> 33 & 63 == 0 { 30.0 * value } else { value }
        })
        .collect()
}

/// A unit of random rows, and each row's blocks.
fn unit(format: Format, columns: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut unit = vec![0; unit_bytes(format, columns)];
    let rows: Vec<Vec<u8>> = (0..UNIT_ROWS as u64).map(|row| blocks(format, columns, row + 1)).collect();
    rows.iter().enumerate().for_each(|(row, blocks)| pack(format, blocks, &mut unit, row));
    (unit, rows)
}

#[test]
fn what_is_packed_comes_back_bit_for_bit() {
    for format in formats() {
        let (unit, rows) = unit(format, 512);
        let mut found = Vec::new();
        for (row, wanted) in rows.iter().enumerate() {
            unpack(format, &unit, row, 512, &mut found);
            assert_eq!(&found, wanted, "{}, row {row}", format.name());
        }
        let bits = 8.0 * unit.len() as f64 / (512 * UNIT_ROWS) as f64;
        let (values, bytes) = format.block();
        println!("{}: {bits:.3} bits, {:.3} in the file", format.name(), 8.0 * bytes as f64 / values as f64);
        assert!(bits < 16.0 * bytes as f64 / values as f64, "{}: twice the file", format.name());
    }
}

#[test]
fn products_are_those_of_the_values_to_the_bit_on_every_machine() {
    for format in formats() {
        let (values, _) = format.block();
        for columns in [values, 3 * values, 768] {
            let (unit, rows) = unit(format, columns);
            let x: Vec<Vec<f32>> = (0..TOKENS as u64).map(|row| activations(columns, row + 5)).collect();
            let mut coded = vec![vec![0.0; coded_floats(columns)]; TOKENS];
            coded.iter_mut().zip(&x).for_each(|(coded, x)| encode(Isa::detect(), x, coded));
            let operands: Vec<Coded<'_>> = coded.iter().map(|coded| Coded::of(coded, columns)).collect();
            let wanted: Vec<f32> = x
                .iter()
                .flat_map(|x| {
                    rows.iter().map(move |blocks| {
                        let mut weights = Vec::new();
                        decode(format, blocks, &mut weights);
                        weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
                    })
                })
                .collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                for tokens in 1..=TOKENS {
                    let mut out = [[0.0; UNIT_ROWS]; TOKENS];
                    multiply(isa, format, &unit, &operands[..tokens], &mut out);
                    let found: Vec<f32> = out[..tokens].iter().flatten().copied().collect();
                    let error = nmse(&found, &wanted[..found.len()]);
                    assert!(error < 1e-8, "{} {isa:?}, {columns} columns: NMSE {error:.1e}", format.name());
                    let reference = first.get_or_insert_with(|| {
                        let mut out = [[0.0; UNIT_ROWS]; TOKENS];
                        multiply(isa, format, &unit, &operands, &mut out);
                        out.concat()
                    });
                    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
                    assert_eq!(
                        bits(&found),
                        bits(&reference[..found.len()]),
                        "{} {isa:?}, {tokens} rows",
                        format.name()
                    );
                }
            }
        }
    }
}

#[test]
fn activations_are_coded_to_a_part_in_65534_of_their_largest() {
    for isa in Isa::all() {
        let mut x = activations(160, 3);
        x[32..64].fill(0.0);
        x[64] = f32::INFINITY;
        x[96] = f32::NAN;
        x[128..160].iter_mut().for_each(|x| *x *= 1e-34);
        let mut coded = vec![0.0; coded_floats(160)];
        encode(isa, &x, &mut coded);
        let coded = Coded::of(&coded, 160);
        let largest = x[..32].iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (x, code) in x[..32].iter().zip(coded.codes) {
            assert!((x - f32::from(*code) * coded.blocks[0].scale).abs() <= largest * 1.0001 / 65534.0);
        }
        assert_eq!(coded.blocks[0].sum, coded.codes[..32].iter().map(|code| i32::from(*code)).sum::<i32>());
        assert_eq!(coded.blocks[0].first, coded.codes[..16].iter().map(|code| i32::from(*code)).sum::<i32>());
        let scales: Vec<f32> = coded.blocks.iter().map(|block| block.scale).collect();
        assert!(scales[1] == 0.0 && scales[2].is_nan() && scales[3].is_nan() && scales[4] == 0.0, "{scales:?}");
        assert_eq!(coded.part(1..2).blocks[0], coded.blocks[1]);
    }
}
