//! Random quantised blocks, of a size that a model can be made of.

use fusec::ir::Format;

/// The number by which GGUF knows a format.
pub(super) fn number(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::BF16 => 30,
        Format::I32 => 26,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::Iq4Nl => 20,
        Format::Iq4Xs => 23,
        Format::Mxfp4 => 39,
        Format::Fp8
        | Format::Fp8x128
        | Format::Int8
        | Format::Int8x128
        | Format::Int4x32
        | Format::Int4x128
        | Format::Nvfp4 => {
            panic!("GGUF has no {}", format.name())
        }
    }
}

/// The blocks of `values` values: random bytes, but for the scales, which bring most values to between -0.1 and 0.1.
pub fn random_blocks(format: Format, values: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    };
    let (per_block, size) = format.block();
    let mut bytes = Vec::new();
    for _ in 0..values / per_block {
        let begin = bytes.len();
        bytes.extend((0..size).map(|_| next() as u8));
        let block = &mut bytes[begin..];
        let mut put = |at: usize, value: f32| {
            let value = value * (0.5 + (next() % 1000) as f32 / 1000.0);
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        };
        match format {
            Format::Q8_0 => put(0, 5e-4),
            Format::Q4_0 => put(0, 8e-3),
            Format::Q4_1 => [(0, 8e-3), (2, -6e-2)].into_iter().for_each(|(at, value)| put(at, value)),
            Format::Q5_0 => put(0, -4e-3),
            Format::Q5_1 => [(0, 4e-3), (2, -6e-2)].into_iter().for_each(|(at, value)| put(at, value)),
            Format::Q2K => [(80, 4e-3), (82, 6e-3)].into_iter().for_each(|(at, value)| put(at, value)),
            Format::Q3K => put(108, 1.2e-3),
            Format::Q4K => [(0, 2e-4), (2, 1.5e-3)].into_iter().for_each(|(at, value)| put(at, value)),
            Format::Q5K => [(0, 1e-4), (2, 1.5e-3)].into_iter().for_each(|(at, value)| put(at, value)),
            Format::Q6K => put(208, 4e-5),
            Format::Iq4Nl => put(0, 8e-4),
            Format::Iq4Xs => put(0, 5e-5),
            Format::Mxfp4 => block[0] = 121 + (next() % 3) as u8,
            Format::Fp8
            | Format::Fp8x128
            | Format::Int8
            | Format::Int8x128
            | Format::Int4x32
            | Format::Int4x128
            | Format::Nvfp4 => {
                panic!("GGUF has no {}", format.name())
            }
            Format::F32 | Format::F16 | Format::BF16 | Format::I32 => panic!("{} has no blocks", format.name()),
        }
    }
    bytes
}
