//! The launch shapes of products: warps, what they hold, blocks.

use super::MULTIPROCESSORS;
use crate::ir::Activation;
use crate::plan::spec::{MatmulSpec, MatvecSpec, Tiles};
use crate::plan::tuning::Tuning;

/// Gives a product of few rows the shape that was measured for it, where one was, and returns its blocks.
pub(super) fn shaped(spec: &mut MatvecSpec, tuning: &Tuning) -> usize {
    let tiles = spec.tiles.count();
    let Some(entry) = tuning.matvec(spec) else { return spread(tiles, 2) };
    (spec.warps, spec.depth) = (entry.warps, entry.depth);
    spread(tiles, entry.blocks)
}

/// Warps that share the columns of a row tile, and the pairs of tiles each has in flight: 64 KB of weights a block.
///
/// Measured on an H200 (Llama-3.2-1B, batch 1, us a step): 8 warps by 8 pairs 730, 8 by 4 856, 16 by 4 750, 16 by 8 770.
pub(super) fn matvec_shape(k: usize) -> (usize, usize) {
    let pairs = k.div_ceil(32);
    (8, (4 * pairs.div_ceil(8)).min(8))
}

/// Blocks for this many row tiles, so many a multiprocessor: each takes the same number of turns, or one fewer.
///
/// One a multiprocessor costs 10% more than two on the same model: a block's start and end then leave its multiprocessor idle.
pub(super) fn spread(tiles: usize, blocks: usize) -> usize {
    let turns = tiles.div_ceil(blocks * MULTIPROCESSORS);
    tiles.div_ceil(turns)
}

/// Few rows make few blocks: there all warps share the columns of one row tile. With many rows they lie side by side.
pub(super) fn matmul_shape(tiles: Tiles, paired: bool, activation: Option<Activation>, rows: usize) -> MatmulSpec {
    let (row_tiles, columns, row_warps, split) = if rows <= 32 { (1, 4, 1, 8) } else { (2, 8, 2, 2) };
    MatmulSpec { tiles, row_tiles, columns, row_warps, split, paired, activation }
}

pub(super) fn matmul_grid(spec: &MatmulSpec, rows: usize) -> [usize; 3] {
    [spec.tiles.count().div_ceil(spec.row_tiles * spec.row_warps), rows.div_ceil(8 * spec.columns), 1]
}
