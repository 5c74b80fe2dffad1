//! The launch shapes of products: warps, what they hold, blocks.

use super::MULTIPROCESSORS;
use crate::ir::{Activation, Format, Gating};
use crate::plan::batches::FEW;
use crate::plan::kernels::{
    AttentionProjection, ExpertsHidden, ExpertsSum, Family, Gather, Heads, Matmul, Matvec, Storage, Tiles,
};
use crate::plan::tuning::{AttentionTuning, MatvecTuning, Tuning};

/// Two blocks share the columns of a row tile where there are too few row tiles to occupy the device, if their results may be `summed`.
///
/// 64 KB of weights in flight per block, two blocks per multiprocessor, was best on an H200 (Llama-3.2-1B, batch 1, us per step: 8 warps
/// by 8 steps 694, one block per multiprocessor 753). Row tiles are finished together where a ring has room for several.
pub(super) fn shape_matvec(spec: &mut Matvec, summed: bool, tuning: &Tuning) {
    let tuned = tuned_product(spec, tuning);
    let (warps, blocks) = if shares_x(spec) { (16, 1) } else { (8, 2) };
    let untuned = (warps, depth_of(spec), blocks);
    let (warps, most, per_multiprocessor) = tuned.map_or(untuned, |entry| (entry.warps, entry.depth, entry.blocks));
    let (tiles, steps, quantised) = (spec.tiles.count(), spec.tiles.steps(), !spec.tiles.weights.is_whole());
    let slots = per_multiprocessor * MULTIPROCESSORS;
    let split = if summed && 2 * tiles <= slots && steps.is_multiple_of(2) { 2 } else { 1 };
    let share = steps.div_ceil(split).div_ceil(warps);
    let turns = (tiles * split).div_ceil(slots);
    let unit = match tuned.and_then(|entry| entry.unit) {
        Some(unit) => unit.min(most),
        // Beyond eight rows, sums of a second row tile have no registers.
        None if spec.batch > FEW => 1,
        None if !quantised => (most / share).clamp(1, turns.min(4)),
        None if spec.sums_bytes() > 0 => {
            unit_of_blocks(tiles, slots / split, (most / share).clamp(1, 8 / spec.batch), 4)
        }
        None => unit_of_blocks(tiles, slots / split, most.min(8 / spec.batch), 0),
    };
    // Rings that the turns of a unit fill need no tests.
    let held = most / unit;
    let turns = if share <= held {
        share
    } else {
        (held / 2 + 1..=held).rev().find(|turns| share.is_multiple_of(*turns)).unwrap_or(held)
    };
    let depth = unit * turns;
    let units = tiles.div_ceil(unit);
    let turns = (units * split).div_ceil(slots);
    (spec.warps, spec.depth, spec.unit, spec.split) = (warps, depth, unit, split);
    spec.blocks = units.div_ceil(turns) * split;
    spec.staged = spec.can_stage();
    spec.late = tuned.is_some_and(|entry| entry.late);
    spec.ahead = tuned
        .and_then(|entry| entry.ahead)
        .unwrap_or(spec.batch == 1 && (spec.norm.is_none() || in_row(spec) && tiles <= MANY));
}

/// Whether a product of more than a few rows is made as those are, its x in shared memory, and not by tiles of results: of 16 rows with few columns.
///
/// On an H200, us per step at depth 32, so and by tiles: Qwen3-0.6B (1024 columns) in 16 rows 855 and 1003, in 32 1078 and 1040; Llama-3.2-1B (2048) 972 and 912, 1273 and 950;
/// Llama-3.1-8B (4096) in 16 rows 4885, and 4518 in 32 rows by tiles.
pub(super) fn streams(format: Format, k: usize, rows: usize) -> bool {
    rows == 2 * FEW && k <= 1024 && format.is_whole()
}

/// Whether all warps of a multiprocessor share one x: with quantised weights its bytes count, where blocks have one row tile or two each, or x has many rows.
///
/// On an H200, us per step of Llama-3.1-8B, two blocks of 8 warps against one of 16, for `down` and `o`: q4_k 1727 and 1658, q4_0 1568 and 1538, q8_0 2162 and 2139; gate and
/// up as well: q4_0 1591, q4_k 1744. Four rows, q4_k: 2048, with `qkv`, `down` and `o` 1979, with gate and up alone 1990. Llama-3.2-1B, `down` (128 row tiles): q4_k 403 and 416.
/// Where sums of x are made once, more row tiles do, if 16 warps can hold the steps of two and 8 cannot: gate and up of q4_k by pairs, 8B 1507 against 1603, 1B (8 warps) 387
/// against 406.
fn shares_x(spec: &Matvec) -> bool {
    let (tiles, step) = (spec.tiles.count(), spec.tiles.packed());
    let few = tiles <= 2 * MULTIPROCESSORS;
    // What holds a row tile's last step, which may be padding, in registers has none left where steps are larger.
    let small = !spec.tiles.weights.is_whole() && step.registers < 16;
    let two_fit = 2 * spec.tiles.steps().div_ceil(8) <= depth_of(spec);
    small && tiles > MULTIPROCESSORS && (few || spec.batch >= 4 || in_row(spec) && tiles > MANY && !two_fit)
}

/// Whether a block multiplies one row that it normalised by blocks that sums of it are made for once.
fn in_row(spec: &Matvec) -> bool {
    spec.sums_bytes() > 0 && spec.norm.is_some() && spec.batch == 1
}

/// Row tiles beyond which a block has several, one after the other.
const MANY: usize = 4 * MULTIPROCESSORS;

/// Steps that a warp has in flight at most: where sums of x are made once a few more, so that two row tiles have all of theirs.
fn depth_of(spec: &Matvec) -> usize {
    let step = spec.tiles.packed();
    if in_row(spec) && spec.tiles.count() > MANY && !spec.argmax { 56 / step.registers } else { step.depth() }
}

/// Row tiles of quantised blocks that are finished together: as many, up to `most`, as leave no block with `slack` per cent more of them. They share what x is summed up for.
fn unit_of_blocks(tiles: usize, slots: usize, most: usize, slack: usize) -> usize {
    let of_a_block = |unit: usize| tiles.div_ceil(unit).div_ceil(slots) * unit;
    (1..=most).rev().find(|&unit| 100 * of_a_block(unit) <= (100 + slack) * of_a_block(1)).unwrap_or(1)
}

/// The record's entry for a product.
fn tuned_product<'t>(spec: &dyn Family, tuning: &'t Tuning) -> Option<&'t MatvecTuning> {
    // A product's key has its own rows of x.
    tuning.product(&spec.tuning(0)?)
}

/// Query heads that a block takes, of those that share a key head: up to four, whose softmax weights fill a product's eight columns as hi/lo
/// splits (on an H200 a layer of Qwen3-30B-A3B takes 1.4 us less than with its eight); up to eight rather than one by one.
pub(super) fn query_group(share: usize, head_dim: usize) -> usize {
    let within = |most: usize| (1..=most).rev().find(|group| share.is_multiple_of(*group)).unwrap_or(1);
    match within(4) {
        // Sums of that many heads fit into a block's shared memory.
        1 if head_dim <= 128 => within(8),
        group => group,
    }
}

/// Query heads that a block takes of those that share a key head where it takes all their keys: few, that is many blocks, but at most 32.
///
/// On an H200, us per step: Qwen3-0.6B at batch 1 with 16 blocks 447, with 8 458; at batch 2 with 32 493, with 16 497; at batch 4 with 64 594, with 32 574. A
/// layer of Qwen3-30B-A3B with 32 blocks 35.8, with 16 36.1, with 8 36.5.
pub(super) fn near_group(heads: usize, share: usize, rows: usize) -> usize {
    (1..=share).find(|group| share.is_multiple_of(*group) && heads / group * rows <= 32).unwrap_or(share)
}

/// Warps, and the keys per block before one more block is used. On an H200, us per step, before near steps took all keys in one block:
///
/// Llama-3.2-1B (heads of 64) with splits of 128 keys takes 684 at depth 512 and 825 at 4096, of 256 keys 687 and 767, of 512 keys 697 and 761.
/// Qwen3-0.6B (heads of 128: eight warps that hold 16 keys each have too few registers) with 4 warps and 64 keys takes 479, 540 and 605 at batch 1,
/// 2 and 4, with 8 warps and 128 keys 474, 574 and 655.
pub(super) fn attention_shape(head_dim: usize) -> (usize, usize) {
    if head_dim > 64 { (4, 64) } else { (8, 256) }
}

/// How blocks share the keys of a head where clusters of them merge what they have.
pub(super) struct SplitShape {
    /// Blocks that the keys of a head are split over at most: one cluster, so that nothing is left to be combined.
    pub splits: usize,
    /// Warps per block.
    pub warps: usize,
    /// Tiles of 16 keys that a warp has in flight.
    pub held: usize,
}

/// The shape for so many `heads`, which take their keys in blocks of their own, each of `head_dim` values: as many blocks as run at once in clusters, and 8 MB of keys and values in flight.
///
/// On an H200, us per step at depths 512, 2048 and 16384, against splits whose results the projection combines. Llama-3.2-1B at batch 1: 694, 715, 891 against 723, 771, 896, by 16 warps
/// with two tiles in flight 711, 734, 944; in 32 splits by clusters of 2 720, 780, 858; in 16 by clusters of 8 728, 773, 936; clusters of 16 blocks 749, 768, 943. At batch 4 in 6 splits 706, 757, 1209 against
/// 782, 847, 1277, in 5 711, 776, 1281, in 8, whose clusters do not all run at once, 788, 839, 1454. Qwen3-0.6B at 512, 1024 and 4090: 517, 549, 683 against 505, 547, 730, in 28 splits by clusters of 4 530, 543,
/// 646; at batch 4 597, 658, 1003 against 726, 797, 1190. Llama's keys and values that `cp.async`
/// brings to shared memory, in the same splits and clusters: 7 to 27 per cent slower at 16384. Qwen3-0.6B in 16 rows, a block per key head, at 512, 1024 and 2048: 1227, 1439, 1853
/// by 8 warps, 1275, 1544, 2089 by 4.
pub(super) fn split_shape(heads: usize, head_dim: usize) -> SplitShape {
    let splits = (192 / heads).clamp(1, 8);
    // With a multiprocessor to itself a block has room for more.
    let alone = 2 * heads * splits <= MULTIPROCESSORS || (head_dim > 64 && splits == 1 && heads <= MULTIPROCESSORS);
    let (warps, _) = attention_shape(head_dim);
    let held = match head_dim.next_multiple_of(64) {
        64 if alone => 4,
        128 => 2,
        _ => 1,
    };
    // Sums of more warps with wider heads do not fit into a block's shared memory.
    SplitShape { splits, warps: if alone && head_dim <= 128 { 8 } else { warps }, held }
}

/// Sums that a product with keys is made in: two are ready sooner, where a warp has registers for them.
///
/// On an H200, us per step: Qwen3-0.6B with two 429, with one 456; a layer of Qwen3-30B-A3B with two 36.2, with one, beside whose blocks those of the
/// next kernel fit, 34.9, and a record may say so.
pub(super) fn attention_chains(head_dim: usize) -> usize {
    if head_dim > 128 { 1 } else { 2 }
}

/// Warps with 16 queries each, warps that share those, and keys per tile, of the kernel that attends with many rows.
///
/// Four warps per block. Where rows are few, fewer queries per block occupy more of the device, and the warps share the keys instead. Heads beyond
/// 128 values have their queries in shared memory, of which a block may have 99 KB on the smallest parts.
pub(super) fn attention_rows_shape(
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    rows: usize,
) -> (usize, usize, usize) {
    let queries = rows * heads / key_heads;
    let occupies = |row_warps: &usize| 4 * key_heads * queries.div_ceil(16 * row_warps) >= 3 * MULTIPROCESSORS;
    let wide = head_dim > 128;
    let row_warps = [4, 2].into_iter().filter(|&row_warps| !wide || row_warps == 2).find(occupies).unwrap_or(1);
    (row_warps, 4 / row_warps, if wide && row_warps == 2 { 32 } else { 64 })
}

/// How the kernel that attends and projects is laid over the device.
pub(super) struct ClusterShape {
    /// Blocks a cluster.
    pub cluster: usize,
    /// Row tiles of the projection a cluster.
    pub slice: usize,
    /// Rows of x a cluster.
    pub rows: usize,
}

/// The shape of the kernel that attends and projects for `batch` rows of x and `rows` of its result; none where two kernels are better.
///
/// An H200 holds 15 clusters of 8 blocks at one block per multiprocessor: that many slices run at once. Measured there, us per step at batch 1:
/// SmolLM2-135M 337 against 343, Llama-3.2-1B 648 against 659, but Qwen3-0.6B (heads of 128) 484 against 464; two rows 728 against 688. That was
/// against keys split over blocks: where one block takes all keys of a head, Llama-3.2-1B takes 645, and its record says so. With a cluster for each row
/// SmolLM2 takes 287 against 306 at two rows, if the next kernel begins late. Quantised weights are read too soon for it: Llama-3.2-1B in q4_k takes 384 against 374 with two kernels.
pub(super) fn cluster_shape(
    spec: &Heads,
    weights: Format,
    rows: usize,
    batch: usize,
    tuned: Option<&AttentionTuning>,
) -> Option<ClusterShape> {
    const BLOCKS: usize = 120;
    const MOST_SHARED: usize = 98 << 10;
    let cluster = (2..=8).rev().find(|cluster| spec.key_heads.is_multiple_of(*cluster))?;
    let near_rows = tuned.and_then(|entry| entry.near_rows).filter(|rows| batch.is_multiple_of(*rows)).unwrap_or(batch);
    let tuned = tuned.and_then(|entry| entry.slice);
    let slice = tuned.unwrap_or_else(|| rows.div_ceil(16).div_ceil(BLOCKS / cluster));
    let columns = spec.heads * spec.head_dim / cluster;
    let tiles = Tiles { weights, k: cluster * columns, rows: vec![rows], gated: false, out: Storage::F32 };
    let whole = AttentionProjection { attention: spec.clone(), tiles, batch: near_rows, cluster, slice };
    let wins = tuned.is_some() || (spec.head_dim <= 64 && batch == 1 && weights.is_whole());
    let fits = || columns.is_multiple_of(whole.tiles.packed().columns) && whole.shared_bytes() <= MOST_SHARED;
    (slice > 0 && wins && fits()).then_some(ClusterShape { cluster, slice, rows: near_rows })
}

/// Few rows make few blocks: there all warps share the columns of one row tile. With many rows they lie side by side.
pub(super) fn matmul_shape(tiles: Tiles, paired: bool, activation: Option<Activation>, rows: usize) -> Matmul {
    // Codes that become fragments leave registers for one row tile.
    let many = if tiles.weights.is_whole() { 2 } else { 1 };
    let (row_tiles, columns, row_warps, split) = if rows <= 32 { (1, 4, 1, 8) } else { (many, 8, 2, 2) };
    Matmul {
        tiles,
        row_tiles,
        columns,
        row_warps,
        split,
        paired,
        activation,
        gating: Gating::default(),
        gather: None,
        heads: None,
    }
}

/// Products of experts with `rows` rows, each to `top_k` of them: as many rows side by side as an expert has on the average.
pub(super) fn gathered_shape(tiles: Tiles, paired: bool, rows: usize, gather: Gather) -> Matmul {
    let columns = (rows * gather.top_k).div_ceil(8 * gather.experts).next_power_of_two().min(8);
    let gather = Some(gather);
    let row_tiles = if tiles.weights.is_whole() { 2 } else { 1 };
    let (row_warps, split, gating) = (2, 2, Gating::default());
    Matmul { tiles, row_tiles, columns, row_warps, split, paired, activation: None, gating, gather, heads: None }
}

/// The shape of the experts' hidden values: the row tiles of all that a step may need in turn over the blocks.
pub(super) fn shape_experts_hidden(spec: &mut ExpertsHidden, tuning: &Tuning) {
    let tuned = tuned_product(spec, tuning);
    let depth = spec.tiles.packed().depth();
    // The logits of more experts take registers of their own.
    let untuned = (8, if spec.route.experts > 256 { depth.div_ceil(2) } else { depth }, 2);
    let (warps, most, per_multiprocessor) = tuned.map_or(untuned, |entry| (entry.warps, entry.depth, entry.blocks));
    let row_tiles = spec.route.most(spec.batch) * spec.tiles.count();
    let share = spec.tiles.steps().div_ceil(warps);
    let even = || (most / 2 + 1..=most).rev().find(|depth| share.is_multiple_of(*depth)).unwrap_or(most);
    let depth = if share <= most { share } else { even() };
    let turns = row_tiles.div_ceil(per_multiprocessor * MULTIPROCESSORS);
    (spec.warps, spec.depth, spec.blocks) = (warps, depth, row_tiles.div_ceil(turns));
}

/// The shape of the sum of experts: a row tile has the steps of each of all that a step may need.
///
/// A warp takes as many steps of one expert as of another, so the number of warps is one that shares them out evenly. Two blocks share the
/// columns of a row tile where there are few, if their results may be `summed`. 64 KB of weights in flight per block.
pub(super) fn shape_experts_sum(spec: &mut ExpertsSum, summed: bool, tuning: &Tuning) {
    let tuned = tuned_product(spec, tuning);
    let slots = tuned.map_or(2, |entry| entry.blocks) * MULTIPROCESSORS;
    let (row_tiles, steps, most) = (spec.tiles.count(), spec.tiles.steps(), spec.route.most(spec.batch));
    let split = if summed && 2 * row_tiles <= slots && steps > 1 { 2 } else { 1 };
    let steps = steps.div_ceil(split);
    let padded = |warps: usize| steps.div_ceil(warps) * warps;
    let least_padded = [8, 6].into_iter().filter(|&warps| warps >= spec.batch).min_by_key(|&warps| padded(warps));
    let warps = tuned.map_or(least_padded.unwrap_or(8), |entry| entry.warps);
    // Rings that the turns of a warp fill need no tests.
    let (turns, held) =
        (most * steps.div_ceil(warps), tuned.map_or(8 * spec.tiles.packed().depth() / warps, |entry| entry.depth));
    let depth = (held.div_ceil(2)..=held).rev().find(|&depth| turns.is_multiple_of(depth)).unwrap_or(held.min(turns));
    let turns = (row_tiles * split).div_ceil(slots);
    (spec.warps, spec.depth, spec.split) = (warps, depth, split);
    spec.blocks = row_tiles.div_ceil(turns) * split;
    spec.staged = spec.can_stage();
    spec.late = tuned.is_some_and(|entry| entry.late);
}
