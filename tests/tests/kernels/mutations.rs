//! Planted mistakes: each must be caught, by the comparison or by a check of the host build.

use anyhow::Result;

use crate::support::Mutation;
use crate::{attention, matvec, sample};

/// Runs a case with and without each mistake. The word that the error must hold says how the mistake shows.
fn caught(check: impl Fn(Option<Mutation>) -> Result<()>, mistakes: &[(&'static str, &'static str, &str)]) {
    check(None).expect("the kernel as it is passes");
    let missed: Vec<String> = mistakes
        .iter()
        .filter_map(|&(from, to, shows)| match check(Some(Mutation { from, to })) {
            Ok(()) => Some(format!("`{from}` became `{to}`, and nobody noticed")),
            Err(error) if format!("{error:#}").contains(shows) => None,
            Err(error) => Some(format!("`{from}` became `{to}`; it should show as `{shows}`, not: {error:#}")),
        })
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn in_a_matvec() {
    let case = matvec::Case { norm: 1, ..matvec::Case::new(70, &[37], 4) };
    caught(
        |mutation| case.check(mutation),
        &[
            // A wrong stride, in one of the two places.
            ("staged + row * STAGE_STRIDE", "staged + row * (STAGE_STRIDE - 32)", "shared memory"),
            // What rounding leaves: dropped, or put where it was not asked for.
            ("group % COLUMNS + round * BATCH", "group % BATCH + round * BATCH", "output"),
            ("at + BATCH * STAGE_STRIDE, left", "at + STAGE_STRIDE, left", "shared memory"),
            ("(first + r) * STAGE_STRIDE", "(first + r) * PAIRS * 32", "shared memory"),
            ("32 * pair + 8 * quad", "32 * pair + 4 * quad", "line"),
            // A missed tail, of the columns and of the rows.
            ("k + i >= K ? 0.0f", "k + i >= K - 1 ? 0.0f", "output"),
            ("k + i >= K ? 0.0f", "k + i > K ? 0.0f", "buffer of"),
            ("place.row < ROWS[place.output]", "place.row < ROWS[place.output] - 1", "not written"),
            ("place.row < ROWS[place.output]", "place.row <= ROWS[place.output]", "buffer of"),
            // Swapped fragment registers.
            ("v.x, v.y", "v.y, v.x", "output"),
            ("v.z, v.w", "v.w, v.z", "output"),
            // Barriers removed: the one after the norm, the one before the sums.
            ("  if (STAGED) block_barrier();\n", "", "shared memory"),
            ("      block_barrier();\n      if (writes)", "      if (writes)", "shared memory"),
            // A barrier that some threads miss.
            (
                "block_barrier();\n      if (writes)",
                "if (warp + 1 < WARPS) block_barrier();\n      if (writes)",
                "diverged",
            ),
            (
                "square[r] = warp_sum(square[r]);",
                "if (threadIdx.x % 32 < 16) square[r] = warp_sum(square[r]);",
                "diverged",
            ),
            ("load_floats<false>(v[r], x + (first + r) * K", "load_floats<false>(v[r], x + first * K", "output"),
            ("threadIdx.x / 32][first + r] = square[r]", "threadIdx.x / 32][first] = square[r]", "shared memory"),
            // The other half of a tile.
            ("partial[parity][warp][group + 8][column]", "partial[parity][warp][group + 9][column]", "bounds"),
            ("sum[0][i + 2] + sum[1][i + 2]", "sum[0][i] + sum[1][i]", "output"),
            // The promises of dependent launch.
            ("load_floats<true>(w[pass]", "load_floats<false>(w[pass]", "before wait_for_dependencies"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  launch_dependents();\n", "", "launch_dependents"),
        ],
    );
}

#[test]
fn in_the_ring_of_a_matvec() {
    // Ten pairs over four warps: three each, two of which have two. Five row tiles over two blocks.
    let case = matvec::Case { staged: true, ..matvec::Case::new(300, &[70], 2) };
    caught(
        |mutation| case.check(mutation),
        &[
            // The cursor: too little, too far, another tile, and what a row tile's end resets.
            ("cursor.at += WARPS * 64;", "cursor.at += 64;", "output"),
            ("++cursor.turn == SHARE", "++cursor.turn == SHARE + 1", "output"),
            ("++cursor.turn == SHARE", "++cursor.turn == SHARE - 1", "output"),
            ("cursor.tile += gridDim.x;", "cursor.tile += 1;", "output"),
            ("    cursor.at = tile_pointer(weights, cursor.tile, warp) + lane;\n", "", "output"),
            ("cursor.turn = 0;", "", "output"),
            ("warp + WARPS * cursor.turn < PAIRS", "true", "buffer of"),
            ("cursor.tile < TILES &&", "", "buffer of"),
            // The ring and its pairs.
            ("load_pair(held[slot], cursor", "load_pair(held[(slot + 1) % DEPTH], cursor", "output"),
            ("|| pair < PAIRS", "|| true", "shared memory"),
            ("++turn < SHARE", "++turn < SHARE - 1", "output"),
            // The row tile's end.
            ("sum[0][i] = sum[1][i] = 0.0f", "sum[0][i] = 0.0f", "output"),
            ("      turn = 0, parity", "      parity", "output"),
            ("parity ^= 1", "parity ^= 0", "race"),
            ("partial[parity][i][row_in_tile][c]", "partial[parity ^ 1][i][row_in_tile][c]", "shared memory"),
            ("parity ^= 1, tile += gridDim.x", "parity ^= 1, tile += gridDim.x + 1", "not written"),
        ],
    );
}

#[test]
fn in_a_matvec_without_norm() {
    let case = matvec::Case { bias: true, residual: true, ..matvec::Case::new(50, &[37], 2) };
    caught(
        |mutation| case.check(mutation),
        &[
            ("k + i < K ?", "k + i < K - 1 ?", "output"),
            ("k + i < K ?", "k + i <= K ?", "buffer of"),
            ("(const u16*)x + row * K, k);", "(const u16*)x + row * (K + 1), k);", "buffer of"),
            ("bias[tile * 16 + row_in_tile]", "bias[tile * 8 + row_in_tile]", "output"),
            ("if (writes && residual) add", "if (finishes && residual) add", "buffer of"),
            ("* PAIRS + pair) * 64", "* PAIRS + pair) * 32", "output"),
        ],
    );
}

#[test]
fn in_a_combination() {
    let splits = fuse_templates::Splits { max: 7, keys: 2, window: 0 };
    let case = matvec::Case { combine: Some((2, splits)), ..matvec::Case::new(22, &[18], 4) };
    caught(
        |mutation| case.check(mutation),
        &[
            ("first += TOGETHER", "first += SPLITS", "output"),
            ("sum[i] * keep + take", "sum[i] + take", "output"),
            ("total * keep + take", "total + take", "output"),
            ("head = (k + run) / HEAD_DIM", "head = k / HEAD_DIM", "output"),
            ("const bool inside = k + run < K;", "const bool inside = true;", "output"),
            ("inside && splits > 0", "inside", "output"),
            ("active_splits(load_early(positions + i))", "active_splits(positions[i])", "before wait_for_dependencies"),
        ],
    );
}

#[test]
fn in_a_matmul() {
    let case = matvec::Case { bias: true, ..matvec::Case::new(90, &[37], 1) };
    let block = matvec::Block { row_tiles: 2, columns: 1, row_warps: 2, split: 2 };
    caught(
        |mutation| matvec::check_matmul(&case, 11, block, mutation),
        &[
            ("now.rows[c].x, now.rows[c].y", "now.rows[c].y, now.rows[c].x", "output"),
            ("bias[tile * 16 + group + 8]", "bias[tile * 16 + group]", "output"),
            ("if (first_tile < TILES) {", "if (first_tile + lane < TILES) {", "diverged"),
            ("row < rows ? row : 0", "row", "buffer of"),
            ("first_tile + r < TILES ? first_tile + r : TILES - 1", "first_tile + r", "buffer of"),
            (" || row >= (int)rows", "", "buffer of"),
            ("2 * quad + i;", "2 * quad;", "not written"),
            // What a warp takes of the columns, and the next fragments of it.
            ("pair < PAIRS; pair += SPLIT", "pair < PAIRS; pair += 1", "output"),
            ("rows, pair + SPLIT);", "rows, pair + 1);", "output"),
            ("      now = next;\n", "", "output"),
            // The sum over the warps that share a row tile.
            ("    block_barrier();\n  }", "  }", "shared memory"),
            ("u % SPLIT != part", "u % SPLIT != 0", "not written"),
            ("s < SPLIT; s++", "s < SPLIT - 1; s++", "output"),
            ("high += partial[s][row_warp][u][1]", "high += partial[s][row_warp][u][0]", "output"),
            ("low += partial[s][row_warp]", "low += partial[s][0]", "output"),
            ("partial[part][row_warp][u][0]", "partial[part][0][u][0]", "race"),
            ("u / (2 * COLUMNS)][u / 2 % COLUMNS][u % 2 + 2]", "u / (2 * COLUMNS)][u / 2 % COLUMNS][u % 2]", "output"),
        ],
    );
}

#[test]
fn in_an_attention() {
    let case = attention::Case {
        append: true,
        rope: Some((20, false, 1.0)),
        splits: fuse_templates::Splits { max: 3, keys: 4, window: 0 },
        ..attention::Case::new(6, 2, 20)
    };
    caught(
        |mutation| case.check(mutation),
        &[
            ("if (i >= ROPE_DIM) return at(i);", "if (i >= ROPE_DIM - 2) return at(i);", "keys"),
            ("(u64)at * PADDED + 8", "(u64)at * HEAD_DIM + 8", "multiple of 16"),
            ("const bool holds = 8 * part < PADDED;", "const bool holds = true;", "bounds"),
            ("const int key_head = blockIdx.x / GROUPS", "const int key_head = blockIdx.x % GROUPS", "cache"),
            ("position + 1 - first;", "position - first;", "cache"),
            ("  warp_barrier();\n  for (int i = lane; i < PADDED", "  for (int i = lane; i < PADDED", "shared memory"),
            ("value += keep * merged[w][h][d];", "value += merged[w][h][d];", "attention"),
            ("for (int mask = LANES; mask < 32", "for (int mask = 2 * LANES; mask < 32", "attention"),
            // What is read before the wait: the newest key from the cache, or anything by a plain read.
            ("&& !(APPEND && at == position)", "", "by load_early or load_stream"),
            ("APPEND ? load_stream((const Vec4*)(keys_at + offset)) :", "", "before wait_for_dependencies"),
            ("load_early(positions + row)", "positions[row]", "before wait_for_dependencies"),
            // The newest key and value: taken from shared memory, and left in the cache.
            ("if (newest && at == position && holds) key[u]", "if (false) key[u]", "attention"),
            ("value[u] = fresh[1][part]", "value[u] = fresh[0][part]", "attention"),
            ("store(to + i, v), store(cached + i, v);", "store(to + i, v);", "cache"),
            ("store(to + i, v), store(cached + i, v);", "store(cached + i, v);", "shared memory"),
            // The keys that are on their way.
            ("base + 2 * STREAMS, end, position", "base + STREAMS, end, position", "attention"),
            ("key[u] = next_key[u], value[u] = next_value[u];", "key[u] = next_key[u];", "attention"),
        ],
    );
}

#[test]
fn in_a_sampler() {
    let warm = sample::Parameters { temperature: 1.1, top_k: 20, top_p: 0.8, limit: 31, ..sample::GREEDY };
    let parameters: Vec<_> = (0..12).map(|seed| sample::Parameters { seed: [seed, 1], ..warm }).collect();
    let rows: Vec<(i32, i32)> = (0..12).map(|sequence| (20 + sequence, sequence)).collect();
    caught(
        |mutation| sample::check(333, 2, &rows, &parameters, mutation),
        &[
            ("i < 256; i += THREADS) bins[i] = 0;", "i < 255; i += THREADS) bins[i] = 0;", "shared memory"),
            (
                "digit--];\n    prefix |= (u32)digit << shift;\n    block_barrier();",
                "digit--];\n    prefix |= (u32)digit << shift;",
                "race",
            ),
            ("if (lane >= delta) running += below;", "running += below;", "race"),
            ("if (i < warp) before", "if (i <= warp) before", "tokens"),
            ("above + bins[digit] < wanted", "bins[digit] < wanted", "tokens"),
            ("(position + 1) % RING", "position % RING", "ring"),
            ("(u32)position + 1 >= p.limit", "(u32)position >= p.limit", "positions"),
            ("c2 = high0 ^ c3 ^ k1", "c2 = high0 ^ c3 ^ k0", "tokens"),
            ("1.0 / 16777216.0", "1.0 / 8388608.0", "tokens"),
        ],
    );
}
