// After templates/kernels/device.cuh:
// rope_append_attention_bf16_h32_kv8_d64_s8: causal attention of a few query heads that share a key head, for one row. The keys of a row are split over blocks
// of which clusters merge what they have.
// Attention of query heads that share a key head over its keys, on tensor cores: 16 keys per warp at a time. Included by the kernels that attend.
// How many blocks share the keys of one head, from the live length. The attention kernel and the projection that combines agree on it.
constexpr int SPLITS = 8;       // blocks per key head at most
constexpr int SPLIT_KEYS = 128;  // keys per block before one more block is used
constexpr int WINDOW = 0;    // keys that a row sees; 0: all
constexpr int MERGED = 8;    // blocks of a cluster, which merge what they have
constexpr int LEFT = SPLITS / MERGED;          // results per key head that are left to be combined, at most

DEVICE int first_key(int position) { return WINDOW > 0 && position + 1 > WINDOW ? position + 1 - WINDOW : 0; }
DEVICE int active_splits(int position) {
  int splits = (position + 1 - first_key(position) + SPLIT_KEYS - 1) / SPLIT_KEYS;
  return splits < SPLITS ? splits : SPLITS;
}
DEVICE int results_left(int position) { return (active_splits(position) + MERGED - 1) / MERGED; }
// Rotary position embedding of one head. Needs ROPE_DIM, ROPE_INTERLEAVED, ROPE_MAGNITUDE, and ROPE_FREQUENCIES.
CONSTANT float ROPE_FREQUENCIES[] = { 1.0f, 0.6636012f, 0.4403666f, 0.29222783f, 0.19392274f, 0.12868737f, 0.0853971f, 0.056669623f, 0.03760603f, 0.024955409f, 0.01656044f, 0.010989528f, 0.0072926646f, 0.0048394212f, 0.003211446f, 0.0012905479f, 0.0004295568f, 9.708288e-5f, 1.9461639e-5f, 1.29147675e-5f, 8.570256e-6f, 5.6872323e-6f, 3.7740542e-6f, 2.5044671e-6f, 1.6619674e-6f, 1.1028836e-6f, 7.31875e-7f, 4.856731e-7f, 3.222933e-7f, 2.1387423e-7f, 1.419272e-7f, 9.4183065e-8f };
constexpr int ROPE_DIM = 64;                   // values of a head that rotate; 0: none
constexpr bool ROPE_INTERLEAVED = false;  // pairs (2i, 2i+1), else (i, i + ROPE_DIM/2)
constexpr float ROPE_MAGNITUDE = 1.0f;

// Cosine and sine of `position` times a frequency. The product is rounded to fp32 first, as checkpoints were trained.
DEVICE void rope_rotation(int position, int pair, float& cosine, float& sine) {
  float angle = (float)position * ROPE_FREQUENCIES[pair];
  float turns = rintf(angle * 0.15915494309f);
  float rest = fmaf(-turns, 6.2831854820251465f, angle);
  rest = fmaf(-turns, -1.7484556000744487e-7f, rest);
  cosine = ROPE_MAGNITUDE * cosine_of(rest);
  sine = ROPE_MAGNITUDE * sine_of(rest);
}

// The two elements of a pair.
DEVICE int first_of(int pair) { return ROPE_INTERLEAVED ? 2 * pair : pair; }
DEVICE int second_of(int pair) { return ROPE_INTERLEAVED ? 2 * pair + 1 : pair + ROPE_DIM / 2; }

// Element `i` of the rotated head. `at(i)` reads the head before rotation, `turn(pair, cosine, sine)` gives the rotation of a pair.
template <typename At, typename Turn>
DEVICE float roped(At at, int i, Turn turn) {
  if (i >= ROPE_DIM) return at(i);
  const int half = ROPE_DIM / 2;
  const int pair = ROPE_INTERLEAVED ? i / 2 : i % half;
  const bool second = ROPE_INTERLEAVED ? i % 2 == 1 : i >= half;
  const int partner = ROPE_INTERLEAVED ? i ^ 1 : (second ? i - half : i + half);
  float cosine, sine;
  turn(pair, cosine, sine);
  return second ? at(i) * cosine + at(partner) * sine : at(i) * cosine - at(partner) * sine;
}
constexpr int HEADS = 32;  // query heads
constexpr int KEY_HEADS = 8;
constexpr int HEAD_DIM = 64;
constexpr int GROUP = 4;  // query heads that are taken together; they share a key head
constexpr int WARPS = 8;
constexpr bool LATE = false;             // triggers dependents after griddepcontrol.wait, not at the start
constexpr float SCALE = 0.125f;  // multiplies q · k
constexpr float SOFTCAP = 0.0f;  // cap · tanh(score / cap); 0: none
constexpr bool APPEND = true;         // normalise, rotate and store this row's key and value first
constexpr bool NORM = false;   // rms_norm of each head of q and k, before the rotation; under APPEND
constexpr float EPS_Q = 0.0f, EPS_K = 0.0f;
constexpr bool SINKS = false;   // a logit per head that takes part in the softmax and adds no value
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int THREADS = 32 * WARPS;
constexpr int PER_LANE = (PADDED + 31) / 32;    // values of a head per lane
constexpr int PIECES = (PADDED + 31) / 32;      // of 32 values: two steps of a product with keys
constexpr int CHUNKS = (PADDED + 63) / 64;      // of 64 values: what eight lanes hold of a row of the value cache
constexpr int QUERY_STRIDE = 32 * PIECES + 8;   // bfloat16 from the hi part of a query to its lo part, and on to the next query
constexpr int SUM_STRIDE = 64 * CHUNKS + 4;     // floats from a head's sums to the next head's
constexpr bool WIDE = PADDED > 128;             // a lane has registers for its share of keys or of values, not of both
constexpr int CHAINS = 2;  // sums that a product with keys is computed in
constexpr int HELD = 4;      // tiles of 16 keys that a warp has in flight
constexpr bool HALVES = GROUP <= 4;             // four columns are the hi parts of weights, four the lo parts
constexpr float LOG2E = 1.4426950408889634f;
constexpr float QUERY_SCALE = SOFTCAP > 0.0f ? SCALE : SCALE * LOG2E;
static_assert(HELD == 1 || !WIDE, "a lane has registers for one tile");
static_assert(PADDED <= 256 && GROUP <= 8, "a warp holds 16 keys of 256 values, and sums of 8 heads");
static_assert(HEADS % KEY_HEADS == 0 && HEADS / KEY_HEADS % GROUP == 0, "groups are whole");

// Rotations and norm weights are the same for all heads: they are computed before the wait.
struct Prepared {
  float turns[ROPE_DIM / 2 + 1][2];  // cosine and sine of a pair
  float weights[2][HEAD_DIM];        // of the norms of q and k
};

DEVICE void prepare_turns(Prepared& prepared, int position) {
  for (int pair = threadIdx.x; pair < ROPE_DIM / 2; pair += THREADS) rope_rotation(position, pair, prepared.turns[pair][0], prepared.turns[pair][1]);
}
DEVICE void prepare_weights(Prepared& prepared, const float* q_weight, const float* k_weight) {
  for (int i = threadIdx.x; i < HEAD_DIM && NORM; i += THREADS) {
    prepared.weights[0][i] = q_weight ? float_of(load_early((const int*)q_weight + i)) : 1.0f;
    prepared.weights[1][i] = k_weight ? float_of(load_early((const int*)k_weight + i)) : 1.0f;
  }
}

// One head, normalised and rotated, by one warp. `take(i, value)` is given each element up to PADDED; `raw` is scratch of the warp, for pairs
// whose values do not lie in one lane.
constexpr bool IN_LANE = !ROPE_INTERLEAVED && ROPE_DIM % 64 == 0;
template <typename Take>
DEVICE void load_head(Take take, float* raw, const float* from, const float* weights, float eps, const Prepared& prepared, bool transform) {
  const int lane = threadIdx.x % 32;
  float value[PER_LANE], square = 0.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++) {
    const int i = lane + 32 * j;
    value[j] = i < HEAD_DIM ? from[i] : 0.0f;
    square += value[j] * value[j];
  }
  if (transform && NORM) {
    const float scale = rsqrtf(warp_sum(square) / HEAD_DIM + eps);
#pragma unroll
    for (int j = 0; j < PER_LANE; j++)
      if (lane + 32 * j < HEAD_DIM) value[j] = value[j] * scale * weights[lane + 32 * j];
  }
  if (!IN_LANE) {
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) raw[lane + 32 * j] = value[j];
    warp_barrier();
  }
#pragma unroll
  for (int j = 0; j < (ROPE_DIM / 2 + 31) / 32; j++) {
    const int pair = lane + 32 * j, one = first_of(pair), other = second_of(pair);
    if (pair >= ROPE_DIM / 2) break;
    const float a = IN_LANE ? value[j] : raw[one], b = IN_LANE ? value[j + ROPE_DIM / 64] : raw[other];
    const float cosine = prepared.turns[pair][0], sine = prepared.turns[pair][1];
    take(one, transform ? a * cosine - b * sine : a);
    take(other, transform ? b * cosine + a * sine : b);
  }
#pragma unroll
  for (int j = ROPE_DIM / 32; j < PER_LANE; j++) {
    const int i = lane + 32 * j;
    if (i >= ROPE_DIM && i < PADDED) take(i, value[j]);
  }
  if (!IN_LANE) warp_barrier();
}

// A query as a hi/lo split. Values beyond PADDED are zeros.
DEVICE void store_query(u16* to, int i, float value) {
  const u32 kept = pack_bf16(value * QUERY_SCALE, 0.0f);
  to[i] = (u16)kept;
  store(to + QUERY_STRIDE + i, value * QUERY_SCALE - bf16_low(kept));
}
DEVICE void pad_query(u16* to) {
  const int i = PADDED + threadIdx.x % 32;
  if (i < 32 * PIECES) to[i] = to[QUERY_STRIDE + i] = 0;
}

// The keys first .. end - 1 of one key head of one sequence. Under APPEND the one at `position` is not in the cache but in `fresh`.
struct Span {
  const u16 *keys, *values;
  int first, end, position;
  const Vec4 (*fresh)[PADDED / 8];
};
DEVICE int last_cached(const Span& span) { return (APPEND && span.end > span.position ? span.position : span.end) - 1; }

// A lane's share of 16 keys from `base` on: of keys base + lane / 4 and + 8 the values 8 (lane % 4) .. + 7 of each piece, as the product
// with queries wants them; of the values of keys base + 2 (lane % 4), + 1, + 8, + 9 the 8 (lane / 4) .. + 7 of each chunk. A key beyond the last is the last.
struct Tile {
  Vec4 key[2][PIECES], value[4][CHUNKS];
};

DEVICE Vec4 load_cached(const u16* p) { return APPEND ? load_stream((const Vec4*)p) : load_here((const Vec4*)p); }
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int value_of(int base, int r) { return base + 2 * (int)(threadIdx.x % 4) + r % 2 + r / 2 * 8; }

DEVICE void load_keys(Tile& tile, const Span& span, int base) {
  const int last = last_cached(span);
  if (base >= span.end || last < span.first) return;
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int p = 0; p < PIECES; p++)
      tile.key[t][p] =
          load_cached(span.keys + (u64)smaller(base + 8 * t + threadIdx.x % 32 / 4, last) * PADDED + smaller(32 * p + 8 * (threadIdx.x % 4), PADDED - 8));
}
DEVICE void load_values(Tile& tile, const Span& span, int base) {
  const int last = last_cached(span);
  if (base >= span.end || last < span.first) return;
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      tile.value[r][c] = load_cached(span.values + (u64)smaller(value_of(base, r), last) * PADDED + smaller(64 * c + threadIdx.x % 32 / 4 * 8, PADDED - 8));
}

// What a warp has in flight before it attends to the keys base, + stride, ...
DEVICE void load_first(Tile (&tiles)[HELD], const Span& span, int base, int stride) {
#pragma unroll
  for (int i = 0; i < HELD; i++) {
    load_keys(tiles[i], span, base + i * stride);
    if (!WIDE) load_values(tiles[i], span, base + i * stride);
  }
}

// The partial result of one warp over its keys: softmax-weighted sums of values relative to the maximum `peak`.
struct alignas(16) Part {
  float sums[GROUP][SUM_STRIDE];
  float peaks[GROUP], totals[GROUP];
};

// The head of a column of a product, of which there are eight.
DEVICE int head_of(int column) { return (HALVES ? column % 4 : column) % GROUP; }

// Runs over the keys first + begin, + stride, ... 16 at a time; `tiles` hold the first of them.
DEVICE void attend(Part& part, Tile (&tiles)[HELD], const Span& span, const u16* queries, int begin, int stride) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const u16* query = queries + head_of(group) * 2 * QUERY_STRIDE + 8 * quad;
  float sum[CHUNKS][4][4] = {}, largest = NEGATIVE_INFINITY, total = 0.0f;
  const auto attend_to = [&](Tile& tile, int base) {
    const bool newest = APPEND && span.position < span.end && span.position < base + 16;
    const auto take_value = [&]() {
#pragma unroll
      for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
          if (value_of(base, r) == span.position) tile.value[r][c] = span.fresh[1][smaller(8 * c + group, PADDED / 8 - 1)];
    };
    if (newest) {
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int p = 0; p < PIECES; p++)
          if (base + 8 * t + group == span.position) tile.key[t][p] = span.fresh[0][smaller(4 * p + quad, PADDED / 8 - 1)];
      if (!WIDE) take_value();
    }

    // 1 Scores. Rows 0 to 7 of the product are of the hi part of a query, rows 8 to 15 of its lo part.
    float product[CHAINS][2][4] = {};
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const Vec4 kept = *(const Vec4*)(query + 32 * p), left = *(const Vec4*)(query + QUERY_STRIDE + 32 * p);
#pragma unroll
      for (int t = 0; t < 2; t++) {
        mma_bf16(product[0][t], {kept.x, left.x, kept.y, left.y}, tile.key[t][p].x, tile.key[t][p].y);
        mma_bf16(product[CHAINS - 1][t], {kept.z, left.z, kept.w, left.w}, tile.key[t][p].z, tile.key[t][p].w);
      }
    }
    if (!WIDE) load_keys(tile, span, base + HELD * stride);
    else load_values(tile, span, base);
    if (WIDE && newest) take_value();

    // 2 Softmax, in powers of two. A lane has four keys of head group: base + 2 quad, + 1, + 8, + 9.
    float score[4], peak = largest;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      score[i] = product[0][i / 2][i % 2] + product[0][i / 2][i % 2 + 2];
      if (CHAINS == 2) score[i] += product[1][i / 2][i % 2] + product[1][i / 2][i % 2 + 2];
      if (SOFTCAP > 0.0f) score[i] = SOFTCAP * tanhf(score[i] / SOFTCAP) * LOG2E;
      if (value_of(base, i) >= span.end) score[i] = NEGATIVE_INFINITY;
      peak = fmaxf(peak, score[i]);
    }
    peak = fmaxf(peak, shuffle_xor(peak, 1));
    peak = fmaxf(peak, shuffle_xor(peak, 2));
    const float keep = power_of_two(largest - peak);
    largest = peak, total *= keep;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      score[i] = power_of_two(score[i] - peak);
      total += score[i];
    }
    u32 kept[2], left[2];
#pragma unroll
    for (int t = 0; t < 2; t++) {
      kept[t] = pack_bf16(score[2 * t], score[2 * t + 1]);
      left[t] = pack_bf16(score[2 * t] - bf16_low(kept[t]), score[2 * t + 1] - bf16_high(kept[t]));
      if (HALVES && group >= 4) kept[t] = left[t];
    }
    // 3 Weighted sums of values. Rows are values of a head, columns are heads: row i of the product is value 8 i + 2 j, row i + 8 is value 8 i + 2 j + 1.
    const float keeps[2] = {shuffle_from(keep, 8 * quad), shuffle_from(keep, 8 * quad + 4)};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const u32 v[4] = {word(tile.value[0][c], j), word(tile.value[1][c], j), word(tile.value[2][c], j), word(tile.value[3][c], j)};
        const Vec4 a = {low_halves(v[0], v[1]), high_halves(v[0], v[1]), low_halves(v[2], v[3]), high_halves(v[2], v[3])};
#pragma unroll
        for (int i = 0; i < 4; i++) sum[c][j][i] *= keeps[i % 2];
        mma_bf16(sum[c][j], a, kept[0], kept[1]);
        if (!HALVES) mma_bf16(sum[c][j], a, left[0], left[1]);
      }
    if (WIDE) load_keys(tile, span, base + HELD * stride);
    else load_values(tile, span, base + HELD * stride);
  };
#pragma unroll 1
  for (int base = span.first + begin; base < span.end; base += HELD * stride) {
#pragma unroll
    for (int i = 0; i < HELD; i++)
      if (i == 0 || base + i * stride < span.end) attend_to(tiles[i], base + i * stride);
  }

  total += shuffle_xor(total, 1);
  total += shuffle_xor(total, 2);
  if (quad == 0 && group < GROUP) part.peaks[group] = largest, part.totals[group] = total;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float eight[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        eight[j] = sum[c][j / 2][i + j % 2 * 2];
        if (HALVES) eight[j] += shuffle_xor(eight[j], 2);
      }
      const int column = 2 * quad + i;
      if (column < GROUP) {
#pragma unroll
        for (int j = 0; j < 8; j += 4)
          *(Vec4*)&part.sums[column][64 * c + 8 * group + j] = {bits_of(eight[j]), bits_of(eight[j + 1]), bits_of(eight[j + 2]), bits_of(eight[j + 3])};
      }
    }
}

// Element d of a head over `count` parts in their order, to be divided by `total`. sink: a further logit, or none.
DEVICE float merge(const Part* parts, int count, int head, int d, const float* sink, float& peak, float& total) {
  float value = 0.0f;
  peak = sink ? *sink * LOG2E : NEGATIVE_INFINITY;
  for (int i = 0; i < count; i++) peak = fmaxf(peak, parts[i].peaks[head]);
  total = sink ? power_of_two(*sink * LOG2E - peak) : 0.0f;
  for (int i = 0; i < count; i++) {
    const float weight = parts[i].peaks[head] == NEGATIVE_INFINITY ? 0.0f : power_of_two(parts[i].peaks[head] - peak);
    total += weight * parts[i].totals[head];
    value += weight * parts[i].sums[head][d];
  }
  return value;
}
typedef f16 Out;                                                                        // LEFT > 1: in half precision, to be combined
constexpr int GROUPS = HEADS / KEY_HEADS / GROUP;                                             // blocks that share a key head
constexpr int REGISTERS = 42 + 24 * CHUNKS + 32 * CHUNKS * HELD;                              // per thread, nearly
constexpr int BLOCKS = 2 * THREADS * REGISTERS <= 67000 && !(APPEND && SPLITS == 1) ? 2 : 1;  // per multiprocessor
constexpr int SHARE = (GROUP * HEAD_DIM + MERGED - 1) / MERGED;                               // of the results that a block of a cluster finishes

// q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM] (null unless APPEND), fp32. Caches: bfloat16
// [sequence][KEY_HEADS][context][PADDED]. positions, sequences [rows]; a row at position -1 is skipped.
// out: [LEFT][rows][HEADS][HEAD_DIM] and, where more than one is left, statistics [LEFT][rows][HEADS][2], the largest score (in powers of two) and the sum
// of the weights. zeros: `zero_count` floats that are set to zero.
// Grid: SPLITS, KEY_HEADS * GROUPS, rows.
KERNEL void CLUSTER_OF(MERGED) __launch_bounds__(THREADS, BLOCKS) rope_append_attention_bf16_h32_kv8_d64_s8(const float* q, const float* k, const float* v, u16* key_cache, u16* value_cache, const int* positions, const int* sequences, const float* q_weight, const float* k_weight, const float* sinks, Out* out, float* statistics, u64 context, float* zeros, u64 zero_count) {
  SHARED Vec4 queries[GROUP][2 * QUERY_STRIDE / 8];
  SHARED Vec4 fresh[2][PADDED / 8];  // this step's key and value, as the cache has them
  SHARED Part parts[WARPS];          // before that, scratch of the warps that prepare heads
  SHARED Prepared prepared;
  const int warp = threadIdx.x / 32;
  const int split = blockIdx.x, result = split / MERGED, rank = split % MERGED;
  const int key_head = blockIdx.y / GROUPS, first_head = blockIdx.y * GROUP, row = blockIdx.z, rows = gridDim.z;

  // 1 Keys and values in flight. Positions and, under APPEND, all keys but the newest are from earlier steps: they are loaded before the wait.
  if (!LATE) launch_dependents();
  const int position = load_early(positions + row);
  const int splits = active_splits(position);
  // Clusters that are not needed end at once. The first always waits, so that this kernel ends after all before it.
  if (result > 0 && result * MERGED >= splits) {
    if (LATE) launch_dependents();
    return;
  }
  const int first = first_key(position), keys = position + 1 - first;
  const int share = splits > 0 ? (keys + splits - 1) / splits : 0;
  const int begin = first + split * share;
  const int end = split >= splits ? begin : smaller(begin + share, position + 1);
  const u64 cache_row = ((u64)load_early(sequences + row) * KEY_HEADS + key_head) * context * PADDED;
  u16* keys_at = key_cache + cache_row;
  u16* values_at = value_cache + cache_row;
  const Span span = {keys_at, values_at, begin, end, position, fresh};
  Tile in_flight[HELD] = {};
  if (APPEND) {
    load_first(in_flight, span, begin + 16 * warp, 16 * WARPS);
    prepare_turns(prepared, position);
    prepare_weights(prepared, q_weight, k_weight);
    block_barrier();
  }
  wait_for_dependencies();
  if (LATE) launch_dependents();
  if (split == 0)
    for (u64 i = (u64)(blockIdx.y + gridDim.y * row) * THREADS + threadIdx.x; i < zero_count; i += (u64)gridDim.y * rows * THREADS) zeros[i] = 0.0f;
  if (splits == 0) return;
  cluster_begin();
  if (!APPEND) load_first(in_flight, span, begin + 16 * warp, 16 * WARPS);

  // 2 Queries, and the newest key and value. The split that holds the newest key stores it. Blocks of one key head store the same bytes. A split may be left
  // without keys: it still has to write that, as it will be combined.
  const bool newest = APPEND && begin < end && end == position + 1;
  for (int job = warp; job < GROUP + 2 * newest; job += WARPS) {
    const bool is_query = job < GROUP, is_key = job == GROUP;
    const float* from = is_query ? q + ((u64)row * HEADS + first_head + job) * HEAD_DIM : (is_key ? k : v) + ((u64)row * KEY_HEADS + key_head) * HEAD_DIM;
    u16* to = is_query ? (u16*)queries[job] : (u16*)fresh[is_key ? 0 : 1];
    u16* cached = (is_key ? keys_at : values_at) + (u64)position * PADDED;
    const auto take = [&](int i, float value) {
      if (is_query) store_query(to, i, value);
      else store(to + i, value), store(cached + i, value);
    };
    load_head(take, parts[warp].sums[0], from, prepared.weights[is_query ? 0 : 1], is_query ? EPS_Q : EPS_K, prepared, APPEND && (is_query || is_key));
    if (is_query) pad_query(to);
  }
  // 3 Scores and weighted sums, per warp.
  block_barrier();
  attend(parts[warp], in_flight, span, (const u16*)queries, 16 * warp, 16 * WARPS);
  block_barrier();

  // 4 The warps merged, each element's weight beside it, then the blocks: each finishes a share of the elements.
  const auto leave = [&](int i, float value, float peak, float total) {
    const u64 at = ((u64)result * rows + row) * HEADS + first_head + i / HEAD_DIM;
    store(out + at * HEAD_DIM + i % HEAD_DIM, total == 0.0f ? 0.0f : value / total);
    if (LEFT > 1 && i % HEAD_DIM == 0) statistics[at * 2] = peak, statistics[at * 2 + 1] = total;
  };
  SHARED float values[MERGED][SHARE], peaks[MERGED][SHARE], totals[MERGED][SHARE];
  cluster_join();
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM;
    float peak, total;
    const float value = merge(parts, WARPS, h, i % HEAD_DIM, SINKS && split == 0 ? sinks + first_head + h : nullptr, peak, total);
    store_peer(&values[rank][i % SHARE], value, i / SHARE);
    store_peer(&peaks[rank][i % SHARE], peak, i / SHARE);
    store_peer(&totals[rank][i % SHARE], total, i / SHARE);
  }
  cluster_arrive();
  cluster_wait();
  for (int i = threadIdx.x; i < SHARE && rank * SHARE + i < GROUP * HEAD_DIM; i += THREADS) {
    float value = 0.0f, peak = NEGATIVE_INFINITY, total = 0.0f;
#pragma unroll
    for (int r = 0; r < MERGED; r++) peak = fmaxf(peak, peaks[r][i]);
#pragma unroll
    for (int r = 0; r < MERGED; r++) {
      const float weight = peaks[r][i] == NEGATIVE_INFINITY ? 0.0f : power_of_two(peaks[r][i] - peak);
      value += weight * values[r][i], total += weight * totals[r][i];
    }
    leave(rank * SHARE + i, value, peak, total);
  }
}