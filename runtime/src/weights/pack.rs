//! Checkpoint tensors into the buffers that kernels read, by the plan's recipes.

use anyhow::{Context, Result, ensure};
use fusec::ir::WeightRef;
use fusec::plan::{PACKED, Part, Recipe};
use fusec::threads;
use half::bf16;

use super::Checkpoint;

/// Makes the buffer of a recipe.
///
/// # Errors
/// A tensor that is missing or has another shape than the recipe says.
pub fn pack(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    match recipe {
        Recipe::Tiles { parts, k, transposed, .. } => tiles(recipe, parts, *k, *transposed, checkpoint),
        Recipe::Experts { count, .. } => {
            let mut packed = Vec::with_capacity(recipe.bytes());
            for index in 0..*count {
                let expert = recipe.expert(index).context("a recipe of experts has none")?;
                packed.append(&mut pack(&expert, checkpoint)?);
            }
            Ok(packed)
        }
        Recipe::Biases { parts, .. } => {
            let biases: Vec<Option<Vec<f32>>> = parts
                .iter()
                .map(|(tensor, rows)| tensor.as_ref().map(|name| vector(name, *rows, checkpoint)).transpose())
                .collect::<Result<_>>()?;
            let value = |(part, row): (usize, usize)| biases[part].as_ref().map_or(0.0, |bias| bias[row]);
            let packed: Vec<f32> = recipe.packed_rows().into_iter().map(|row| row.map_or(0.0, value)).collect();
            Ok(bytemuck::cast_slice(&packed).to_vec())
        }
        Recipe::Vector { tensor, size, offset_bits } => {
            let offset = f32::from_bits(*offset_bits);
            let values: Vec<f32> = vector(tensor, *size, checkpoint)?.iter().map(|value| value + offset).collect();
            Ok(bytemuck::cast_slice(&values).to_vec())
        }
    }
}

/// Eight bfloat16 of columns `8 quad ..` of rows `r` and `r + 8`: the share of lane `4 r + quad` in both tiles of a pair.
///
/// In the first tile the lane's A fragment is columns 0, 1 of the low row, of the high row, then columns 2, 3 of each; the second tile
/// goes on with columns 4 to 7. So eight consecutive activations are the B fragments of both tiles.
pub fn lane_share(low: &[u16], high: &[u16]) -> ([u16; 8], [u16; 8]) {
    let tile = |c: usize| [low[c], low[c + 1], high[c], high[c + 1], low[c + 2], low[c + 3], high[c + 2], high[c + 3]];
    (tile(0), tile(4))
}

fn tiles(recipe: &Recipe, parts: &[Part], k: usize, transposed: bool, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    for part in parts {
        let expected = if transposed { [k, part.rows] } else { [part.rows, k] };
        let shape = checkpoint.shape(&part.tensor)?;
        ensure!(shape == expected, "tensor {} has shape {shape:?}, not {expected:?}", part.tensor);
    }
    // Rows of a transposed weight are its columns: it is turned once, whole.
    let turned: Vec<Vec<f32>> = match transposed {
        false => Vec::new(),
        true => {
            parts.iter().map(|part| turn(&checkpoint.read_f32(&part.tensor)?, k, part.rows)).collect::<Result<_>>()?
        }
    };
    let packed_rows = recipe.packed_rows();
    let steps = PACKED.steps(k);
    let mut out = vec![0u8; recipe.bytes()];
    ensure!(out.len() == packed_rows.len() / 16 * steps * PACKED.bytes, "the recipe's size is not its rows' size");
    threads::for_each(
        threads::available(),
        out.chunks_mut(steps * PACKED.bytes).enumerate(),
        Vec::new,
        |scratch: &mut Vec<f32>, (tile, out)| {
            let mut rows = vec![0u16; 16 * steps * PACKED.columns];
            let wanted = &packed_rows[tile * 16..tile * 16 + 16];
            // Neighbouring rows of one part are read in one go.
            let mut first = 0;
            while first < 16 {
                let Some((part, begin)) = wanted[first] else {
                    first += 1;
                    continue;
                };
                let mut count = 1;
                while first + count < 16 && wanted[first + count] == Some((part, begin + count)) {
                    count += 1;
                }
                let values: &[f32] = if transposed {
                    &turned[part][begin * k..(begin + count) * k]
                } else {
                    let name = &parts[part].tensor;
                    checkpoint
                        .read_rows_f32(name, begin..begin + count, scratch)
                        .with_context(|| format!("rows {begin} to {} of {name}", begin + count))?;
                    scratch
                };
                for (row, values) in values.chunks_exact(k).enumerate() {
                    let into = &mut rows[(first + row) * steps * PACKED.columns..][..k];
                    into.iter_mut().zip(values).for_each(|(to, &value)| *to = bf16::from_f32(value).to_bits());
                }
                first += count;
            }
            for (step, out) in out.chunks_exact_mut(PACKED.bytes).enumerate() {
                let (first_tile, second_tile) = out.split_at_mut(PACKED.bytes / 2);
                for lane in 0..32 {
                    let (row, column) = (lane / 4, PACKED.columns * step + 8 * (lane % 4));
                    let share = |row: usize| &rows[row * steps * PACKED.columns + column..][..8];
                    let (first, second) = lane_share(share(row), share(row + 8));
                    first_tile[16 * lane..16 * lane + 16].copy_from_slice(bytemuck::cast_slice(&first));
                    second_tile[16 * lane..16 * lane + 16].copy_from_slice(bytemuck::cast_slice(&second));
                }
            }
            anyhow::Ok(())
        },
    )?;
    Ok(out)
}

fn vector(tensor: &WeightRef, size: usize, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
    let values = checkpoint.read_f32(tensor)?;
    ensure!(values.len() == size, "tensor {tensor} has {} values, not {size}", values.len());
    Ok(values)
}

/// `[k][rows]` into `[rows][k]`.
fn turn(values: &[f32], k: usize, rows: usize) -> Result<Vec<f32>> {
    ensure!(values.len() == k * rows, "{} values are not {k} x {rows}", values.len());
    Ok((0..rows).flat_map(|row| (0..k).map(move |column| values[column * rows + row])).collect())
}

/// Random bytes that are bfloat16 weights of standard deviation near 0.02, for `--dummy-weights`: a pattern to be repeated.
pub fn dummy_pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut values: Vec<u16> = Vec::with_capacity(bytes / 2);
    for _ in 0..bytes / 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let uniform = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        values.push(bf16::from_f32(uniform * 0.07).to_bits());
    }
    bytemuck::cast_slice(&values).to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fusec::ir::Format;

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
        let recipe = Recipe::Tiles { parts, k: 40, gated: false, transposed: false };
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
        let recipe = Recipe::Tiles { parts, k: 32, gated: true, transposed: false };
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
    fn transposed_weights_pack_as_their_transposes() {
        let checkpoint = checkpoint(&[("w", 32, 16)]);
        let parts = vec![Part { tensor: "w".into(), rows: 16, from: Format::BF16 }];
        let recipe = Recipe::Tiles { parts, k: 32, gated: false, transposed: true };
        let packed = pack(&recipe, &checkpoint).expect("packs");
        let w = checkpoint.read_f32(&"w".into()).unwrap();
        for row in 0..16 {
            for column in 0..32 {
                assert_eq!(element(&packed, 1, row, column), w[column * 16 + row]);
            }
        }
    }
}
