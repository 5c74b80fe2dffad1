//! Weights as the kernels read them: one arena, each matrix in panels of four rows.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use fusec::ir::{Format, WeightRef};
use fusec::threads;
use memmap2::MmapMut;

use super::tile::{GROUP, NO_PANELS, PANEL_ROWS, panel_bytes, slot, value_bytes, widen_group};

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
    /// How the arena holds it.
    pub format: Format,
    /// The checkpoint stores `[columns, rows]`.
    pub transposed: bool,
    /// The panels of the two matrices take turns: they are multiplied together.
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
    /// Panels of tensor `i`.
    pub fn panels(&self, i: usize) -> usize {
        self.rows[i].div_ceil(PANEL_ROWS)
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        (0..self.names.len()).map(|i| self.panels(i)).sum::<usize>() * panel_bytes(self.format, self.columns)
    }

    /// The place of panel `panel` of tensor `i` among all panels.
    pub fn place(&self, i: usize, panel: usize) -> usize {
        if self.paired { 2 * panel + i } else { (0..i).map(|i| self.panels(i)).sum::<usize>() + panel }
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
        }
        Ok(Weights { arena, matrices })
    }

    /// The recipe of a matrix.
    pub fn recipe(&self, matrix: usize) -> &Recipe {
        &self.matrices[matrix].recipe
    }

    /// A panel by its place in its matrix.
    pub fn panel(&self, matrix: usize, place: usize) -> &[u8] {
        let Matrix { recipe, bytes } = &self.matrices[matrix];
        let size = panel_bytes(recipe.format, recipe.columns);
        &self.arena[bytes.clone()][place * size..][..size]
    }

    /// One row of a matrix of one tensor, widened.
    pub fn row(&self, matrix: usize, row: usize, out: &mut [f32]) {
        let format = self.recipe(matrix).format;
        let group_bytes = GROUP * value_bytes(format);
        let groups = self.panel(matrix, row / PANEL_ROWS).chunks_exact(group_bytes);
        for (group, out) in groups.skip(row % PANEL_ROWS).step_by(PANEL_ROWS).zip(out.chunks_mut(GROUP)) {
            out.copy_from_slice(&widen_group(format, group)[..out.len()]);
        }
    }
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
const ROWS_AT_ONCE: usize = 16 * PANEL_ROWS;

/// Packs tensor `i` of a recipe into the matrix's bytes, which are zero.
fn fill(arena: &mut [u8], recipe: &Recipe, i: usize, source: &dyn WeightSource, threads: usize) -> Result<()> {
    let name = &recipe.names[i];
    let (rows, columns) = (recipe.rows[i], recipe.columns);
    let whole = if recipe.transposed { source.read_f32(name)? } else { Vec::new() };
    let mut panels: Vec<Option<&mut [u8]>> =
        arena.chunks_exact_mut(panel_bytes(recipe.format, columns)).map(Some).collect();
    let mut own: Vec<(usize, &mut [u8])> = (0..recipe.panels(i))
        .map(|panel| (panel, panels[recipe.place(i, panel)].take().expect("each place is one panel's")))
        .collect();
    let pack_few = |values: &mut Vec<f32>, few: &mut [(usize, &mut [u8])]| -> Result<()> {
        let first = few[0].0 * PANEL_ROWS;
        let last = rows.min(first + few.len() * PANEL_ROWS);
        if !recipe.transposed {
            values.clear();
            source.read_rows_f32(name, first..last, values)?;
            ensure!(values.len() == (last - first) * columns, "rows {first} to {last} gave {} values", values.len());
        }
        for row in first..last {
            let bytes = &mut *few[(row - first) / PANEL_ROWS].1;
            if recipe.transposed {
                fill_row(bytes, row % PANEL_ROWS, recipe.format, (0..columns).map(|column| whole[column * rows + row]));
            } else {
                let row_values = &values[(row - first) * columns..][..columns];
                fill_row(bytes, row % PANEL_ROWS, recipe.format, row_values.iter().copied());
            }
        }
        Ok(())
    };
    threads::for_each(threads, own.chunks_mut(ROWS_AT_ONCE / PANEL_ROWS), Vec::new, pack_few)
}

/// Puts row `row` of a panel into its place.
fn fill_row(panel: &mut [u8], row: usize, format: Format, values: impl Iterator<Item = f32>) {
    let width = value_bytes(format);
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
