//! Planted mistakes in attentions of few rows.

use fuse_kernels::{Heads, Splits};

use crate::attention::{appending, plain as heads};
use crate::caught::caught;
use crate::{attention, attention_projection};

#[test]
fn in_an_attention() {
    let (rope, splits) = (Some(attention::rotation(20, false, 1.0)), Splits { max: 3, keys: 4, window: 0, merged: 1 });
    let case = attention::Case::of(Heads { rope, splits, ..appending(6, 2, 20) });
    caught(
        "in_an_attention",
        |mutation| case.check(mutation),
        &[
            ("i >= ROPE_DIM && i < PADDED", "i > ROPE_DIM && i < PADDED", "shared memory"),
            ("b * cosine + a * sine", "b * cosine - a * sine", "keys"),
            ("const int key_head = blockIdx.y / GROUPS", "const int key_head = blockIdx.y % GROUPS", "cache"),
            ("position + 1 - first;", "position - first;", "cache"),
            (
                "    warp_barrier();\n  }\n#pragma unroll\n  for (int j = 0; j < (ROPE",
                "  }\n#pragma unroll\n  for (int j = 0; j < (ROPE",
                "shared memory",
            ),
            // What is made before the wait.
            (
                "    block_barrier();\n  }\n  wait_for_dependencies();",
                "  }\n  wait_for_dependencies();",
                "shared memory",
            ),
            ("pair < ROPE_DIM / 2; pair += THREADS", "pair < ROPE_DIM / 2 - 1; pair += THREADS", "shared memory"),
            ("i < zero_count; i +=", "i + 1 < zero_count; i +=", "not written"),
            // What is read before the wait: the newest key or value from the cache, or anything by a plain read.
            (
                "(APPEND && span.end > span.position ? span.position : span.end) - 1",
                "span.end - 1",
                "by load_early or load_stream",
            ),
            ("threadIdx.x % 32 / 4, last) * PADDED", "threadIdx.x % 32 / 4, last + 1) * PADDED", "load_stream"),
            ("smaller(value_of(base, r), last)", "value_of(base, r)", "by load_early or load_stream"),
            ("smaller(32 * p + 8 * (threadIdx.x % 4), PADDED - 8)", "32 * p + 8 * (threadIdx.x % 4)", "load_stream"),
            ("APPEND ? load_stream((const Vec4*)p) :", "", "before wait_for_dependencies"),
            ("load_early(positions + row)", "positions[row]", "before wait_for_dependencies"),
            // The newest key and value: taken from shared memory, and left in the cache.
            ("if (base + 8 * t + group == span.position) tile", "if (false) tile", "attention"),
            ("tile.value[r][c] = span.fresh[1]", "tile.value[r][c] = span.fresh[0]", "attention"),
            ("store(to + i, value), store(cached + i, value);", "store(to + i, value);", "cache"),
            ("store(to + i, value), store(cached + i, value);", "store(cached + i, value);", "shared memory"),
            // The queries: what rounding leaves of them, where it is, and the zeros after it.
            ("{kept.z, left.z, kept.w, left.w}", "{kept.z, 0, kept.w, 0}", "attention"),
            ("value * QUERY_SCALE - bf16_low(kept)", "value * QUERY_SCALE", "attention"),
            ("* 2 * QUERY_STRIDE + 8 * quad", "* QUERY_STRIDE + 8 * quad", "attention"),
            ("    if (is_query) pad_query(to);\n", "", "shared memory"),
            // The keys that are on their way, and those that are not there.
            ("load_keys(tile, span, base + HELD * stride);", "load_keys(tile, span, base + 16);", "attention"),
            ("    else load_values(tile, span, base + HELD * stride);\n", "", "attention"),
            ("if (value_of(base, i) >= span.end) score[i] = NEGATIVE_INFINITY;", "", "attention"),
            // A larger peak, and the two halves of the columns.
            ("largest = peak, total *= keep;", "largest = peak;", "attention"),
            ("shuffle_from(keep, 8 * quad + 4)", "shuffle_from(keep, 8 * quad)", "attention"),
            ("  total += shuffle_xor(total, 2);\n", "", "attention"),
            ("if (HALVES && group >= 4) kept[t] = left[t];", "", "attention"),
            ("if (HALVES) eight[j] += shuffle_xor(eight[j], 2);", "", "attention"),
            ("if (column < GROUP) {", "if (column <= GROUP) {", "bounds"),
            // The merge: what a warp's part weighs, whose it is, and the barriers.
            ("value += weight * parts[i].sums", "value += parts[i].sums", "attention"),
            ("total += weight * parts[i].totals", "total += parts[i].totals", "attention"),
            ("count; i++) {", "count - 1; i++) {", "attention"),
            ("  block_barrier();\n  attend(", "  attend(", "shared memory"),
            ("16 * WARPS);\n  block_barrier();", "16 * WARPS);", "shared memory"),
        ],
    );
}

#[test]
fn in_an_attention_of_many_heads() {
    let splits = Splits { max: 2, keys: 4, window: 0, merged: 1 };
    let case = attention::Case::of(Heads { sinks: true, splits, ..heads(7, 1, 20) });
    caught(
        "in_an_attention_of_many_heads",
        |mutation| case.check(mutation),
        &[
            ("if (!HALVES) mma_bf16(sum[c][j], a, left[0], left[1]);", "", "attention"),
            ("SINKS && split == 0 ?", "SINKS ?", "attention"),
        ],
    );
}

#[test]
fn in_an_attention_by_clusters() {
    // Of three clusters all blocks have keys; those of the last have none, as seven keys are shared out by twos; one of them has.
    let splits = Splits { max: 6, keys: 1, window: 0, merged: 2 };
    let rows = vec![(270, 0), (6, 1), (4, 2)];
    let case =
        attention::Case { rows, ..attention::Case::of(Heads { held: 2, warps: 2, splits, ..appending(6, 2, 20) }) };
    caught(
        "in_an_attention_by_clusters",
        |mutation| case.check(mutation),
        &[
            // Two tiles in flight.
            ("base += HELD * stride", "base += stride", "attention"),
            ("span, base + i * stride);\n    if", "span, base + stride);\n    if", "attention"),
            // The merge of blocks.
            ("  cluster_begin();\n", "", "without cluster_begin"),
            ("  cluster_join();\n", "", "cluster_begin and cluster_join"),
            ("  cluster_arrive();\n  cluster_wait();\n", "  block_barrier();\n", "no thread of the block wrote"),
            ("value += weight * values[r][i]", "value += values[r][i]", "attention"),
            ("total += weight * totals[r][i]", "total += totals[r][i]", "attention"),
            ("peaks[r][i] == NEGATIVE_INFINITY ? 0.0f : ", "", "attention"),
            ("result * MERGED >= splits", "(result + 1) * MERGED > splits", "cache"),
            (
                "store_peer(&values[rank][i % SHARE], value, i / SHARE)",
                "store_peer(&values[rank][i % SHARE], value, rank)",
                "shared memory",
            ),
        ],
    );
}

#[test]
fn in_a_split_without_keys() {
    // Five keys over four blocks, two each.
    let splits = Splits { max: 4, keys: 1, window: 0, merged: 1 };
    let case = attention::Case { rows: vec![(4, 0)], ..attention::Case::of(Heads { splits, ..appending(2, 1, 16) }) };
    caught(
        "in_a_split_without_keys",
        |mutation| case.check(mutation),
        &[("parts[i].peaks[head] == NEGATIVE_INFINITY ? 0.0f : ", "", "attention")],
    );
}

#[test]
fn in_an_attention_with_its_projection() {
    // Two slices of two row tiles and one of one; two warps share a job, and two share a row tile.
    let case =
        attention_projection::Case { bias: true, ..attention_projection::Case::new([6, 2, 64], 2, 70, 2).at(&[70, 3]) };
    caught(
        "in_an_attention_with_its_projection",
        |mutation| case.check(mutation),
        &[
            // The weights: which, how many, whether they are there, and whose wait it is.
            ("tile_pointer(weights, first_tile + t,", "tile_pointer(weights, first_tile,", "output"),
            ("tile_pointer(weights, first_tile + t,", "tile_pointer(weights, first_tile + t + 1,", "buffer of"),
            ("rank * BLOCK_STEPS), BLOCK", "0), BLOCK", "output"),
            ("expect(&arrived, tiles *", "expect(&arrived, SLICE *", "on their way"),
            (
                "BLOCK_STEPS * STEP_WORDS * 16, &arrived)",
                "BLOCK_STEPS * STEP_WORDS * 16 - 8, &arrived)",
                "multiples of 16",
            ),
            ("if (threadIdx.x == 0) {\n    expect", "if (threadIdx.x < 2) {\n    expect", "another expect began"),
            ("  await(&arrived);\n", "", "without an await"),
            ("  await(&arrived);\n", "  if (threadIdx.x > 0) await(&arrived);\n", "without an await"),
            (
                "Tile in_flight[HELD] = {};\n  Span span",
                "await(&arrived);\n  Tile in_flight[HELD] = {};\n  Span span",
                "race: reads shared memory that thread 0 wrote",
            ),
            // The keys, and the heads.
            ("rank * BLOCK_KEY_HEADS + head) * context", "head) * context", "output"),
            ("begin, 16 * PARTS);", "begin, 16 * WARPS);", "output"),
            ("job * PARTS, PARTS, head", "job * PARTS, 1, head", "output"),
            ("const bool keeps = blockIdx.y == 0", "const bool keeps = blockIdx.y == 0 && row == 0", "cache"),
            ("  block_barrier();\n  wait_for_dependencies();", "  wait_for_dependencies();", "shared memory"),
            ("pad_query(to);\n  }\n  block_barrier();", "pad_query(to);\n  }", "shared memory"),
            ("16 * PARTS);\n  }\n  block_barrier();", "16 * PARTS);\n  }", "shared memory"),
            ("  block_barrier();\n  cluster_join();", "  cluster_join();", "shared memory"),
            ("  wait_for_dependencies();\n", "", "before wait_for_dependencies"),
            // The product, over the warps that share a row tile.
            ("staged[group % BATCH]", "staged[0]", "output"),
            ("step < BLOCK_STEPS; step += SPLIT", "step < BLOCK_STEPS; step += 1", "output"),
            ("    if (t >= tiles) break;\n", "", "shared memory"),
            // The exchange: all have begun before it, all have given before any takes.
            ("  cluster_begin();\n", "", "without cluster_begin"),
            ("  cluster_join();\n", "", "cluster_arrive between cluster_begin and cluster_join"),
            (
                "  cluster_join();\n  await(&arrived);\n",
                "  await(&arrived);\n  if (rank == 0) cluster_join();\n",
                "cluster_join is to come first",
            ),
            ("  cluster_wait();\n", "  block_barrier();\n", "between cluster_arrive and cluster_wait"),
            ("  cluster_arrive();\n  const auto", "  const auto", "without cluster_arrive"),
            (
                "y[own] = (is_mine",
                "y[own] = shared.products[0][0][0] + (is_mine",
                "between cluster_arrive and cluster_wait",
            ),
            (
                "  cluster_arrive();\n  const auto",
                "  shared.products[0][0][0] = 0.0f;\n  cluster_arrive();\n  const auto",
                "race",
            ),
            ("products[rank][part]", "products[0][part]", "race"),
            ("result / SHARE)", "rank)", "race"),
            ("result / SHARE)", "result / SHARE + 1)", "in a cluster of 2"),
            // The sum, and who makes it.
            ("r < CLUSTER; r++", "r < CLUSTER - 1; r++", "output"),
            ("part < SPLIT; part++", "part < SPLIT - 1; part++", "output"),
            ("own * THREADS + threadIdx.x < SHARE && ", "", "bounds"),
            (" && 16 * first_tile + place_of(own) / BATCH < ROWS[0]", "", "buffer of"),
            ("bias ? bias[row] : 0.0f)", "bias ? bias[row % 16] : 0.0f)", "output"),
            ("residual ? residual[b * ROWS[0] + row] : 0.0f)", "residual ? 0.0f : 0.0f)", "output"),
            ("i < zero_count; i +=", "i + 1 < zero_count; i +=", "not written"),
        ],
    );
}

#[test]
fn in_a_projection_of_more_jobs_than_warps() {
    // Two groups of two heads each for four rows, one of which has no keys.
    let case = attention_projection::Case::new([8, 4, 32], 2, 20, 2).at(&[100, -1, 0, 15]);
    caught(
        "in_a_projection_of_more_jobs_than_warps",
        |mutation| case.check(mutation),
        &[
            ("if (slot != warp) {", "if (false) {", "output"),
            ("job / GROUPS * BLOCK_HEADS + job % GROUPS * GROUP]", "job / GROUPS * BLOCK_HEADS]", "output"),
            ("job % GROUPS * GROUP / (HEADS / KEY_HEADS)", "0", "output"),
            ("blockIdx.y == 0 && position >= 0", "blockIdx.y == 0", "keys: other places"),
            ("peak == NEGATIVE_INFINITY ? 0.0f : value / total", "value / total", "output"),
        ],
    );
}
