//! Which shape a product of many rows gets in `matmul_wgmma.cu`.

use super::MULTIPROCESSORS;
use crate::ir::Activation;
use crate::plan::kernels::{MatmulWgmma, Tiles};

/// The tile of a block, and the blocks that share its columns: the cheapest by [`cost`].
pub(super) fn wgmma_shape(tiles: &Tiles, activation: Option<Activation>, rows: usize) -> Option<MatmulWgmma> {
    const BLOCKS: [(usize, usize); 6] = [(1, 32), (1, 64), (1, 128), (2, 64), (2, 128), (1, 256)];
    let spec = |((pieces, columns), split)| MatmulWgmma {
        tiles: tiles.clone(),
        pieces,
        columns,
        split,
        most_blocks: MULTIPROCESSORS,
        activation,
    };
    let fits = |columns: usize| columns <= rows.next_power_of_two().max(32);
    // The exact gelu has no registers beside the sums of the largest blocks.
    let has_room = |&(pieces, columns): &(usize, usize)| activation != Some(Activation::Gelu) || pieces * columns < 256;
    let blocks = BLOCKS.into_iter().filter(|&(_, columns)| fits(columns)).filter(has_room);
    let all = blocks.flat_map(|block| [1, 2, 4, 8].map(|split| spec((block, split))));
    // Clusters run at once: a job that shares its columns takes no turns.
    let one_turn = |spec: &MatmulWgmma| spec.split == 1 || spec.jobs(rows) * spec.split <= MULTIPROCESSORS;
    let sound = all.filter(|spec| spec.is_sound() && one_turn(spec));
    sound.min_by(|a, b| cost(a, rows).total_cmp(&cost(b, rows)))
}

/// About how long a product takes, in us on an H200.
///
/// Fitted to 380 measurements of the products of Llama-3.2-1B, Llama-3.1-8B and Qwen3-0.6B at 32, 128, 512 and 2048 rows: what it prefers takes 0.5% more
/// time on the average than the best of each, and 9% at most. An H200 holds 15 clusters of 8 blocks at a block per multiprocessor, and 30 of 4.
fn cost(spec: &MatmulWgmma, rows: usize) -> f64 {
    const FLOP_PER_US: f64 = 6.0e6;
    const BYTES_PER_US: f64 = 84e3;
    const LEAST: f64 = 0.29;
    let slots = if spec.split > 2 { 120 } else { MULTIPROCESSORS };
    let turns = (spec.jobs(rows) * spec.split).div_ceil(slots) as f64;
    let area = (128 * spec.pieces * spec.columns) as f64;
    // Two stages do not hide what a third would.
    let slow = if spec.stages() < 3 { 2.75 } else { 1.0 };
    let multiplied = 2.0 * area * 64.0 / FLOP_PER_US * slow;
    let copied = spec.bytes_per_stage() as f64 / BYTES_PER_US;
    let steps = (spec.tiles.k / 64 / spec.split) as f64;
    let results = 2.9 * area / (128.0 * 128.0);
    let exchange = if spec.split > 1 { 2.85 + 0.2 * spec.split as f64 } else { 0.0 };
    turns * (steps * multiplied.max(copied).max(LEAST) + results) + exchange
}
