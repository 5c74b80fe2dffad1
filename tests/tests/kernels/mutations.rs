//! Planted mistakes: each must be caught, by the comparison or by a check of the host build.

use fuse_kernels::{Activation, ExpertsHidden, ExpertsSum, Matvec, Route, Scoring, Splits};

use crate::caught::caught;
use crate::experts::{Rows, hidden, inside, route, sum};
use crate::matvec::{combining, plain, rms};
use crate::support::tiles;
use crate::{experts, matmul, matvec};

#[test]
fn in_a_matvec() {
    let case = matvec::Case { zeros: 99, ..matvec::Case::of(rms(plain(70, &[37], 4))) };
    caught(
        "in_a_matvec",
        |mutation| case.check(mutation),
        &[
            // A wrong stride, in one of the two places.
            (
                "load_staged(staged + row * STAGE_STRIDE,",
                "load_staged(staged + row * (STAGE_STRIDE - 32),",
                "shared memory",
            ),
            // What rounding leaves: dropped, or put where it was not asked for.
            ("group % COLUMNS + round * EIGHT", "group % BATCH + round * EIGHT", "output"),
            ("at + BATCH * STAGE_STRIDE, left", "at + STAGE_STRIDE, left", "shared memory"),
            ("(row + r) * STAGE_STRIDE", "(row + r) * STEPS * 32", "shared memory"),
            ("row + k + 8 * quad)", "row + k + 4 * quad)", "line"),
            // A missed tail, of the columns and of the rows.
            ("k + i >= K ? 0.0f", "k + i >= K - 1 ? 0.0f", "output"),
            ("k + i >= K ? 0.0f", "k + i > K ? 0.0f", "buffer of"),
            ("place.row < ROWS[place.output]", "place.row < ROWS[place.output] - 1", "not written"),
            ("place.row < ROWS[place.output]", "place.row <= ROWS[place.output]", "buffer of"),
            // Swapped fragment registers.
            ("held.tile[0], x.x, x.y", "held.tile[0], x.y, x.x", "output"),
            ("held.tile[1], x.z, x.w", "held.tile[1], x.w, x.z", "output"),
            // Barriers removed: the one after the norm, the one before the sums.
            ("  if (STAGED) block_barrier();\n", "", "shared memory"),
            ("    block_barrier();\n    // A warp takes", "    // A warp takes", "shared memory"),
            // A barrier that some threads miss.
            (
                "    block_barrier();\n    // A warp takes",
                "    if (warp + 1 < WARPS) block_barrier();\n    // A warp takes",
                "shared memory",
            ),
            (
                "square[r] = warp_sum(square[r]);",
                "if (threadIdx.x % 32 < 16) square[r] = warp_sum(square[r]);",
                "diverged",
            ),
            // The two halves of a tile, of the warps, and of what a value is rounded to.
            ("at[8] = ", "at[9] = ", "shared memory"),
            ("sum[0][i + 2] + sum[1][i + 2]", "sum[0][i] + sum[1][i]", "output"),
            ("return y + shuffle_xor(y, 16);", "return y;", "output"),
            ("lane / 16 * (WARPS / 2) + i", "i", "output"),
            ("job % BATCH * ROWS", "0 * ROWS", "not written"),
            // Zeros for another launch.
            ("i < zero_count; i += gridDim.x * THREADS", "i + 1 < zero_count; i += gridDim.x * THREADS", "not written"),
            // The promises of dependent launch.
            ("load_floats<true>(w[pass]", "load_floats<false>(w[pass]", "before wait_for_dependencies"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  if (!LATE) launch_dependents();\n", "", "launch_dependents"),
        ],
    );
}

#[test]
fn in_the_rows_side_by_side_of_a_matvec() {
    let case = matvec::Case::of(rms(Matvec { warps: 8, ..plain(150, &[18], 8) }));
    caught(
        "in_the_rows_side_by_side_of_a_matvec",
        |mutation| case.check(mutation),
        &[
            ("first + side * ROWS_AT_ONCE;", "first + side;", "race"),
            ("first += ROWS_AT_ONCE * SIDES", "first += ROWS_AT_ONCE", "race"),
            ("load_floats<false>(v[r], x + (row + r) * K", "load_floats<false>(v[r], x + row * K", "output"),
            ("threadIdx.x / 32][row + r] = square[r]", "threadIdx.x / 32][row] = square[r]", "shared memory"),
            ("row / ROWS_AT_ONCE % SIDES", "row % SIDES", "shared memory"),
            ("side_of(warp % BATCH) * (WARPS / SIDES) + i", "i", "shared memory"),
        ],
    );
}

#[test]
fn in_the_groups_of_a_matvec() {
    let case = matvec::Case::of(Matvec { staged: true, ..plain(64, &[70], 16) });
    caught(
        "in_the_groups_of_a_matvec",
        |mutation| case.check(mutation),
        &[
            ("round * EIGHT, of", "0 * EIGHT, of", "output"),
            ("GROUPS == 1 ? 0 : round", "0", "output"),
            ("job % BATCH / EIGHT]", "0]", "output"),
            ("else block_barrier();", "", "race"),
            ("job % EIGHT, lane", "0, lane", "output"),
        ],
    );
}

#[test]
fn in_the_ring_of_a_matvec() {
    // Ten pairs over four warps: three each, two of which have two, in rings of two. Five row tiles over two blocks.
    let case = matvec::Case::of(Matvec { staged: true, ..plain(300, &[70], 2) });
    caught(
        "in_the_ring_of_a_matvec",
        |mutation| case.check(mutation),
        &[
            // Where the next pair is: too near, too far, another tile, another chunk.
            ("WARPS * TURNS * chunk) + lane", "TURNS * chunk) + lane", "output"),
            ("WARPS * (i / UNIT)) * STEP_WORDS", "i / UNIT) * STEP_WORDS", "output"),
            ("same ? unit : unit + teams", "unit", "output"),
            ("same ? chunk + 1 : 0", "0", "output"),
            ("chunk + 1 < CHUNKS", "true", "output"),
            ("chunk < CHUNKS; chunk++", "chunk < CHUNKS - 1; chunk++", "output"),
            // The ring and its pairs.
            ("load_step(held[turn + tile], from", "load_step(held[(turn + tile + 1) % DEPTH], from", "output"),
            // The row tile's end.
            ("parity ^= 1", "parity ^= 0", "race"),
            ("total_of(partial[parity]", "total_of(partial[parity ^ 1]", "shared memory"),
            ("unit < UNITS; unit += teams", "unit < UNITS; unit += teams + 1", "not written"),
        ],
    );
    let case = matvec::Case::of(Matvec { unit: 2, depth: 4, ..plain(256, &[150], 2) });
    caught(
        "in_the_ring_of_a_matvec_2",
        |mutation| case.check(mutation),
        &[
            ("unit >= UNITS ||", "", "buffer of"),
            ("i % UNIT * STEPS", "i % UNIT", "output"),
            ("multiply(sum[of][tile]", "multiply(sum[of][0]", "output"),
            ("tile = unit * UNIT + job / BATCH", "tile = unit * UNIT", "not written"),
            ("job >= UNIT * BATCH) break", "job >= BATCH) break", "not written"),
        ],
    );
}

#[test]
fn in_a_split_matvec() {
    let kernel = Matvec { split: 2, blocks: 4, residual: true, staged: true, ..plain(270, &[37], 2) };
    let case = matvec::Case { bias: true, ..matvec::Case::of(kernel) };
    caught(
        "in_a_split_matvec",
        |mutation| case.check(mutation),
        &[
            ("rank * BLOCK_STEPS + step < STEPS)", "true)", "buffer of"),
            ("lane < TILE_ROWS && place", "place", "output"),
            ("accumulate((float*)out0 + result.at, y);", "out0[result.at] += y;", "race"),
            ("AHEAD && rank == 0", "AHEAD", "output"),
            ("rank = blockIdx.x % SPLIT", "rank = 0 * blockIdx.x", "output"),
            ("load_activations(x + b * K, base + i % STAGED_K)", "load_activations(x + b * K, i % STAGED_K)", "output"),
            ("unit * UNIT, rank * BLOCK_STEPS + warp", "unit * UNIT, warp", "output"),
        ],
    );
}

#[test]
fn in_a_matvec_without_norm() {
    let case = matvec::Case { bias: true, ..matvec::Case::of(Matvec { residual: true, ..plain(50, &[37], 2) }) };
    caught(
        "in_a_matvec_without_norm",
        |mutation| case.check(mutation),
        &[
            ("k + i < K ?", "k + i < K - 1 ?", "output"),
            ("k + i < K ?", "k + i <= K ?", "buffer of"),
            ("(const u16*)x + row * K, rank", "(const u16*)x + row * (K + 1), rank", "buffer of"),
            ("tile * 16 + lane % 16, exists", "tile * 8 + lane % 16, exists", "output"),
            ("  if (!result.exists) return add;\n", "", "buffer of"),
            ("* STEPS + step) * STEP_WORDS", "* STEPS + step) * 32", "output"),
        ],
    );
}

#[test]
fn in_a_combination() {
    let splits = Splits { max: 11, keys: 1, window: 0, merged: 1 };
    let case = matvec::Case::of(combining(2, splits, plain(22, &[18], 4)));
    caught(
        "in_a_combination",
        |mutation| case.check(mutation),
        &[
            ("first += TOGETHER", "first += LEFT", "output"),
            ("sum[r][j] * keep + take", "sum[r][j] + take", "output"),
            ("total[r] * keep + take", "total[r] + take", "output"),
            ("k / HEAD_DIM) * 2], weight", "0) * 2], weight", "output"),
            ("splits[r] > 0 ? sum", "true ? sum", "output"),
            ("results_left(position_of[b])", "LEFT", "output"),
            ("load_early(positions + threadIdx.x)", "positions[threadIdx.x]", "before wait_for_dependencies"),
        ],
    );
    let case = matvec::Case::of(combining(2, splits, plain(96, &[18], 8)));
    caught(
        "in_a_combination_2",
        |mutation| case.check(mutation),
        &[
            ("begin < RUNS; begin", "begin < RUNS / 2; begin", "shared memory"),
            ("most = splits[r];", "most = 1;", "output"),
        ],
    );
}

#[test]
fn in_a_matmul() {
    let kernel = matmul::plain(tiles(90, &[37]), [2, 1, 2, 2]);
    let case = matmul::Case { bias: true, ..matmul::Case::of(kernel, 11) };
    caught(
        "in_a_matmul",
        |mutation| case.check(mutation),
        &[
            ("held.tile[0], x.x, x.y", "held.tile[0], x.y, x.x", "output"),
            ("bias[tile * 16 + group + 8]", "bias[tile * 16 + group]", "output"),
            ("if (first_tile < TILES) {", "if (first_tile + lane < TILES) {", "diverged"),
            (
                "(int)rows ? first_row + 8 * c + group : 0",
                "(int)rows + 99 ? first_row + 8 * c + group : 0",
                "buffer of",
            ),
            ("first_tile + r < TILES ? first_tile + r : TILES - 1", "first_tile + r", "buffer of"),
            (" || row >= (int)rows", "", "buffer of"),
            ("2 * quad + i;", "2 * quad;", "not written"),
            // What a warp takes of the columns, and the next fragments of it.
            ("step < STEPS; step += SPLIT", "step < STEPS; step += 1", "output"),
            ("first_tile, step + SPLIT);", "first_tile, step + 1);", "output"),
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
fn in_a_route() {
    // Many logits are equal.
    let case = experts::Hidden::of(hidden(120, 16, 4));
    caught(
        "in_a_route",
        |mutation| case.check(mutation),
        &[
            ("if (lanes & (lanes - 1))", "if (false)", "bounds"),
            ("own = 32 * which[0] + lane", "own = 31 - lane", "buffer of"),
            ("order[i] > order[i - 1]", "order[i] >= order[i - 1]", "buffer of"),
            ("swap(order[i], order[i - 1]), ", "", "not written"),
            (", which[w - 1] = which[w];", ";", "not written"),
            ("slot < TOP_K; slot++", "slot < TOP_K - 1; slot++", "not written"),
            ("bits >> 31 & 0x7fffffff); }\nDEVICE float logit_of", "0); }\nDEVICE float logit_of", "hidden"),
            ("chosen >> w & 1 : 32 * w + lane < EXPERTS) whole", "true : 32 * w + lane < EXPERTS) whole", "hidden"),
            ("SHARE_SCALE / warp_sum", "1.0f / warp_sum", "hidden"),
            ("NORMALISE || SCORING == SOFTMAX ? SHARE_SCALE", "false ? SHARE_SCALE", "hidden"),
            ("e >= EXPERTS ? 0.0f : EARLY", "EARLY", "buffer of"),
        ],
    );
    // A bias for the choice.
    let biased = Route { biased: true, scoring: Scoring::Sigmoid, ..route(120, 16) };
    let case = experts::Hidden::of(ExpertsHidden { route: biased.clone(), ..hidden(120, 16, 4) });
    caught(
        "in_a_route_2",
        |mutation| case.check(mutation),
        &[
            ("expf(-logit[w])), bias[w])", "expf(-logit[w])), 0.0f)", "buffer of"),
            ("BIASED ? ranks[w] : logit[w]", "logit[w]", "buffer of"),
        ],
    );
    let unnormalised = Route { scoring: Scoring::Softmax, normalise: false, ..biased };
    let case = experts::Hidden::of(ExpertsHidden { route: unnormalised, ..hidden(120, 16, 4) });
    caught(
        "in_a_route_3",
        |mutation| case.check(mutation),
        &[("EXPERTS) whole = plain_sum", "EXPERTS && w == 0) whole = plain_sum", "buffer of")],
    );
}

#[test]
fn in_the_insides_of_experts() {
    let kernel = ExpertsHidden { tiles: inside(300, 43), ..hidden(70, 4, 2) };
    let case = experts::Hidden { zeros: 99, ..experts::Hidden::of(kernel) };
    caught(
        "in_the_insides_of_experts",
        |mutation| case.check(mutation),
        &[
            // The experts of both rows.
            ("word |= sets[row][w]", "word = sets[row][w]", "not written"),
            ("count + count_bits(word & ((1u << lane) - 1))", "count_bits(word & ((1u << lane) - 1))", "race"),
            ("  warp_barrier();\n  return count;", "  return count;", "shared memory"),
            ("if (lane == 0) sets[row][w]", "if (lane == 1) sets[0][w]", "shared memory"),
            ("logits + warp % BATCH * EXPERTS", "logits", "not written"),
            ("shares[warp][32 * e + lane] =", "shares[0][32 * e + lane] =", "shared memory"),
            ("share == 0.0f ? 0.0f : ", "share == 0.0f ? 1.0f : ", "hidden"),
            ("* other * share", "* other", "hidden"),
            // Rows and their norms.
            ("if (row > 0) stage_row", "if (row > 1) stage_row", "shared memory"),
            ("x + row * K", "x", "hidden"),
            ("sums[row][threadIdx.x / 32] = square", "sums[0][threadIdx.x / 32] = square", "shared memory"),
            ("square / K + EPS", "square + EPS", "hidden"),
            ("scale * w[pass][i]", "scale", "hidden"),
            // Items: their experts, their row tiles, what comes next.
            ("list[next / TILES])", "list[0])", "hidden"),
            ("((tile * STEPS", "((0 * STEPS", "hidden"),
            ("(u64)expert * TILES * STEPS", "(u64)expert * (TILES - 1) * STEPS", "hidden"),
            ("same ? item : item + gridDim.x", "item", "hidden"),
            ("same ? chunk + 1 : 0", "0", "hidden"),
            ("(u64)(item / TILES) * BATCH + warp", "(u64)(item / TILES) * BATCH", "not written"),
            ("at < ROWS[0]) store(hidden", "at <= ROWS[0]) store(hidden", "buffer of"),
            ("parity ^= 1", "parity ^= 0", "race"),
            // Both columns of a row, both halves of the warps.
            ("c < COLUMNS; c += BATCH", "c < BATCH; c += BATCH", "hidden"),
            ("lane / 16 * (WARPS / 2) + i", "i", "hidden"),
            ("sum[0][i + 2] + sum[1][i + 2]", "sum[0][i] + sum[1][i]", "hidden"),
            ("group % COLUMNS + round * BATCH", "group % BATCH + round * BATCH", "hidden"),
            // Barriers.
            ("    block_barrier();\n    items", "    items", "shared memory"),
            ("  block_barrier();\n\n  // Of the row", "\n  // Of the row", "shared memory"),
            (
                "    block_barrier();\n    if (warp < BATCH) {\n      float y",
                "    if (warp < BATCH) {\n      float y",
                "shared memory",
            ),
            // Zeros for another launch, and the promises of dependent launch.
            ("i < zero_count; i += gridDim.x", "i + 1 < zero_count; i += gridDim.x", "not written"),
            ("load_floats<true>(w[pass]", "load_floats<false>(w[pass]", "before wait_for_dependencies"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  launch_dependents();\n", "", "launch_dependents"),
        ],
    );
    let case = experts::Hidden::of(ExpertsHidden { warps: 8, ..hidden(8, 4, 8) });
    caught(
        "in_the_insides_of_experts_2",
        |mutation| case.check(mutation),
        &[("round < ROUNDS; round++", "round < 1; round++", "hidden")],
    );
}

#[test]
fn in_a_sum_of_experts() {
    let kernel =
        |k, experts| ExpertsSum { tiles: tiles(k, &[40]), depth: 3, split: 2, blocks: 4, ..sum(experts, 4, 2) };
    let case = experts::Sum::of(kernel(300, 70));
    caught(
        "in_a_sum_of_experts",
        |mutation| case.check(mutation),
        &[
            ("list[turn / SHARE] + offset", "list[0] + offset", "sum"),
            ("offset = (first_tile * STEPS", "offset = (0 * STEPS", "sum"),
            ("rank * BLOCK_STEPS + warp) * STEP_WORDS", "warp) * STEP_WORDS", "sum"),
            ("rank * EXPERT_K + i % EXPERT_K);", "i % EXPERT_K);", "sum"),
            ("(u64)slot * BATCH + b", "(u64)slot * BATCH", "sum"),
            ("row / BATCH * EXPERT_K + i % EXPERT_K) = spread", "i % EXPERT_K) = spread", "race"),
            ("begin + 8 * THREADS * h, row", "begin, row", "shared memory"),
            ("slot * EXPERT_K + k + 32", "k + 32", "sum"),
            ("offset += teams * STEPS * STEP_WORDS", "offset += STEPS * STEP_WORDS", "sum"),
            ("same ? chunk + 1 : 0", "0", "sum"),
            ("chunk + 1 < chunks", "true", "sum"),
            ("(turns + DEPTH - 1) / DEPTH", "turns / DEPTH", "sum"),
            ("residual && rank == 0", "residual", "sum"),
            ("rank = blockIdx.x % SPLIT", "rank = 0 * blockIdx.x", "sum"),
            (
                "accumulate((float*)out + warp",
                "*((float*)out + warp * ROWS[0] + row) += y, accumulate((float*)out + 0 * warp",
                "race",
            ),
            ("row < ROWS[0];", "row <= ROWS[0];", "buffer of"),
            ("parity ^= 1", "parity ^= 0", "race"),
            ("    block_barrier();\n    count", "    count", "shared memory"),
            ("  warp_barrier();\n  const Vec4* const", "  const Vec4* const", "shared memory"),
            ("    block_barrier();\n  }\n  int parity", "  }\n  int parity", "shared memory"),
            ("load_logits<true>", "load_logits<false>", "before wait_for_dependencies"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  if (!LATE) launch_dependents();\n", "", "launch_dependents"),
        ],
    );
    // The columns are no multiple of the blocks that share them, and every expert is chosen.
    let case = experts::Sum::of(kernel(270, 4));
    caught(
        "in_a_sum_of_experts_2",
        |mutation| case.check(mutation),
        &[("rank * BLOCK_STEPS + step < STEPS)", "true)", "buffer of")],
    );
}

#[test]
fn in_experts_of_many_rows() {
    let case = Rows::inside(route(40, 3), inside(70, 43), Activation::Silu, 70, 1);
    caught(
        "in_experts_of_many_rows",
        |mutation| case.check([mutation, None]),
        &[
            ("slot + count_bits(word", "count_bits(word", "slot"),
            ("slot += count_bits(word);", "", "slot"),
            ("|= 1u << r", "|= 1u << warp", "route"),
            ("word |= bits[i][e]", "word = bits[i][e]", "route"),
            ("row >= (int)rows", "row > (int)rows", "buffer of"),
            ("  block_barrier();\n  for", "  for", "shared memory"),
            ("logits + (u64)row * EXPERTS", "logits", "route"),
        ],
    );
    caught(
        "in_experts_of_many_rows_2",
        |mutation| case.check([None, mutation]),
        &[
            ("y *= takers[row - first_row].share;", "", "product"),
            ("row * TOP_K + slots[of]", "row * TOP_K", "not written"),
            ("weights += (u64)blockIdx.z", "weights += 0 * (u64)blockIdx.z", "product"),
            ("if (first_row >= taken) return;", "", "shared memory"),
            ("rows = taken;", "", "shared memory"),
            ("if (lane >= delta) at += before", "at += before", "shared memory"),
            ("count - count_bits(word) - first;", "count - count_bits(word);", "not written"),
            ("BY_PAIR ? taker.pair : taker.row", "taker.pair", "buffer of"),
            ("  block_barrier();\n  if (first_row >= taken)", "  if (first_row >= taken)", "shared memory"),
            ("warp_min(lane == 31 ? -at : 0)", "warp_min(0)", "not written"),
        ],
    );
    let case = Rows::by_pair(route(40, 3), tiles(43, &[37]), 70, 1);
    caught(
        "in_experts_of_many_rows_3",
        |mutation| case.check([None, mutation]),
        &[("BY_PAIR ? taker.pair : taker.row", "taker.row", "product")],
    );
}
