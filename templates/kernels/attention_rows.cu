{% include "device.cuh" %}
// {{ self.name() }}: causal attention of many rows of one sequence, on tensor cores: a tile of queries against one tile of keys after the other.
// A query is a row and one of the heads that share a key head; the queries of a key head are numbered by row, then by head.
constexpr int HEADS = {{ heads }};  // query heads
constexpr int KEY_HEADS = {{ key_heads }};
constexpr int HEAD_DIM = {{ head_dim }};
constexpr int WINDOW = {{ window }};               // keys that a row sees; 0: all
constexpr float SCALE = {{ self.score_scale() }};  // multiplies q · k
constexpr float SOFTCAP = {{ self.score_cap() }};  // cap · tanh(score / cap); 0: none
constexpr bool SINKS = {{ sinks }};                // a logit per head that takes part in the softmax and adds no value
constexpr int ROW_WARPS = {{ row_warps }};         // warps with 16 queries each
constexpr int PARTS = {{ parts }};                 // warps with the same queries: each takes a part of the keys of a tile
constexpr int KEYS = {{ keys }};                   // keys per tile
typedef {{ out }} Out;
{% if out.is_tiled() %}{% include "activations.cuh" %}
{%- endif %}
constexpr int SHARE = HEADS / KEY_HEADS;        // queries per row
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int CHUNKS = PADDED / 8;              // of 16 bytes
constexpr int STRIDE = CHUNKS | 1;              // chunks from a key to the next: odd, so that eight keys are in different banks
constexpr int PIECES = (PADDED + 31) / 32;      // of 32 values: two steps of a product with keys
constexpr int WARPS = ROW_WARPS * PARTS, THREADS = 32 * WARPS;
constexpr int QUERIES = 16 * ROW_WARPS;    // queries per block
constexpr int COLUMNS = KEYS / PARTS / 8;  // groups of eight keys per warp
constexpr int SUM_STRIDE = PADDED + 8;     // floats from a query's sums to the next one's
constexpr bool HELD = PADDED <= 128;       // a warp holds its queries in registers; else they are in shared memory
constexpr float LOG2E = 1.4426950408889634f;
constexpr float QUERY_SCALE = SOFTCAP > 0.0f ? SCALE : SCALE * LOG2E;
static_assert(PADDED <= 256, "a warp holds sums of 256 values");
static_assert(HEADS % KEY_HEADS == 0 && COLUMNS % 2 == 0, "groups are whole, and 16 keys make a step of a product with values");

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

// The key of a column of a product, of eight: an order in which 16-byte reads of neighbouring lanes fall into different banks.
DEVICE int key_of(int column) { return column / 2 + column % 2 * 4; }

// 32 values of 16 queries as a hi/lo split, each part as two fragments. Of queries lane / 4 and + 8 a
// lane has the values 8 (lane % 4) .. + 7, as it loads those of a key.
struct Piece {
  Vec4 kept[2], left[2];
};

DEVICE void split(u32 (&kept)[4], u32 (&left)[4], const float* query, int first) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    float v[4] = {};
    if (HEAD_DIM % 4 == 0) {
      if (first + i < HEAD_DIM) {
        const Vec4 four = *(const Vec4*)(query + first + i);
        v[0] = float_of(four.x), v[1] = float_of(four.y), v[2] = float_of(four.z), v[3] = float_of(four.w);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (first + i + j < HEAD_DIM) v[j] = query[first + i + j];
    }
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const float a = v[j] * QUERY_SCALE, b = v[j + 1] * QUERY_SCALE;
      const u32 both = pack_bf16(a, b);
      kept[(i + j) / 2] = both, left[(i + j) / 2] = pack_bf16(a - bf16_low(both), b - bf16_high(both));
    }
  }
}
DEVICE Piece load_piece(const float* upper, const float* lower, int piece) {
  u32 kept[2][4], left[2][4];
  const int first = 32 * piece + 8 * (threadIdx.x % 4);
  split(kept[0], left[0], upper, first), split(kept[1], left[1], lower, first);
  return { { {kept[0][0], kept[1][0], kept[0][1], kept[1][1]}, {kept[0][2], kept[1][2], kept[0][3], kept[1][3]} },
          { {left[0][0], left[1][0], left[0][1], left[1][1]}, {left[0][2], left[1][2], left[0][3], left[1][3]} } };
}

// Starts to copy the keys (or values) base .. base + KEYS - 1; one beyond the last is the last, as the memory after it may hold NaNs.
DEVICE void copy_tile(Vec4* tile, const u16* from, int base, int last) {
#pragma unroll
  for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
    const int key = i / CHUNKS, chunk = i % CHUNKS;
    copy_async(tile + key * STRIDE + chunk, (const Vec4*)(from + (u64)smaller(base + key, last) * PADDED) + chunk);
  }
}

// Eight results of a query, of 16 bits or fp32.
template <typename T>
DEVICE void store_eight(T * to, const float (&v)[8], int count) {
  if (HEAD_DIM % 8 == 0) {
    *(Vec4*)to = {pack_two(T(), v[0], v[1]), pack_two(T(), v[2], v[3]), pack_two(T(), v[4], v[5]), pack_two(T(), v[6], v[7])};
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < count) store(to + i, v[i]);
  }
}
DEVICE void store_eight(float* to, const float (&v)[8], int count) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < count) to[i] = v[i];
}

// q fp32 [rows][HEADS][HEAD_DIM]. Caches: bfloat16 [sequence][KEY_HEADS][context][PADDED], which hold the rows' own keys and values. positions,
// sequences [rows]: the rows are of one sequence and their positions rise by one, after rows at position -1, whose results are zeros.
// out [rows][HEADS][HEAD_DIM]. Grid: KEY_HEADS, rows * SHARE / QUERIES rounded up.
KERNEL void __launch_bounds__(THREADS, 2) {{ self.name() }}({{ self.signature() }}) {
  SHARED float peaks[WARPS][16], totals[WARPS][16];
  Vec4* const key_tile = (Vec4*)shared_memory();
  Vec4* const value_tile = key_tile + KEYS * STRIDE;
  Piece* const pieces = (Piece*)(value_tile + KEYS * STRIDE);  // [ROW_WARPS][PIECES][32], unless HELD
  float* const sums = (float*)key_tile;                        // [WARPS][16][SUM_STRIDE], once the tiles are no longer needed
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row_warp = warp / PARTS, part = warp % PARTS;

  // Later rows see more keys: their blocks come first.
  const int key_head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * QUERIES, count = (int)rows * SHARE;
  const auto row_of = [&](int query) { return smaller(query, count - 1) / SHARE; };
  const auto head_of = [&](int query) { return key_head * SHARE + smaller(query, count - 1) % SHARE; };
  launch_dependents();
  int position[2];
  const float* query[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int at = first + 16 * row_warp + group + 8 * i;
    position[i] = at < count ? load_early(positions + row_of(at)) : -1;
    query[i] = q + ((u64)row_of(at) * HEADS + head_of(at)) * HEAD_DIM;
  }
  const int last_row = row_of(first + QUERIES - 1), last = load_early(positions + last_row);
  const int earliest = larger(last - (last_row - row_of(first)), 0);
  const int begin = WINDOW > 0 ? larger(earliest + 1 - WINDOW, 0) : 0;
  const int lowest = warp_min(smaller(position[0], position[1])), highest = warp_max(larger(position[0], position[1]));
  const u64 cache_row = ((u64)load_early(sequences + last_row) * KEY_HEADS + key_head) * context * PADDED;
  const u16 *keys = key_cache + cache_row, *values = value_cache + cache_row;
  wait_for_dependencies();

  // 1 The first tile in flight, and the queries as a hi/lo split.
  Piece held[HELD ? PIECES : 1];
  if (last >= 0) {
    copy_tile(key_tile, keys, begin, last);
    copy_tile(value_tile, values, begin, last);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      if (HELD) held[p] = load_piece(query[0], query[1], p);
      else if (p % PARTS == part) pieces[(row_warp * PIECES + p) * 32 + lane] = load_piece(query[0], query[1], p);
    }
  }

  // Sums of values of queries group (0, 1) and group + 8 (2, 3), each of values 8 c + 2 quad and + 1.
  float sum[CHUNKS][4] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {};
#pragma unroll 1
  for (int base = begin; base <= last; base += KEYS) {
    await_copies();
    block_barrier();
    if (base > begin) copy_tile(value_tile, values, base, last);

    // 2 Scores, while the values are copied.
    float score[COLUMNS][4] = {};
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const Piece now = HELD ? held[p] : pieces[(row_warp * PIECES + p) * 32 + lane];
#pragma unroll
      for (int c = 0; c < COLUMNS; c += 2) {
        Vec4 key[2];
#pragma unroll
        for (int i = 0; i < 2; i++) key[i] = key_tile[((part * COLUMNS + c + i) * 8 + key_of(group)) * STRIDE + smaller(4 * p + quad, CHUNKS - 1)];
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(score[c + i], now.kept[0], key[i].x, key[i].y);
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(score[c + i], now.left[0], key[i].x, key[i].y);
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(score[c + i], now.kept[1], key[i].z, key[i].w);
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(score[c + i], now.left[1], key[i].z, key[i].w);
      }
    }

    // 3 Softmax, in powers of two.
    const bool all_seen = base + KEYS - 1 <= lowest && (WINDOW == 0 || base > highest - WINDOW);
    float peak[2] = {largest[0], largest[1]}, keep[2];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (SOFTCAP > 0.0f) score[c][i] = SOFTCAP * tanhf(score[c][i] / SOFTCAP) * LOG2E;
        const int key = base + (part * COLUMNS + c) * 8 + key_of(2 * quad + i % 2), at = position[i / 2];
        if (!all_seen && (key > at || (WINDOW > 0 && key <= at - WINDOW))) score[c][i] = NEGATIVE_INFINITY;
        peak[i / 2] = fmaxf(peak[i / 2], score[c][i]);
      }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      peak[h] = fmaxf(peak[h], shuffle_xor(peak[h], 1));
      peak[h] = fmaxf(peak[h], shuffle_xor(peak[h], 2));
      const float level = peak[h] == NEGATIVE_INFINITY ? 0.0f : peak[h];
      keep[h] = power_of_two(largest[h] - level);
      largest[h] = peak[h], peak[h] = level, total[h] *= keep[h];
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[c][i] = power_of_two(score[c][i] - peak[i / 2]);
        total[i / 2] += score[c][i];
      }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[c][i] *= keep[i / 2];

    // 4 Weighted sums of values, while the next keys are copied.
    await_copies();
    block_barrier();
    if (base + KEYS <= last) copy_tile(key_tile, keys, base + KEYS, last);
#pragma unroll
    for (int s = 0; s < COLUMNS; s += 2) {
      u32 kept[4], left[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float a = score[s + i / 2][i % 2 * 2], b = score[s + i / 2][i % 2 * 2 + 1];
        kept[i] = pack_bf16(a, b), left[i] = pack_bf16(a - bf16_low(kept[i]), b - bf16_high(kept[i]));
      }
      const Vec4 weights[2] = { {kept[0], kept[1], kept[2], kept[3]}, {left[0], left[1], left[2], left[3]} };
      const Vec4* const value = value_tile + ((part * COLUMNS + s + lane / 8 % 2) * 8 + key_of(lane % 8)) * STRIDE;
#pragma unroll
      for (int c = 0; c < CHUNKS; c += 2) {
        const Vec4 v = load_transposed(value + smaller(c + lane / 16, CHUNKS - 1));
#pragma unroll
        for (int w = 0; w < 2; w++) {
          mma_bf16(sum[c], weights[w], v.x, v.y);
          if (c + 1 < CHUNKS) mma_bf16(sum[c + 1 < CHUNKS ? c + 1 : c], weights[w], v.z, v.w);
        }
      }
    }
  }

  // 5 The warps with the same queries merged.
  block_barrier();
#pragma unroll
  for (int h = 0; h < 2; h++) {
    total[h] += shuffle_xor(total[h], 1);
    total[h] += shuffle_xor(total[h], 2);
    if (quad == 0) peaks[warp][group + 8 * h] = largest[h], totals[warp][group + 8 * h] = total[h];
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[(warp * 16 + group + i / 2 * 8) * SUM_STRIDE + 8 * c + 2 * quad + i % 2] = sum[c][i];
  block_barrier();
#pragma unroll 1
  for (int i = threadIdx.x; i < QUERIES * CHUNKS; i += THREADS) {
    const int at = i / CHUNKS, chunk = i % CHUNKS, from = at / 16 * PARTS;
    if (first + at >= count) break;
    const int row = row_of(first + at), head = head_of(first + at);
    const float sink = SINKS ? sinks[head] * LOG2E : NEGATIVE_INFINITY;
    float peak = sink;
#pragma unroll
    for (int p = 0; p < PARTS; p++) peak = fmaxf(peak, peaks[from + p][at % 16]);
    float whole = power_of_two(sink - peak), v[8] = {};
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      const float weight = power_of_two(peaks[from + p][at % 16] - peak);
      whole += weight * totals[from + p][at % 16];
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        const Vec4 four = *(const Vec4*)(sums + ((from + p) * 16 + at % 16) * SUM_STRIDE + 8 * chunk + j);
        v[j] += weight * float_of(four.x), v[j + 1] += weight * float_of(four.y);
        v[j + 2] += weight * float_of(four.z), v[j + 3] += weight * float_of(four.w);
      }
    }
    // Without a key the sum of weights is not positive.
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = whole > 0.0f ? v[j] / whole : 0.0f;
{%- if out.is_tiled() %}
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const int column = head * HEAD_DIM + 8 * chunk + j;
      if (8 * chunk + j < HEAD_DIM) *(u32*)(out + activation_at(row, column, rows)) = pack_two(Out(), v[j], v[j + 1]);
    }
    {%- else %}
    store_eight(out + ((u64)row * HEADS + head) * HEAD_DIM + 8 * chunk, v, HEAD_DIM - 8 * chunk);
    {%- endif %}
  }
}
