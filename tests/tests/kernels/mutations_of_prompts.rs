//! Planted mistakes in the kernels that only prompts have.

use fuse_kernels::{Append, AttentionRows, NormKind};

use crate::attention::rotation;
use crate::caught::caught;
use crate::{append, attention_rows};

#[test]
fn in_an_attention_of_many_rows() {
    // Two tiles of keys and a bit; 72 queries per key head over blocks of 32, the first of which has idle rows; warps in pairs.
    let kernel = attention_rows::shaped(2, 2, attention_rows::plain(6, 2, 24));
    let kernel = AttentionRows { window: 100, sinks: true, ..kernel };
    let case = attention_rows::Case { first: 110, idle: 3, ..attention_rows::Case::of(kernel, 24) };
    caught(
        "in_an_attention_of_many_rows",
        |mutation| case.check(mutation),
        &[
            // Which queries and keys: of which head, from where on, up to where.
            ("key_head * SHARE + smaller", "key_head + smaller", "not written"),
            ("smaller(query, count - 1) / SHARE; }", "query / SHARE; }", "buffer of"),
            ("at < count ? load_early(positions + row_of(at)) : -1", "load_early(positions + at / SHARE)", "buffer of"),
            ("last - (last_row - row_of(first)), 0)", "last, 0)", "attention"),
            ("smaller(base + key, last)", "(base + key)", "buffer of"),
            ("load_early(sequences + last_row) * KEY", "0 * KEY", "attention"),
            ("blockIdx.y) * QUERIES", "blockIdx.y) * 16", "not written"),
            ("if (first + at >= count) break;", "", "attention"),
            // Tiles: whether they are there, and whether all are done with what they replace.
            (
                "    await_copies();\n    block_barrier();\n    if (base > begin)",
                "    if (base > begin)",
                "shared memory",
            ),
            (
                "    await_copies();\n    block_barrier();\n    if (base > begin)",
                "    block_barrier();\n    if (base > begin)",
                "race",
            ),
            (
                "    await_copies();\n    block_barrier();\n    if (base > begin)",
                "    await_copies();\n    if (base > begin)",
                "shared memory",
            ),
            (
                "    await_copies();\n    block_barrier();\n    if (base + KEYS",
                "    block_barrier();\n    if (base + KEYS",
                "without await_copies",
            ),
            (
                "    await_copies();\n    block_barrier();\n    if (base + KEYS",
                "    await_copies();\n    if (base + KEYS",
                "race",
            ),
            (
                "if (base > begin) copy_tile(value_tile, values, base",
                "if (base > begin) copy_tile(value_tile, values, begin",
                "attention",
            ),
            ("copy_tile(key_tile, keys, base + KEYS, last)", "copy_tile(key_tile, keys, base, last)", "attention"),
            ("if (base + KEYS <= last) copy_tile", "copy_tile", "without await_copies"),
            // The product with keys: whose, which of their values, what rounding left of the queries.
            ("(part * COLUMNS + c + i) * 8 + key_of(group)", "(c + i) * 8 + key_of(group)", "attention"),
            ("smaller(4 * p + quad, CHUNKS - 1)", "4 * p + quad", "race"),
            ("now.left[0], key[i].x", "now.kept[0], key[i].x", "attention"),
            ("now.left[1], key[i].z", "Vec4{}, key[i].z", "attention"),
            ("return column / 2 + column % 2 * 4;", "return column / 2;", "attention"),
            ("8 * i;\n    position", "4 * i;\n    position", "attention"),
            ("first + i < HEAD_DIM", "first + i <= HEAD_DIM", "buffer of"),
            // Masks.
            ("key > at ||", "key >= at ||", "attention"),
            ("key <= at - WINDOW", "key < at - WINDOW", "attention"),
            ("base + KEYS - 1 <= lowest", "base <= lowest", "attention"),
            ("base > highest - WINDOW", "true", "attention"),
            // The softmax.
            ("  peak[h] = fmaxf(peak[h], shuffle_xor(peak[h], 2));\n", "", "attention"),
            (
                "largest[h] = peak[h], peak[h] = level, total[h] *= keep[h];",
                "largest[h] = peak[h], peak[h] = level;",
                "attention",
            ),
            ("sum[c][i] *= keep[i / 2];", "sum[c][i] *= keep[0];", "attention"),
            ("    total[h] += shuffle_xor(total[h], 1);\n", "", "attention"),
            // The product with values.
            ("key_of(lane % 8)", "lane % 8", "attention"),
            ("lane / 8 % 2) * 8", "0) * 8", "attention"),
            ("c + lane / 16, CHUNKS - 1", "c, CHUNKS - 1", "attention"),
            ("c + lane / 16, CHUNKS - 1", "c + lane / 16, CHUNKS", "shared memory"),
            ("if (c + 1 < CHUNKS) mma", "mma", "attention"),
            ("a - bf16_low(kept[i]), b - bf16_high(kept[i]))", "0.0f, 0.0f)", "attention"),
            // What the warps made, added up.
            ("  block_barrier();\n#pragma unroll\n  for (int h", "#pragma unroll\n  for (int h", "race"),
            ("  block_barrier();\n#pragma unroll 1\n  for (int i", "#pragma unroll 1\n  for (int i", "shared memory"),
            ("from = at / 16 * PARTS", "from = at / 16", "attention"),
            ("v[j] += weight *", "v[j] +=", "attention"),
            ("float whole = power_of_two(sink - peak)", "float whole = power_of_two(-peak)", "attention"),
            ("SINKS ? sinks[head]", "SINKS ? sinks[key_head]", "attention"),
            ("HEAD_DIM + 8 * chunk, v", "HEAD_DIM + 4 * chunk, v", "written"),
            ("  wait_for_dependencies();\n", "", "before wait_for_dependencies"),
        ],
    );
}

#[test]
fn in_an_attention_of_wide_heads() {
    // Idle rows only in the first block; a value's last 16 bytes are not whole.
    let case = attention_rows::Case { idle: 16, ..attention_rows::Case::of(attention_rows::plain(1, 1, 140), 32) };
    caught(
        "in_an_attention_of_wide_heads",
        |mutation| case.check(mutation),
        &[
            ("p % PARTS == part", "p == part", "shared memory"),
            (": pieces[(row_warp * PIECES + p) * 32 + lane];", ": pieces[row_warp * PIECES * 32 + lane];", "attention"),
            ("if (last >= 0) {", "{", "without await_copies"),
            ("if (i < count) to[i]", "if (i <= count) to[i]", "buffer of"),
            ("== NEGATIVE_INFINITY ? 0.0f : peak[h];", "== 1.0f ? 0.0f : peak[h];", "attention"),
            ("whole > 0.0f ? v[j] / whole : 0.0f", "v[j] / whole", "attention"),
        ],
    );
}

#[test]
fn in_an_append() {
    // Ten heads over two blocks of eight warps.
    let [q_norm, k_norm] = append::norms(NormKind::Layer, NormKind::Rms);
    let rope = Some(rotation(12, false, 1.0));
    let case = append::Case::of(Append { rope, q_norm, k_norm, ..append::plain(6, 2, 20) });
    caught(
        "in_an_append",
        |mutation| case.check(mutation),
        &[
            ("job >= HEADS + 2 * KEY_HEADS || ", "", "buffer of"),
            ("|| (!is_query && position < 0)", "", "other places"),
            ("load_early(positions + row)", "positions[row]", "before wait_for_dependencies"),
            ("load_early(sequences + row)", "0", "other places"),
            ("  block_barrier();\n", "", "shared memory"),
            ("  warp_barrier();\n", "", "shared memory"),
            ("pair < ROPE_DIM / 2; pair", "pair < ROPE_DIM / 2 - 1; pair", "shared memory"),
            ("job - HEADS - KEY_HEADS", "job - HEADS", "buffer of"),
            ("(is_key ? k : v)", "(is_key ? v : k)", "keys"),
            ("is_query ? q_weight : k_weight", "q_weight", "keys"),
            ("is_query ? EPS_Q : EPS_K", "EPS_Q", "keys"),
            ("norm == 2 ?", "norm >= 1 ?", "keys"),
            ("if (lane + 32 * j < HEAD_DIM) square", "square", "queries"),
            ("is_query || is_key ? roped", "is_query ? roped", "keys"),
            ("is_query || is_key ? roped", "true ? roped", "values"),
            ("i < PADDED; i += 32", "i < HEAD_DIM; i += 32", "other places"),
            ("else if (i < HEAD_DIM) query", "else query", "buffer of"),
        ],
    );
}
