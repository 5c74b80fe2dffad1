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
            ("(group % BATCH) * STAGE_STRIDE", "(group % BATCH) * (STAGE_STRIDE - 32)", "shared memory"),
            ("staged + b * STAGE_STRIDE", "staged + b * PAIRS * 32", "shared memory"),
            ("+ 32 * pair + 8 * quad", "+ 32 * pair + 4 * quad", "line"),
            // A missed tail, of the columns and of the rows.
            ("k + i < K;", "k + i < K - 1;", "output"),
            ("place.row < ROWS[place.output]", "place.row < ROWS[place.output] - 1", "not written"),
            ("place.row < ROWS[place.output]", "place.row <= ROWS[place.output]", "buffer of"),
            // Swapped fragment registers.
            ("held[2 * i], v.x, v.y", "held[2 * i], v.y, v.x", "output"),
            ("v.z, v.w", "v.w, v.z", "output"),
            // Barriers removed: the one after the norm, the one before the sums.
            ("if (STAGED) block_barrier();\n  else", "if (!STAGED)", "shared memory"),
            ("    block_barrier();\n    if (finishes)", "    if (finishes)", "shared memory"),
            // A barrier that some threads miss.
            (
                "    block_barrier();\n    if (finishes)",
                "    if (warp + 1 < WARPS) block_barrier();\n    if (finishes)",
                "diverged",
            ),
            ("square = warp_sum(square);", "if (lane < 16) square = warp_sum(square);", "diverged"),
            // The other half of a tile.
            ("partial[turn][warp][group + 8][column]", "partial[turn][warp][group + 9][column]", "bounds"),
            ("sum[0][i + 2] + sum[1][i + 2]", "sum[0][i] + sum[1][i]", "output"),
            ("turn ^= 1", "turn ^= 0", "race"),
            // The promises of dependent launch.
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  launch_dependents();\n", "", "launch_dependents"),
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
            ("(lane / 4 % BATCH) * K", "(lane / 4 % BATCH) * (K + 1)", "buffer of"),
            ("bias[tile * 16 + row_in_tile]", "bias[tile * 8 + row_in_tile]", "output"),
            ("* PAIRS + pair) * 64", "* PAIRS + pair) * 32", "output"),
            ("tile += gridDim.x, turn", "tile += gridDim.x + 1, turn", "not written"),
        ],
    );
}

#[test]
fn in_a_matmul() {
    let case = matvec::Case { bias: true, warps: 2, ..matvec::Case::new(50, &[37], 1) };
    caught(
        |mutation| matvec::check_matmul(&case, 11, 2, 1, mutation),
        &[
            ("mma_bf16(sum[r][c], held[r][0], v.x, v.y)", "mma_bf16(sum[r][c], held[r][0], v.y, v.x)", "output"),
            ("group + (i < 2 ? 0 : 8)", "group + (i < 2 ? 8 : 0)", "output"),
            ("if (first_tile >= TILES) return;", "if (first_tile + lane >= TILES) return;", "diverged"),
            ("row < (int)rows ? row : 0", "row", "offset"),
            ("row >= (int)rows ||", "", "buffer of"),
            ("2 * quad + i % 2", "2 * quad", "not written"),
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
            ("keys_at + (u64)at * PADDED", "keys_at + (u64)at * HEAD_DIM", "line"),
            ("const bool holds = 8 * part < PADDED;", "const bool holds = true;", "bounds"),
            ("const int key_head = blockIdx.x / GROUPS", "const int key_head = blockIdx.x % GROUPS", "cache"),
            ("position + 1 - first;", "position - first;", "cache"),
            ("  warp_barrier();\n  for (int i = lane; i < PADDED", "  for (int i = lane; i < PADDED", "shared memory"),
            ("value += keep * merged[w][h][d];", "value += merged[w][h][d];", "attention"),
            ("for (int mask = LANES; mask < 32", "for (int mask = 2 * LANES; mask < 32", "attention"),
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
