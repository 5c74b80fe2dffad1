//! Weights as the kernels read them: one arena, each matrix in units of as many rows as its formats ask for.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use fusec::ir::{Format, WeightRef};
use fusec::threads;
use memmap2::MmapMut;

use super::blocks::{self, UNIT_ROWS, is_of_blocks};
use super::tile::{GROUP, NO_PANELS, PANEL_ROWS, TILE_TOKENS, fp8_group, group_bytes, slot, unit_bytes, widen_group};
use crate::blocks::decode;

/// Where weights come from: a checkpoint. Read from several threads at once.
pub trait WeightSource: Sync {
    /// Dimensions of a tensor, slowest first.
    ///
    /// # Errors
    /// There is no such tensor.
    fn shape(&self, weight: &WeightRef) -> Result<Vec<usize>>;

    /// A whole tensor, row-major, widened exactly.
    ///
    /// # Errors
    /// There is no such tensor, or it cannot be read.
    fn read_f32(&self, weight: &WeightRef) -> Result<Vec<f32>>;

    /// Some rows of a matrix, widened exactly, in the place of what `out` held.
    ///
    /// # Errors
    /// There is no such tensor, it has fewer rows, or it cannot be read.
    fn read_rows_f32(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The format in which [`WeightSource::raw_rows`] gives rows; `None` where it gives none.
    ///
    /// # Errors
    /// There is no such tensor.
    fn raw_format(&self, weight: &WeightRef) -> Result<Option<Format>>;

    /// Some rows of a matrix as they are stored, in the place of what `out` held.
    ///
    /// # Errors
    /// They are not stored as rows, or as [`WeightSource::read_rows_f32`].
    fn raw_rows(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()>;

    /// What was read so far is packed: memory that it takes is not needed.
    fn release(&self) {}
}

/// How a packed matrix is made. Equal recipes share one copy: a tied head is its embedding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recipe {
    /// Names in the checkpoint. All have as many columns as the first.
    pub names: Vec<WeightRef>,
    /// Rows of each.
    pub rows: Vec<usize>,
    /// Columns: the length of the product.
    pub columns: usize,
    /// How the arena holds each.
    pub formats: Vec<Format>,
    /// The checkpoint stores `[columns, rows]`.
    pub transposed: bool,
    /// The units of the two matrices take turns: they are multiplied together.
    pub paired: bool,
}

/// A matrix in the arena.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    recipe: Recipe,
    bytes: Range<usize>,
}

/// The arena and the matrices in it.
pub(crate) struct Weights {
    arena: MmapMut,
    matrices: Vec<Matrix>,
}

impl Recipe {
    /// Whether a tensor is held in quantised blocks.
    pub fn has_blocks(&self) -> bool {
        self.formats.iter().any(|&format| is_of_blocks(format))
    }

    /// Rows that are multiplied together.
    pub fn unit_rows(&self) -> usize {
        if self.has_blocks() { UNIT_ROWS } else { PANEL_ROWS }
    }

    /// Rows of activations that a product takes at a time.
    pub fn tokens(&self) -> usize {
        if self.has_blocks() { blocks::TOKENS } else { TILE_TOKENS }
    }

    /// Units of tensor `i`.
    pub fn units(&self, i: usize) -> usize {
        self.rows[i].div_ceil(self.unit_rows())
    }

    /// Bytes of a unit of tensor `i`.
    pub fn unit_bytes(&self, i: usize) -> usize {
        unit_bytes(self.formats[i], self.columns, self.unit_rows())
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        (0..self.names.len()).map(|i| self.units(i) * self.unit_bytes(i)).sum()
    }

    /// Bytes of the values, without padding, as a checkpoint of these formats stores them.
    pub fn value_bytes(&self) -> usize {
        let row = |format: &Format| format.bytes(self.columns).unwrap_or(0);
        self.rows.iter().zip(&self.formats).map(|(rows, format)| rows * row(format)).sum()
    }

    /// Where a unit of tensor `i` lies in the matrix.
    pub fn place(&self, i: usize, unit: usize) -> Range<usize> {
        let size = self.unit_bytes(i);
        let start = match self.paired {
            true => unit * (self.unit_bytes(0) + self.unit_bytes(1)) + i * self.unit_bytes(0),
            false => (0..i).map(|i| self.units(i) * self.unit_bytes(i)).sum::<usize>() + unit * size,
        };
        start..start + size
    }
}

impl Weights {
    /// Reserves the arena and fills it, on `threads` threads.
    ///
    /// # Errors
    /// No memory, a tensor that `source` cannot give, or one of another shape.
    pub fn pack(recipes: Vec<Recipe>, source: &dyn WeightSource, threads: usize) -> Result<Weights> {
        let mut end = 0;
        let mut matrices = Vec::with_capacity(recipes.len());
        for recipe in recipes {
            let start = end;
            end += recipe.bytes();
            matrices.push(Matrix { recipe, bytes: start..end });
        }
        let mut arena =
            huge_pages(end.max(1)).with_context(|| format!("cannot reserve {end} bytes for the weights"))?;
        for Matrix { recipe, bytes } in &matrices {
            for (i, name) in recipe.names.iter().enumerate() {
                let rows = recipe.rows[i];
                let shape = if recipe.transposed { [recipe.columns, rows] } else { [rows, recipe.columns] };
                check(name, &source.shape(name)?, &shape)?;
                fill(&mut arena[bytes.clone()], recipe, i, source, threads)
                    .with_context(|| format!("cannot read weight {name}"))?;
            }
            source.release();
        }
        Ok(Weights { arena, matrices })
    }

    /// The recipe of a matrix.
    pub fn recipe(&self, matrix: usize) -> &Recipe {
        &self.matrices[matrix].recipe
    }

    /// A unit of tensor `i` of a matrix.
    pub fn unit(&self, matrix: usize, i: usize, unit: usize) -> &[u8] {
        let Matrix { recipe, bytes } = &self.matrices[matrix];
        &self.arena[bytes.clone()][recipe.place(i, unit)]
    }

    /// One row of a matrix of one tensor, widened.
    pub fn row(&self, matrix: usize, row: usize, out: &mut [f32], scratch: &mut RowScratch) {
        let recipe = self.recipe(matrix);
        let format = recipe.formats[0];
        let unit = self.unit(matrix, 0, row / recipe.unit_rows());
        if is_of_blocks(format) {
            blocks::unpack(format, unit, row % UNIT_ROWS, recipe.columns, &mut scratch.blocks);
            scratch.values.clear();
            decode(format, &scratch.blocks, &mut scratch.values);
            out.copy_from_slice(&scratch.values);
            return;
        }
        let groups = unit.chunks_exact(group_bytes(format));
        for (group, out) in groups.skip(row % PANEL_ROWS).step_by(PANEL_ROWS).zip(out.chunks_mut(GROUP)) {
            out.copy_from_slice(&widen_group(format, group)[..out.len()]);
        }
    }
}

/// A row of blocks, and its values.
#[derive(Default)]
pub(crate) struct RowScratch {
    blocks: Vec<u8>,
    values: Vec<f32>,
}

/// Reads a vector, widened: a bias, a norm's weight.
///
/// # Errors
/// The tensor is missing or of another shape.
pub(crate) fn vector(name: &WeightRef, shape: &[usize], source: &dyn WeightSource) -> Result<Box<[f32]>> {
    check(name, &source.shape(name)?, shape)?;
    let values = source.read_f32(name)?;
    let length: usize = shape.iter().product();
    ensure!(values.len() == length, "weight {name} gave {} values of {length}", values.len());
    Ok(values.into())
}

/// Zeroed memory in large pages where the system has them: weights are read whole each token, and small pages cost a walk each.
pub(crate) fn huge_pages(bytes: usize) -> std::io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes)?;
    #[cfg(target_os = "linux")]
    {
        // Only advice: without large pages reading is slower and as right.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

fn check(name: &WeightRef, found: &[usize], wanted: &[usize]) -> Result<()> {
    ensure!(found == wanted, "weight {name} is {found:?} in the checkpoint, {wanted:?} in the graph");
    Ok(())
}

/// Rows that a thread reads at a time.
const ROWS_AT_ONCE: usize = 64;

/// What a thread reads into.
#[derive(Default)]
struct Read {
    values: Vec<f32>,
    blocks: Vec<u8>,
}

/// Packs tensor `i` of a recipe into the matrix's bytes, which are zero.
fn fill(arena: &mut [u8], recipe: &Recipe, i: usize, source: &dyn WeightSource, threads: usize) -> Result<()> {
    let (name, format, unit_rows) = (&recipe.names[i], recipe.formats[i], recipe.unit_rows());
    let (rows, columns) = (recipe.rows[i], recipe.columns);
    // A matrix of several, and one that is turned, are read as a whole.
    let at_once = format.block().0 == 1 && (recipe.transposed || name.turned || name.matrix.is_some());
    let whole = if at_once { source.read_f32(name)? } else { Vec::new() };
    ensure!(!at_once || whole.len() == rows * columns, "it gave {} values", whole.len());
    let mut own = Vec::with_capacity(recipe.units(i));
    let (mut rest, mut skipped) = (arena, 0);
    for unit in 0..recipe.units(i) {
        let place = recipe.place(i, unit);
        let (bytes, after) = rest.split_at_mut(place.start - skipped).1.split_at_mut(place.len());
        own.push((unit, bytes));
        (rest, skipped) = (after, place.end);
    }
    let pack_few = |read: &mut Read, few: &mut [(usize, &mut [u8])]| -> Result<()> {
        let Read { values, blocks } = read;
        let first = few[0].0 * unit_rows;
        let last = rows.min(first + few.len() * unit_rows);
        let panel = unit_bytes(format, columns, PANEL_ROWS);
        if format.block().0 > 1 {
            source.raw_rows(name, first..last, blocks)?;
            let size = format.bytes(columns).filter(|size| blocks.len() == (last - first) * size);
            let size = size.with_context(|| format!("rows {first} to {last} gave {} bytes", blocks.len()))?;
            for (row, blocks) in (first..last).zip(blocks.chunks_exact(size)) {
                let unit = &mut *few[(row - first) / unit_rows].1;
                if is_of_blocks(format) {
                    blocks::pack(format, blocks, unit, row % unit_rows);
                } else {
                    let panel = &mut unit[row % unit_rows / PANEL_ROWS * panel..][..panel];
                    fill_fp8(format, panel, row % PANEL_ROWS, blocks);
                }
            }
            return Ok(());
        }
        if !at_once {
            values.clear();
            source.read_rows_f32(name, first..last, values)?;
            ensure!(values.len() == (last - first) * columns, "rows {first} to {last} gave {} values", values.len());
        }
        for row in first..last {
            let unit = &mut *few[(row - first) / unit_rows].1;
            let bytes = &mut unit[row % unit_rows / PANEL_ROWS * panel..][..panel];
            if recipe.transposed {
                fill_row(bytes, row % PANEL_ROWS, format, (0..columns).map(|column| whole[column * rows + row]));
            } else {
                let from = if at_once { &whole[row * columns..] } else { &values[(row - first) * columns..] };
                let row_values = &from[..columns];
                fill_row(bytes, row % PANEL_ROWS, format, row_values.iter().copied());
            }
        }
        Ok(())
    };
    threads::for_each(threads, own.chunks_mut(ROWS_AT_ONCE / unit_rows), Read::default, pack_few)
}

/// Puts row `row` of a panel of fp8 into its place.
fn fill_fp8(format: Format, panel: &mut [u8], row: usize, blocks: &[u8]) {
    let groups = panel.chunks_exact_mut(group_bytes(format)).skip(row).step_by(PANEL_ROWS);
    let halves = blocks.chunks_exact(format.block().1).flat_map(|block| {
        let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        block[4..].as_chunks::<GROUP>().0.iter().map(move |codes| (scale, codes))
    });
    groups.zip(halves).for_each(|(group, (scale, codes))| fp8_group(scale, codes, group));
}

/// Puts row `row` of a panel into its place.
fn fill_row(panel: &mut [u8], row: usize, format: Format, values: impl Iterator<Item = f32>) {
    let width = group_bytes(format) / GROUP;
    for (column, value) in values.enumerate() {
        let place = (column / GROUP * PANEL_ROWS + row) * GROUP + slot(format, column % GROUP);
        let target = &mut panel[place * width..][..width];
        match format {
            Format::BF16 => target.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            Format::F16 => target.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Format::F32 => target.copy_from_slice(&value.to_le_bytes()),
            _ => unreachable!("{NO_PANELS}"),
        }
    }
}
