//! Checkpoint tensors into the buffers that kernels read, by the plan's recipes.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use fusec::ir::{Format, WeightRef};
use fusec::plan::{Part, Recipe};
use fusec::threads;

use super::Checkpoint;
use super::row_tiles::{ROWS, pack_row, pack_whole, set_scales, whole_bits};
use super::select;

/// Makes the buffer of a recipe.
///
/// # Errors
/// A tensor that is missing or has another shape than the recipe says.
pub fn pack(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    let mut packed = Vec::with_capacity(recipe.bytes());
    pack_in_pieces(recipe, checkpoint, usize::MAX, &mut |bytes, fill| {
        let at = packed.len();
        packed.resize(at + bytes, 0);
        fill(&mut packed[at..])
    })?;
    Ok(packed)
}

/// Writes the whole of a piece.
pub type Fill<'f> = dyn FnMut(&mut [u8]) -> Result<()> + 'f;

/// Makes the buffer of a recipe in pieces of at most `most` bytes, one after the other: each is filled where `put` has a place for its bytes.
///
/// # Errors
/// As of [`pack`], and what `put` says; a `most` below [`least_piece`].
pub fn pack_in_pieces(
    recipe: &Recipe,
    checkpoint: &Checkpoint,
    most: usize,
    put: &mut dyn FnMut(usize, &mut Fill<'_>) -> Result<()>,
) -> Result<()> {
    match recipe {
        Recipe::Tiles { .. } => tiles(recipe, checkpoint, most, put),
        Recipe::Experts { count, .. } | Recipe::Biases { experts: Some(count), .. } => {
            (0..*count).try_for_each(|index| {
                let expert = recipe.expert(index).context("a recipe of experts has none")?;
                pack_in_pieces(&expert, checkpoint, most, put)
            })
        }
        Recipe::Biases { .. } | Recipe::Vector { .. } => {
            let values = floats(recipe, checkpoint)?;
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            bytes.chunks(most).try_for_each(|bytes| {
                put(bytes.len(), &mut |to| {
                    to.copy_from_slice(bytes);
                    Ok(())
                })
            })
        }
    }
}

/// Bytes of the smallest piece that a recipe can be made in.
pub fn least_piece(recipe: &Recipe) -> usize {
    match recipe {
        Recipe::Tiles { k, format, .. } | Recipe::Experts { k, format, .. } => {
            format.packed().map_or(0, |packed| packed.steps(*k) * packed.bytes)
        }
        Recipe::Biases { .. } | Recipe::Vector { .. } => 4,
    }
}

fn floats(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
    match recipe {
        Recipe::Biases { parts, .. } => {
            let biases: Vec<Option<Vec<f32>>> = parts
                .iter()
                .map(|(tensor, rows)| tensor.as_ref().map(|name| vector(name, *rows, checkpoint)).transpose())
                .collect::<Result<_>>()?;
            let value = |(part, row): (usize, usize)| biases[part].as_ref().map_or(0.0, |bias| bias[row]);
            Ok(recipe.packed_rows().into_iter().map(|row| row.map_or(0.0, value)).collect())
        }
        Recipe::Vector { tensor, size, offset_bits } => {
            let offset = f32::from_bits(*offset_bits);
            Ok(vector(tensor, *size, checkpoint)?.iter().map(|value| value + offset).collect())
        }
        Recipe::Tiles { .. } | Recipe::Experts { .. } => bail!("a recipe of row tiles has no vector"),
    }
}

fn tiles(
    recipe: &Recipe,
    checkpoint: &Checkpoint,
    most: usize,
    put: &mut dyn FnMut(usize, &mut Fill<'_>) -> Result<()>,
) -> Result<()> {
    let &Recipe::Tiles { ref parts, k, transposed, format, .. } = recipe else { bail!("not a recipe of row tiles") };
    for part in parts {
        let expected = if transposed { [k, part.rows] } else { [part.rows, k] };
        let shape = checkpoint.shape(&part.tensor)?;
        ensure!(shape == expected, "tensor {} has shape {shape:?}, not {expected:?}", part.tensor);
    }
    // Rows of a transposed weight are its columns, and a matrix of several is read as a whole: that happens once.
    let at_once = |part: &Part| {
        let weight = &part.tensor;
        let values = || checkpoint.read_f32(weight);
        match transposed {
            true => Ok(Some(turn(&values()?, k, part.rows)?)),
            false if format.is_whole() && (weight.turned || weight.matrix.is_some()) => Ok(Some(values()?)),
            false => Ok(None),
        }
    };
    let whole: Vec<Option<Vec<f32>>> = parts.iter().map(at_once).collect::<Result<_>>()?;
    let packed = format.packed().with_context(|| format!("no kernel reads {} weights", format.name()))?;
    let packed_rows = recipe.packed_rows();
    let steps = packed.steps(k);
    let (tile_bytes, tiles) = (steps * packed.bytes, packed_rows.len() / ROWS);
    ensure!(recipe.bytes() == tiles * tile_bytes, "the recipe's size is not its rows' size");
    // Numbers that stay as they are.
    let copied = parts.iter().zip(&whole).map(|(part, whole)| {
        let kept = format == Format::BF16 && whole.is_none();
        Ok(kept && checkpoint.raw_format(&part.tensor)? == Some(format))
    });
    let copied: Vec<bool> = copied.collect::<Result<_>>()?;
    let pack_tile = |scratch: &mut Scratch, tile: usize, out: &mut [u8]| {
        let wanted = &packed_rows[tile * ROWS..(tile + 1) * ROWS];
        if !format.is_whole() {
            out.fill(0);
        }
        for (first, part, rows) in runs(wanted) {
            let name = &parts[part].tensor;
            let read = || format!("rows {} to {} of {name}", rows.start, rows.end);
            let columns = steps * packed.columns;
            if copied[part] {
                scratch.whole.resize(ROWS * columns, 0);
                checkpoint.raw_rows(name, rows.clone(), &mut scratch.raw).with_context(read)?;
                for (row, bytes) in scratch.raw.chunks_exact(2 * k).enumerate() {
                    let into = &mut scratch.whole[(first + row) * columns..][..k];
                    let numbers = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
                    into.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
                }
                continue;
            }
            if !format.is_whole() {
                scratch.raw.clear();
                checkpoint.raw_rows(name, rows.clone(), &mut scratch.raw).with_context(read)?;
                let row_bytes = format.bytes(k).with_context(|| format!("{name}: {k} columns are not whole blocks"))?;
                for (row, blocks) in scratch.raw.chunks_exact(row_bytes).enumerate() {
                    pack_row(format, first + row, blocks, out).with_context(read)?;
                }
                continue;
            }
            let values: &[f32] = match &whole[part] {
                Some(values) => &values[rows.start * k..rows.end * k],
                None => {
                    checkpoint.read_rows_f32(name, rows.clone(), &mut scratch.values).with_context(read)?;
                    &scratch.values
                }
            };
            scratch.whole.resize(ROWS * columns, 0);
            for (row, values) in values.chunks_exact(k).enumerate() {
                let into = &mut scratch.whole[(first + row) * columns..][..k];
                for (to, &value) in into.iter_mut().zip(values) {
                    *to = whole_bits(format, value).with_context(|| {
                        format!("{name} has the weight {value}, which {} cannot hold", format.name())
                    })?;
                }
            }
        }
        if format.is_whole() {
            scratch.whole.resize(ROWS * steps * packed.columns, 0);
            pack_whole(&scratch.whole, steps * packed.columns, out);
            scratch.whole.clear();
        }
        anyhow::Ok(())
    };
    ensure!(tile_bytes > 0 && most >= tile_bytes, "a piece of {most} bytes has no room for a row tile of {tile_bytes}");
    let step = most / tile_bytes;
    for first in (0..tiles).step_by(step) {
        let count = step.min(tiles - first);
        put(count * tile_bytes, &mut |out| {
            let tiles = out.chunks_exact_mut(tile_bytes).enumerate();
            threads::for_each(threads::available(), tiles, Scratch::default, |scratch, (tile, out)| {
                pack_tile(scratch, first + tile, out)
            })
        })?;
    }
    Ok(())
}

/// What a thread that packs uses again for each row tile.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    raw: Vec<u8>,
    whole: Vec<u16>,
}

/// Neighbouring rows of one part, which are read in one go: where they begin in a row tile, the part, its rows.
fn runs(wanted: &[Option<(usize, usize)>]) -> Vec<(usize, usize, Range<usize>)> {
    let mut runs: Vec<(usize, usize, Range<usize>)> = Vec::new();
    for (at, &row) in wanted.iter().enumerate() {
        let Some((part, row)) = row else { continue };
        match runs.last_mut() {
            Some((first, of, rows)) if *of == part && rows.end == row && *first + rows.len() == at => rows.end += 1,
            _ => runs.push((at, part, row..row + 1)),
        }
    }
    runs
}

fn vector(tensor: &WeightRef, size: usize, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
    let values = checkpoint.read_f32(tensor)?;
    ensure!(values.len() == size, "tensor {tensor} has {} values, not {size}", values.len());
    Ok(values)
}

/// `[k][rows]` into `[rows][k]`.
fn turn(values: &[f32], k: usize, rows: usize) -> Result<Vec<f32>> {
    ensure!(values.len() == k * rows, "{} values are not {k} x {rows}", values.len());
    Ok(select::turn(values, k, rows))
}

/// Random weights of standard deviation near 0.02 as kernels read them, for `--dummy-weights`: a pattern of whole steps, to be repeated.
pub fn dummy_pattern(format: Format) -> Result<Vec<u8>> {
    const ROW_TILES: usize = 512;
    const COLUMNS: usize = 4096;
    let packed = format.packed().with_context(|| format!("no kernel reads {} weights", format.name()))?;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u32
    };
    let mut pattern = vec![0u8; packed.bytes_of(ROW_TILES, COLUMNS)];
    for out in pattern.chunks_exact_mut(packed.bytes_of(1, COLUMNS)) {
        if format.is_whole() {
            let value = |random: u32| (random as f32 / (1u64 << 24) as f32 - 0.5) * 0.07;
            let bits = (0..ROWS * COLUMNS).map(|_| whole_bits(format, value(random())).context("a small weight"));
            pack_whole(&bits.collect::<Result<Vec<u16>>>()?, COLUMNS, out);
            continue;
        }
        for row in 0..ROWS {
            let bytes = format.bytes(COLUMNS).context("rows of a pattern are whole blocks")?;
            let mut blocks: Vec<u8> = (0..bytes).map(|_| random() as u8).collect();
            set_scales(format, &mut blocks);
            pack_row(format, row, &blocks, out)?;
        }
    }
    Ok(pattern)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use half::bf16;

    use super::*;

    fn checkpoint(tensors: &[(&str, usize, usize)]) -> Checkpoint {
        let tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tensors
            .iter()
            .enumerate()
            .map(|(i, &(name, rows, k))| {
                let values = (0..rows * k).map(|at| ((at * 7 + i * 31) % 251) as f32 - 125.0).collect();
                (name.to_string(), (vec![rows, k], values))
            })
            .collect();
        Checkpoint::from_memory(serde_json::Value::Null, tensors).expect("shapes fit")
    }

    /// Reads element (row, column) of the packed order as the hardware does: by the layout of mma.m16n8k16's A fragment.
    fn element(packed: &[u8], pairs: usize, row: usize, column: usize) -> f32 {
        let (tile, r, pair) = (row / 16, row % 16, column / 32);
        let (quad, within) = (column % 32 / 8, column % 8);
        let (half, within) = (within / 4, within % 4);
        let lane = r % 8 * 4 + quad;
        let register = r / 8 + 2 * (within / 2);
        let at = ((tile * pairs + pair) * 2 + half) * 512 + lane * 16 + register * 4 + within % 2 * 2;
        bf16::from_le_bytes([packed[at], packed[at + 1]]).to_f32()
    }

    #[test]
    fn every_element_is_where_the_kernels_read_it_and_padding_is_zero() {
        let checkpoint = checkpoint(&[("a", 19, 40), ("b", 5, 40)]);
        let parts = [("a", 19), ("b", 5)]
            .map(|(tensor, rows)| Part { tensor: tensor.into(), rows, from: Format::BF16 })
            .to_vec();
        let recipe = Recipe::Tiles { parts, k: 40, gated: false, transposed: false, format: Format::BF16 };
        let packed = pack(&recipe, &checkpoint).expect("packs");
        let (a, b) = (checkpoint.read_f32(&"a".into()).unwrap(), checkpoint.read_f32(&"b".into()).unwrap());
        for row in 0..48 {
            for column in 0..64 {
                let expected = match row {
                    _ if column >= 40 => 0.0,
                    0..19 => a[row * 40 + column],
                    32..37 => b[(row - 32) * 40 + column],
                    _ => 0.0,
                };
                assert_eq!(element(&packed, 2, row, column), expected, "row {row}, column {column}");
            }
        }
    }

    #[test]
    fn gated_tiles_hold_eight_rows_of_each_part() {
        let checkpoint = checkpoint(&[("gate", 11, 32), ("up", 11, 32)]);
        let parts = ["gate", "up"].map(|tensor| Part { tensor: tensor.into(), rows: 11, from: Format::BF16 }).to_vec();
        let recipe = Recipe::Tiles { parts, k: 32, gated: true, transposed: false, format: Format::BF16 };
        let packed = pack(&recipe, &checkpoint).expect("packs");
        let (gate, up) = (checkpoint.read_f32(&"gate".into()).unwrap(), checkpoint.read_f32(&"up".into()).unwrap());
        for row in 0..16 {
            for column in 0..32 {
                let (at, within) = (row / 8 * 16 + row % 8, column);
                let expected = |values: &[f32]| if row < 11 { values[row * 32 + within] } else { 0.0 };
                assert_eq!(element(&packed, 1, at, column), expected(&gate));
                assert_eq!(element(&packed, 1, at + 8, column), expected(&up));
            }
        }
    }

    #[test]
    fn pieces_are_the_whole() {
        let names = [("a", 70, 64), ("b", 33, 64), ("e.0", 40, 64), ("e.1", 40, 64), ("v", 1, 90)];
        let checkpoint = checkpoint(&names);
        let part = |tensor: &str, rows| Part { tensor: tensor.into(), rows, from: Format::F32 };
        let tiles = |format, gated, rows| Recipe::Tiles {
            parts: vec![part("a", rows), part("b", 33)],
            k: 64,
            gated,
            transposed: false,
            format,
        };
        let experts =
            Recipe::Experts { parts: vec![part("e.{0..2}", 40)], k: 64, gated: false, count: 2, format: Format::BF16 };
        let biases = Recipe::Biases { parts: vec![(Some("v[0]".into()), 90), (None, 7)], gated: false, experts: None };
        for recipe in [tiles(Format::BF16, false, 70), tiles(Format::F16, false, 70), experts, biases] {
            let whole = pack(&recipe, &checkpoint).expect("packs");
            assert_eq!(whole.len(), recipe.bytes());
            let least = least_piece(&recipe);
            for most in [least, 2 * least + 1, whole.len() - 1] {
                let mut packed = Vec::new();
                let mut put = |bytes: usize, fill: &mut Fill<'_>| {
                    assert!(bytes <= most);
                    // What was there before is no matter.
                    let mut piece = vec![0xcd; bytes];
                    fill(&mut piece)?;
                    packed.extend(piece);
                    Ok(())
                };
                pack_in_pieces(&recipe, &checkpoint, most, &mut put).expect("packs");
                assert_eq!(packed, whole, "{most} bytes of {recipe:?}");
            }
        }
        let said = pack_in_pieces(&tiles(Format::BF16, false, 70), &checkpoint, 100, &mut |_, _| Ok(())).unwrap_err();
        assert!(said.to_string().contains("no room for a row tile"), "{said}");
    }

    #[test]
    fn transposed_weights_pack_as_their_transposes() {
        let checkpoint = checkpoint(&[("w", 32, 16)]);
        let parts = vec![Part { tensor: "w".into(), rows: 16, from: Format::BF16 }];
        let recipe = Recipe::Tiles { parts, k: 32, gated: false, transposed: true, format: Format::BF16 };
        let packed = pack(&recipe, &checkpoint).expect("packs");
        let w = checkpoint.read_f32(&"w".into()).unwrap();
        for row in 0..16 {
            for column in 0..32 {
                assert_eq!(element(&packed, 1, row, column), w[column * 16 + row]);
            }
        }
    }
}
