//! Random values, the tile packer, how results are compared, and how kernels are built and launched.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::panic::Location;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use fuse_kernels::{Activation, Family, Format, Kind, Storage, Tiles};
use fuse_tests::checked::Checked;
use fuse_tests::host_build::{HARNESS, HostBuffer, HostKernel};
use fuse_tests::{replaced, without_layout};
use fuserun::weights::{decode, pack_row};
use half::{bf16, f16};

use crate::texts::{packing, tests_of};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    /// Values that bfloat16 holds exactly.
    pub fn rounded(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| round(self.value())).collect()
    }
}

pub fn round(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

pub fn to_bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect()
}

/// As `f16` of device.cuh holds them: a sixteenth of the value.
pub fn to_f16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| f16::from_f32(value / 16.0).to_bits()).collect()
}

/// Activations as products with weights of the format read them.
pub fn to_operands(weights: Format, values: &[f32]) -> Vec<u16> {
    if weights == Format::BF16 { to_bf16(values) } else { to_f16(values) }
}

/// An activation that was rounded to what such products read.
pub fn round_operand(weights: Format, value: f64) -> f64 {
    match weights {
        Format::BF16 => round(value as f32).into(),
        _ => 16.0 * f16::from_f64(value / 16.0).to_f64(),
    }
}

pub fn from_bf16(values: &[u16]) -> Vec<f32> {
    values.iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect()
}

pub fn from_f16(values: &[u16]) -> Vec<f32> {
    values.iter().map(|&bits| 16.0 * f16::from_bits(bits).to_f32()).collect()
}

/// A row-major weight.
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
    /// How kernels read it, which holds the values exactly.
    format: Format,
    /// The values as quantised blocks.
    blocks: Vec<u8>,
}

impl Matrix {
    pub fn whole(rows: usize, columns: usize, values: Vec<f32>) -> Matrix {
        Matrix { rows, columns, values, format: Format::BF16, blocks: Vec::new() }
    }

    pub fn random(random: &mut Random, rows: usize, columns: usize) -> Matrix {
        Matrix::whole(rows, columns, random.rounded(rows * columns))
    }

    /// With values of the format: blocks of random integers, their scales about those of values around 1.
    pub fn of(format: Format, random: &mut Random, rows: usize, columns: usize) -> Matrix {
        if format.is_whole() {
            return Matrix { format, ..Matrix::random(random, rows, columns) };
        }
        // Where a block has f16 numbers, and about how large they are.
        let numbers: &[(usize, f32)] = match format {
            Format::Q8_0 => &[(0, 0.01)],
            Format::Q4_0 => &[(0, 0.15)],
            Format::Q4_1 => &[(0, 0.15), (2, -1.0)],
            Format::Q5_0 => &[(0, 0.07)],
            Format::Q5_1 => &[(0, 0.07), (2, -1.0)],
            Format::Q2K => &[(80, 0.05), (82, 0.08)],
            Format::Q3K => &[(108, 0.015)],
            Format::Q4K => &[(0, 0.005), (2, 0.03)],
            Format::Q5K => &[(0, 0.0025), (2, 0.03)],
            Format::Q6K => &[(208, 0.0005)],
            Format::Iq4Nl => &[(0, 0.01)],
            Format::Iq4Xs => &[(0, 0.0005)],
            _ => &[],
        };
        let bytes = format.bytes(rows * columns).expect("rows are whole blocks");
        let mut blocks: Vec<u8> = (0..bytes).map(|_| random.bits() as u8).collect();
        for block in blocks.chunks_exact_mut(format.block().1) {
            let mut near = |size: f32| size * (1.0 + 0.5 * random.value());
            for &(at, size) in numbers {
                block[at..at + 2].copy_from_slice(&f16::from_f32(near(size)).to_le_bytes());
            }
            match format {
                Format::Fp8 | Format::Fp8x128 => {
                    block[..4].copy_from_slice(&near(0.01).to_le_bytes());
                    // All bits but the sign: not a number.
                    block[4..].iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 0x10);
                }
                Format::Int8 | Format::Int8x128 => block[..4].copy_from_slice(&near(0.01).to_le_bytes()),
                Format::Int4x32 | Format::Int4x128 => {
                    // An fp32 scale with the zero point in its lowest bits.
                    let zero = u32::from(block[0] % 17);
                    let scale = near(0.15).to_bits() & !0x1fff;
                    block[..4].copy_from_slice(&(scale | zero).to_le_bytes());
                }
                Format::Nvfp4 => {
                    block[..4].copy_from_slice(&near(0.3).to_le_bytes());
                    block[4..8].copy_from_slice(&near(0.3).to_le_bytes());
                }
                Format::Mxfp4 => block[0] = 123 + block[0] % 5,
                _ => {}
            }
        }
        let mut values = Vec::new();
        decode(format, &blocks, &mut values);
        Matrix { rows, columns, values, format, blocks }
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// Which weight and row stands in row `row` of row tile `tile`, if any. `gated`: `weights` are the gate and the other.
fn source(rows: &[usize], gated: bool, tile: usize, row: usize) -> Option<(usize, usize)> {
    if gated {
        let at = 8 * tile + row % 8;
        return (at < rows[0]).then_some((row / 8, at));
    }
    let mut first = 0;
    for (weight, &count) in rows.iter().enumerate() {
        let tiles = count.div_ceil(16);
        if tile < first + tiles {
            let at = 16 * (tile - first) + row;
            return (at < count).then_some((weight, at));
        }
        first += tiles;
    }
    None
}

fn row_tiles(rows: &[usize], gated: bool) -> usize {
    if gated { rows[0].div_ceil(8) } else { rows.iter().map(|rows| rows.div_ceil(16)).sum() }
}

/// The layout of tiles.cuh. Element by element, from where the mma.m16n8k16 fragment wants it: register r of a lane holds row l / 4 of
/// the tile, plus 8 if r is odd, and the lower or (r >= 2) upper half of the tile's columns.
pub fn pack(weights: &[Matrix], gated: bool) -> Vec<u16> {
    let rows: Vec<usize> = weights.iter().map(|weight| weight.rows).collect();
    let (columns, format) = (weights[0].columns, weights[0].format);
    if !format.is_whole() {
        return pack_blocks(weights, &rows, gated);
    }
    let bits = |value: f32| match format {
        Format::F16 => f16::from_f32(256.0 * value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    };
    let mut packed = Vec::new();
    for tile in 0..row_tiles(&rows, gated) {
        for pair in 0..columns.div_ceil(32) {
            for half in 0..2 {
                for lane in 0..32 {
                    for register in 0..4 {
                        for odd in 0..2 {
                            let row = lane / 4 + 8 * (register % 2);
                            let column = 32 * pair + 8 * (lane % 4) + 4 * half + 2 * (register / 2) + odd;
                            let value = source(&rows, gated, tile, row)
                                .filter(|_| column < columns)
                                .map_or(0.0, |(weight, at)| weights[weight].row(at)[column]);
                            packed.push(bits(value));
                        }
                    }
                }
            }
        }
    }
    packed
}

/// Quantised blocks, by the runtime's packer: kernels judge it.
fn pack_blocks(weights: &[Matrix], rows: &[usize], gated: bool) -> Vec<u16> {
    let (columns, format) = (weights[0].columns, weights[0].format);
    let tile_bytes = format.packed().expect("kernels read it").bytes_of(1, columns);
    let row_bytes = format.bytes(columns).expect("rows are whole blocks");
    let mut packed = vec![0u8; row_tiles(rows, gated) * tile_bytes];
    for (tile, out) in packed.chunks_exact_mut(tile_bytes).enumerate() {
        for row in 0..16 {
            let Some((weight, at)) = source(rows, gated, tile, row) else { continue };
            let blocks = &weights[weight].blocks[at * row_bytes..][..row_bytes];
            pack_row(format, row, blocks, out).expect("a row of whole blocks");
        }
    }
    packed.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// A value per packed row: biases in packed row order. Padding is NaN: nobody may look at it.
pub fn pack_bias(biases: &[Vec<f32>], gated: bool) -> Vec<f32> {
    let rows: Vec<usize> = biases.iter().map(Vec::len).collect();
    (0..16 * row_tiles(&rows, gated))
        .map(|row| source(&rows, gated, row / 16, row % 16).map_or(f32::NAN, |(weight, at)| biases[weight][at]))
        .collect()
}

pub fn activate(activation: Option<Activation>, x: f64) -> f64 {
    match activation {
        Some(Activation::Silu) => x / (1.0 + (-x).exp()),
        Some(Activation::Gelu) => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Some(Activation::GeluTanh) => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::Relu2) => x.max(0.0) * x.max(0.0),
        None => x,
    }
}

/// By its Taylor series: exact for the small arguments of these tests.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// What separates a result from its reference in arithmetic that the kernel is free to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// fp32 throughout, sums in another order: relative errors of about 1e-7, squared. NMSE 1e-11, no value off by 1e-4 of the RMS.
    Exact,
    /// Values rounded to bfloat16 on the way or at the end: relative errors up to 2^-9, so an NMSE of 2^-18 / 3 = 1.3e-6 for each
    /// rounding. NMSE 1e-5, no value off by 4% of the RMS (2^-9 of a value of ten times the RMS, twice).
    Rounded,
    /// fp32 throughout, and rounded to bfloat16 at the end: each value is off by half of its last bit, 2^-8 of it at most, and by 1e-4 of the RMS.
    Stored,
    /// The reference rounds nothing while the kernel rounds its inputs and its gated product to bfloat16, whose errors a gate
    /// multiplies: the bound that whole models have, NMSE 1e-4.
    Unrounded,
}

/// Fails where `got` is not `expected` within the bound, or not a number.
pub fn compare(what: &str, expected: &[f64], got: &[f32], bound: Bound) -> Result<()> {
    ensure!(expected.len() == got.len(), "{what}: {} values, expected {}", got.len(), expected.len());
    let (nmse_bound, value_bound) = match bound {
        Bound::Exact => (1e-11, 1e-4),
        Bound::Rounded => (1e-5, 0.04),
        Bound::Stored => (1e-5, 1e-4),
        Bound::Unrounded => (1e-4, 0.1),
    };
    let power = expected.iter().map(|value| value * value).sum::<f64>().max(1e-30);
    let rms = (power / expected.len() as f64).sqrt();
    let mut error = 0.0;
    for (index, (&expected, &got)) in expected.iter().zip(got).enumerate() {
        let difference = f64::from(got) - expected;
        let last_bit = if bound == Bound::Stored { expected.abs() / 256.0 } else { 0.0 };
        ensure!(
            difference.abs() <= last_bit + value_bound * rms,
            "{what}: value {index} is {got}, expected {expected} (RMS {rms:.3e})"
        );
        error += difference * difference;
    }
    let nmse = error / power;
    ensure!(nmse <= nmse_bound, "{what}: NMSE {nmse:.3e} above {nmse_bound:.0e}");
    Ok(())
}

/// The mutation a test plants in an emitted source: every `from`, in any layout, becomes `to`.
#[derive(Clone, Copy)]
pub struct Mutation {
    pub from: &'static str,
    pub to: &'static str,
}

/// A packed weight of these rows, or of the rows of several weights; results in fp32.
pub fn tiles(k: usize, rows: &[usize]) -> Tiles {
    Tiles { weights: Format::BF16, k, rows: rows.to_vec(), gated: false, out: Storage::F32 }
}

/// Room for results.
pub fn room(values: usize, storage: Storage) -> HostBuffer {
    HostBuffer::output::<u8>(values * storage.bytes())
}

/// Results, each of which was written.
pub fn written(buffer: &HostBuffer, storage: Storage) -> Result<Vec<f32>> {
    Ok(match storage {
        Storage::F32 => buffer.written::<f32>()?,
        Storage::BF16 => from_bf16(&buffer.written::<u16>()?),
        Storage::F16 | Storage::Tiled => from_f16(&buffer.written::<u16>()?),
    })
}

/// A buffer as an argument; null unless `present`.
pub fn given(present: bool, buffer: &HostBuffer) -> u64 {
    if present { buffer.address() } else { 0 }
}

/// A kernel of a family, as code of this machine.
pub struct Built<'a> {
    family: &'a dyn Family,
    code: HostKernel,
}

thread_local! {
    /// The sources that this thread built without a mistake, without their layout.
    pub static SUBJECTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Builds a kernel, with the mistake planted if there is one.
pub fn build(family: &dyn Family, mutation: Option<Mutation>) -> Result<Built<'_>> {
    let source = match (family.source()?, mutation) {
        (source, None) => {
            SUBJECTS.with_borrow_mut(|subjects| subjects.push(without_layout(&source)));
            source
        }
        (source, Some(Mutation { from, to })) => {
            let mutated = replaced(&source, from, to);
            mutated.unwrap_or_else(|| panic!("the source has no `{from}` to mutate"))
        }
    };
    Ok(Built { family, code: HostKernel::build(&source, &family.name())? })
}

impl Built<'_> {
    /// Runs a launch for this many rows, as the family has it. See [`bind`] for its arguments.
    pub fn launch(&self, rows: usize, given: &[(&str, u64)]) -> Result<()> {
        let grid = self.family.grid(rows).map(|size| size as u32);
        let (threads, shared_bytes) = (self.family.threads() as u32, self.family.shared_bytes() as u32);
        self.code.launch(grid, threads, shared_bytes, &bind(self.family, given)?)
    }
}

/// The arguments of a kernel in the order of its parameters, from addresses and numbers by name. Optional ones may be left out or null.
pub fn bind(family: &dyn Family, given: &[(&str, u64)]) -> Result<Vec<u64>> {
    let params = family.params();
    for (index, (name, _)) in given.iter().enumerate() {
        ensure!(params.iter().any(|param| param.name == *name), "{} has no parameter `{name}`", family.name());
        ensure!(given[..index].iter().all(|(other, _)| other != name), "`{name}` is given twice");
    }
    let argument = |param: &fuse_kernels::Param| match given.iter().find(|(name, _)| *name == param.name) {
        Some((_, 0)) if !param.optional && param.kind != Kind::Number => bail!("`{}` may not be null", param.name),
        Some((_, value)) => Ok(*value),
        None if param.optional => Ok(0),
        None => bail!("{} is not given its `{}`", family.name(), param.name),
    };
    params.iter().map(argument).collect()
}

thread_local! {
    /// Lists of cases that this test has checked.
    static LISTS: Cell<usize> = const { Cell::new(0) };
}

/// As [`check_cases`], unless the same cases passed with the same sources and tests.
#[track_caller]
pub fn check_each<C: Debug>(
    cases: &[C],
    kernel: impl Fn(&C) -> &dyn Family,
    check: impl Fn(&C) -> Result<()>,
) -> Result<()> {
    let mut parts: Vec<String> = HARNESS.map(str::to_owned).into();
    parts.extend(packing());
    parts.extend(tests_of(Location::caller().file()));
    for case in cases {
        parts.extend([format!("{case:?}"), without_layout(&kernel(case).source()?)]);
    }
    LISTS.set(LISTS.get() + 1);
    let test = thread::current();
    let name = format!("{} {}", test.name().unwrap_or("a test"), LISTS.get());
    Checked::of("cases").run(&name, &parts, || check_cases(cases, kernel, check)).map(|_| ())
}

/// Builds the kernels of all cases side by side, then checks each.
pub fn check_cases<C: Debug>(
    cases: &[C],
    kernel: impl Fn(&C) -> &dyn Family,
    check: impl Fn(&C) -> Result<()>,
) -> Result<()> {
    let sources = cases.iter().map(|case| Ok((kernel(case).source()?, kernel(case).name())));
    HostKernel::build_all(&sources.collect::<Result<Vec<(String, String)>>>()?)?;
    cases.iter().try_for_each(|case| check(case).with_context(|| format!("{case:?}")))
}

#[test]
fn arguments_are_bound_by_name() {
    let norm =
        fuse_kernels::Norm { kind: fuse_kernels::NormKind::Rms, size: 8, eps: 1e-5, paired: false, out: Storage::F32 };
    assert_eq!(bind(&norm, &[("out", 3), ("bias", 0), ("x", 1)]).unwrap(), [1, 0, 0, 3]);
    let error = |given: &[(&str, u64)]| bind(&norm, given).unwrap_err().to_string();
    assert!(error(&[("x", 1), ("out", 3), ("y", 2)]).ends_with("has no parameter `y`"));
    assert!(error(&[("x", 1)]).ends_with("is not given its `out`"));
    assert_eq!(error(&[("x", 0), ("out", 3)]), "`x` may not be null");
    assert_eq!(error(&[("x", 1), ("x", 1), ("out", 3)]), "`x` is given twice");
}
