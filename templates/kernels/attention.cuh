// Attention of query heads that share a key head over its keys, on tensor cores: 16 keys per warp at a time. Included by the kernels that attend.
{% let splits = attention.splits %}{% include "splits.cuh" %}
{% let rope = attention.turns() %}{% include "rope.cuh" %}
constexpr int HEADS = {{ attention.heads }};  // query heads
constexpr int KEY_HEADS = {{ attention.key_heads }};
constexpr int HEAD_DIM = {{ attention.head_dim }};
constexpr int GROUP = {{ attention.group }};  // query heads that are taken together; they share a key head
constexpr int WARPS = {{ attention.warps }};
constexpr bool LATE = {{ attention.late }};             // triggers dependents after griddepcontrol.wait, not at the start
constexpr float SCALE = {{ attention.score_scale() }};  // multiplies q · k
constexpr float SOFTCAP = {{ attention.score_cap() }};  // cap · tanh(score / cap); 0: none
constexpr bool APPEND = {{ attention.append }};         // normalise, rotate and store this row's key and value first
constexpr bool NORM = {{ attention.norm.is_some() }};   // rms_norm of each head of q and k, before the rotation; under APPEND
constexpr float EPS_Q = {{ attention.eps_q() }}, EPS_K = {{ attention.eps_k() }};
constexpr bool SINKS = {{ attention.sinks }};   // a logit per head that takes part in the softmax and adds no value
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int THREADS = 32 * WARPS;
constexpr int PER_LANE = (PADDED + 31) / 32;    // values of a head per lane
constexpr int PIECES = (PADDED + 31) / 32;      // of 32 values: two steps of a product with keys
constexpr int CHUNKS = (PADDED + 63) / 64;      // of 64 values: what eight lanes hold of a row of the value cache
constexpr int QUERY_STRIDE = 32 * PIECES + 8;   // bfloat16 from the hi part of a query to its lo part, and on to the next query
constexpr int SUM_STRIDE = 64 * CHUNKS + 4;     // floats from a head's sums to the next head's
constexpr bool WIDE = PADDED > 128;             // a lane has registers for its share of keys or of values, not of both
constexpr int CHAINS = {{ attention.chains }};  // sums that a product with keys is computed in
constexpr int HELD = {{ attention.held }};      // tiles of 16 keys that a warp has in flight
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
