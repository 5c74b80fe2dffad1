//! Every format of packed weights in every kernel that reads them, against the values that its blocks stand for.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use fuse_kernels::{
    Activation, AttentionRows, Embedding, ExpertsHidden, ExpertsSum, Family, Format, Matmul, MatmulWgmma, Matvec, Norm,
    NormKind, Splits, Storage, Tiles,
};
use fuse_tests::checked::Checked;
use fuse_tests::host_build::{HARNESS, HostBuffer};
use fuse_tests::root;

use crate::attention_projection;
use crate::caught::caught;
use crate::experts::{self, Hidden, Sum};
use crate::matmul;
use crate::matmul_wgmma;
use crate::matvec::{self, Case, combining, gated, rms};
use crate::support::*;
use crate::texts::{packing, tests_of};

/// Those that multiply in half precision.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.packed().is_some() && *format != Format::BF16)
}

/// Columns that are whole blocks, in steps that are not all full, times `many`.
fn columns(format: Format, many: usize) -> usize {
    let (values, _) = format.block();
    many * if values > 1 { values } else { 44 }
}

fn with(format: Format, tiles: Tiles) -> Tiles {
    Tiles { weights: format, ..tiles }
}

fn product(format: Format, kernel: Matvec) -> Matvec {
    Matvec { tiles: with(format, kernel.tiles), ..kernel }
}

/// Runs a check for each format, unless it passed before with the same kernels, the same part of them that reads the format, the same packing and the same tests.
fn in_each(test: &str, check: impl Fn(Format) -> Result<()>) -> Result<()> {
    let (kernels, tests) = (kernels()?, tests_of(file!()));
    for format in formats() {
        let reads = Embedding { tiles: with(format, tiles(columns(format, 1), &[16])) }.source()?;
        let parts = HARNESS.into_iter().chain(kernels.iter().chain(&tests).map(String::as_str)).chain([reads.as_str()]);
        let parts: Vec<&str> = parts.collect();
        let name = format!("{test}, {}", format.name());
        let checked = Checked::of("formats").run(&name, &parts, || check(format));
        checked.with_context(|| format!("{} weights", format.name()))?;
    }
    Ok(())
}

/// The texts of the kernels as they are written, without what reads a format, and of what packs weights for them.
fn kernels() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("templates/kernels"))? {
        files.push(entry?.path());
    }
    files.retain(|path: &PathBuf| path.is_file());
    files.sort();
    let texts = files.iter().map(|path| fs::read_to_string(path).with_context(|| path.display().to_string()));
    texts.chain(packing().into_iter().map(Ok)).collect()
}

#[test]
fn products_of_few_rows() -> Result<()> {
    in_each("products_of_few_rows", |format| {
        let k = columns(format, 3);
        let f16 = |kernel: Matvec| Matvec { tiles: Tiles { out: Storage::F16, ..kernel.tiles }, ..kernel };
        let staged = |kernel| Matvec { staged: true, ..kernel };
        let split = |kernel: Matvec| Matvec { split: 2, blocks: 2 * kernel.blocks, ..kernel };
        let plain = |many, rows: &[usize], batch| product(format, matvec::plain(columns(format, many), rows, batch));
        let share = plain(4, &[150], 2).tiles.steps().div_ceil(4);
        let mut cases = vec![
            Case::of(plain(1, &[19], 1)),
            Case { bias: true, ..Case::of(staged(Matvec { residual: true, ..plain(3, &[40], 2) })) },
            Case { bias: true, ..Case::of(f16(gated(Activation::Silu, rms(plain(3, &[37], 1))))) },
            Case::of(rms(Matvec { argmax: true, depth: 3, ..plain(3, &[70], 8) })),
            // Many row tiles share what x is summed up for.
            Case::of(rms(Matvec { blocks: 1, ..plain(5, &[70], 1) })),
            Case::of(staged(Matvec { blocks: 1, unit: 2, depth: 4, residual: true, ..plain(5, &[80], 4) })),
            Case::of(rms(Matvec { warps: 8, depth: 2, ..plain(5, &[33, 16, 20], 4) })),
            Case { norm_bias: true, ..Case::of(matvec::normed(NormKind::Layer, plain(3, &[20], 2))) },
            Case::of(Matvec { paired: true, staged: true, ..plain(3, &[20], 4) }),
            Case::of(split(staged(Matvec { residual: true, ..plain(4, &[75], 1) }))),
            Case::of(Matvec { unit: 2, depth: 2 * share, warps: 4, ..plain(4, &[150], 2) }),
            Case::of(combining(
                4,
                Splits { max: 4, keys: 4, window: 0, merged: 1 },
                product(format, matvec::plain(4 * k, &[33], 2)),
            )),
        ];
        if format != Format::BF16 {
            cases.push(Case::of(matvec::alike(format, plain(3, &[37], 4))));
            cases.push(Case {
                bias: true,
                ..Case::of(gated(Activation::Silu, matvec::alike(format, plain(3, &[37], 1))))
            });
        }
        matvec::check_all(&cases)
    })
}

#[test]
fn products_of_many_rows() -> Result<()> {
    in_each("products_of_many_rows", |format| {
        let tiles = |many, rows: &[usize]| with(format, tiles(columns(format, many), rows));
        let inside = Tiles { gated: true, out: Storage::F16, ..tiles(3, &[27]) };
        let silu = Matmul { activation: Some(Activation::Silu), ..matmul::plain(inside, [2, 1, 2, 2]) };
        let full = matmul::Case {
            bias: true,
            residual: true,
            ..matmul::Case::of(matmul::plain(tiles(3, &[100]), [1, 4, 2, 2]), 17)
        };
        let cases = [
            full,
            matmul::Case::of(matmul::plain(tiles(1, &[20, 7, 33]), [2, 2, 1, 1]), 11),
            matmul::Case::of(silu, 9),
        ];
        check_cases(&cases, |case| &case.kernel, |case| case.check(None))
    })
}

#[test]
fn products_by_wgmma_in_half_precision() -> Result<()> {
    let half = |kernel: MatmulWgmma| MatmulWgmma { tiles: with(Format::F16, kernel.tiles), ..kernel };
    let plain = matmul_wgmma::plain(256, &[75], (1, 32));
    let up = matmul_wgmma::gated(Activation::Silu, matmul_wgmma::plain(128, &[192], (1, 32)));
    let cases = [
        matmul_wgmma::Case::of(half(plain.clone()), 40),
        matmul_wgmma::Case::of(half(matmul_wgmma::stored(Storage::Tiled, up.clone())), 40),
        matmul_wgmma::Case::of(half(matmul_wgmma::stored(Storage::F16, MatmulWgmma { split: 2, ..up })), 24),
    ];
    check_cases(&cases, |case| &case.kernel, |case| case.check(None))
}

#[test]
fn rows_of_a_table() -> Result<()> {
    in_each("rows_of_a_table", |format| {
        let (vocabulary, k) = (41, columns(format, 3));
        let table = Matrix::of(format, &mut Random(1), vocabulary, k);
        let ids = [40, 0, 17, -1, 8];
        let value = |(token, i): (i32, usize)| if token < 0 { 0.0 } else { f64::from(table.row(token as usize)[i]) };
        let expected: Vec<f64> = ids.iter().flat_map(|&token| (0..k).map(move |i| (token, i))).map(value).collect();
        let weights = HostBuffer::input(&pack(std::slice::from_ref(&table), false));
        let (tokens, out) = (HostBuffer::input(&ids), HostBuffer::output::<f32>(ids.len() * k));
        let family = Embedding { tiles: with(format, tiles(k, &[vocabulary])) };
        let arguments = [("weights", weights.address()), ("tokens", tokens.address()), ("out", out.address())];
        build(&family, None)?.launch(ids.len(), &arguments)?;
        compare("embedding", &expected, &out.written::<f32>()?, Bound::Exact)
    })
}

#[test]
fn experts_of_few_rows() -> Result<()> {
    in_each("experts_of_few_rows", |format| {
        let inside = Tiles { out: Storage::F16, ..with(format, experts::inside(columns(format, 2), 40)) };
        let down = with(format, tiles(columns(format, 2), &[37]));
        for batch in [1, 4] {
            let kernel = ExpertsHidden { tiles: inside.clone(), ..experts::hidden(6, 2, batch) };
            Hidden::of(kernel.clone()).check(None)?;
            Hidden::of(ExpertsHidden { norm: None, ..kernel.clone() }).check(None)?;
            if format != Format::BF16 {
                Hidden::of(ExpertsHidden { alike: true, summed: true, ..kernel }).check(None)?;
            }
            let kernel = ExpertsSum { tiles: down.clone(), ..experts::sum(6, 2, batch) };
            Sum::of(kernel.clone()).check(None)?;
            Sum::of(ExpertsSum { staged: false, depth: 3, ..kernel }).check(None)?;
        }
        Ok(())
    })
}

#[test]
fn experts_of_many_rows() -> Result<()> {
    in_each("experts_of_many_rows", |format| {
        let inside = Tiles { out: Storage::F16, ..with(format, experts::inside(columns(format, 2), 40)) };
        let mut case = experts::Rows::inside(experts::route(6, 2), inside, Activation::Silu, 16, 1);
        case.product.paired = false;
        case.check([None, None])?;
        let down = with(format, tiles(columns(format, 2), &[37]));
        experts::Rows::by_pair(experts::route(6, 2), down, 16, 1).check([None, None])
    })
}

#[test]
fn attention_with_its_projection() -> Result<()> {
    in_each("attention_with_its_projection", |format| {
        // Blocks of a cluster have whole steps of the columns.
        let heads = format.packed().context("it is packed")?.columns.max(256) / 32;
        let mut case = attention_projection::Case::new([2 * heads, 2, 32], 2, 37, 2).at(&[40, 3]);
        case.kernel.tiles = with(format, case.kernel.tiles);
        case.check(None)
    })
}

/// What stores operands of such products: norms in both orders, and attention of many rows.
#[test]
fn operands_in_half_precision() -> Result<()> {
    let case = crate::attention_rows::plain(4, 2, 32);
    for out in [Storage::F16, Storage::Tiled] {
        crate::attention_rows::Case::of(AttentionRows { out, ..case.clone() }, 24).check(None)?;
        let (rows, size, eps) = (3, 192, 1e-5);
        let x: Vec<f32> = Random(3).floats(rows * size).iter().map(|value| 2.0 * value + 0.3).collect();
        let normed = |row: &[f32]| {
            let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / size as f64;
            row.iter().map(|&x| f64::from(x) / (square + eps).sqrt()).collect::<Vec<f64>>()
        };
        let expected: Vec<f64> = x.chunks(size).flat_map(normed).collect();
        let spec = Norm { kind: NormKind::Rms, size, eps: eps as f32, paired: false, out };
        let (given, result) = (HostBuffer::input(&x), room(rows * size, out));
        let arguments = [("x", given.address()), ("out", result.address())];
        let got = if out.is_tiled() {
            build(&fuse_kernels::NormRows(spec), None)?.launch(rows, &arguments)?;
            matmul_wgmma::untiled(&result.written()?, rows)
        } else {
            build(&spec, None)?.launch(rows, &arguments)?;
            written(&result, out)?
        };
        compare("norm", &expected, &got, Bound::Stored)?;
    }
    Ok(())
}

// Planted mistakes.

#[test]
fn in_a_matvec_behind_a_norm_like_another() {
    let case = matvec::Case::of(matvec::alike(Format::F16, Matvec { warps: 8, ..matvec::plain(150, &[18], 4) }));
    caught(
        "in_a_matvec_behind_a_norm_like_another",
        |mutation| case.check(mutation),
        &[
            ("range[row + r] * X_UNIT", "X_UNIT", "output"),
            ("range[warp % BATCH]", "range[0]", "output"),
            ("* inverse_power(own_range)", "", "output"),
            ("rms[warp] = power_below(inverse)", "rms[warp] = inverse", "left"),
            ("warp < BATCH && lane == 0) rms", "warp < 1 && lane == 0) rms", "not written"),
        ],
    );
}

#[test]
fn in_the_sums_of_steps() {
    let tiles = Tiles { weights: Format::Q4K, ..tiles(1280, &[70]) };
    let case = matvec::Case::of(rms(Matvec { warps: 4, depth: 2, blocks: 1, ..Matvec::plain(tiles, 4) }));
    caught(
        "in_the_sums_of_steps",
        |mutation| case.check(mutation),
        &[
            ("4 * group + group / 2", "4 * group", "output"),
            ("group % 2 ? odd : even", "group % 2 ? even : odd", "output"),
            ("quad % 2 ? of_pair[2] : of_pair[0]", "of_pair[0]", "output"),
            ("pack_f16(first - f16_low(hi)", "pack_f16(first + f16_low(hi)", "output"),
            ("pair == 0 && i < 4", "pair == 1 && i < 4", "output"),
            ("(minima << 8 & 0xff0000)", "(minima & 0xff0000)", "output"),
            ("-f16_high(low), -f16_high(high)", "f16_high(low), f16_high(high)", "output"),
            ("step_sums[32 * step] = sums", "step_sums[32 * (step / 2)] = sums", "shared memory"),
        ],
    );
}
