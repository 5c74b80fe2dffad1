{% include "device.cuh" %}
// {{ name }}: causal attention of a few query heads that share a key head, for one row. The keys of a row are split over blocks.
{% include "splits.cuh" %}
{% include "rope.cuh" %}
constexpr int HEADS = {{ heads }};              // query heads
constexpr int KEY_HEADS = {{ key_heads }};
constexpr int HEAD_DIM = {{ head_dim }};
constexpr int GROUP = {{ group }};              // query heads a block takes; they share a key head
constexpr int WARPS = {{ warps }};
constexpr float SCALE = {{ scale }};            // multiplies q · k
constexpr float SOFTCAP = {{ softcap }};        // cap · tanh(score / cap); 0: none
constexpr bool APPEND = {{ append }};           // normalise, rotate and store this row's key and value first
constexpr bool NORM = {{ norm }};               // rms_norm of each head of q and k, before the rotation; under APPEND
constexpr float EPS_Q = {{ eps_q }}, EPS_K = {{ eps_k }};
constexpr bool SINKS = {{ sinks }};             // a logit a head that takes part in the softmax and adds no value
typedef {{ out_type }} Out;                     // SPLITS > 1: fp32 sums to be combined; else the result
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int LANES = PADDED <= 8 ? 1 : PADDED <= 16 ? 2 : PADDED <= 32 ? 4 : PADDED <= 64 ? 8 : PADDED <= 128 ? 16 : 32;   // lanes a key
constexpr int STREAMS = WARPS * 32 / LANES;     // keys the block looks at in one go
constexpr int THREADS = 32 * WARPS;
constexpr int PER_LANE = (PADDED + 31) / 32;    // values of a head a lane loads
constexpr int GROUPS = HEADS / KEY_HEADS / GROUP;   // blocks that share a key head
constexpr float LOG2E = 1.4426950408889634f;
static_assert(PADDED <= 256, "a lane holds 8 values of a head");
static_assert(HEADS % KEY_HEADS == 0 && HEADS / KEY_HEADS % GROUP == 0, "groups are whole");

DEVICE void unpack(float (&f)[8], const Vec4& v) {
  f[0] = bf16_low(v.x), f[1] = bf16_high(v.x), f[2] = bf16_low(v.y), f[3] = bf16_high(v.y);
  f[4] = bf16_low(v.z), f[5] = bf16_high(v.z), f[6] = bf16_low(v.w), f[7] = bf16_high(v.w);
}

// What turns a head and weighs it, the same for all heads: made before the wait.
struct Prepared {
  float turns[ROPE_DIM / 2 + 1][2];   // cosine and sine of a pair
  float weights[2][HEAD_DIM];         // of the norms of q and k
};

// One head, normalised and rotated, one warp a head. `take(i, value)` is given each element up to PADDED; `raw` is scratch of the warp.
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
  const float scale = transform && NORM ? rsqrtf(warp_sum(square) / HEAD_DIM + eps) : 1.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++) {
    const int i = lane + 32 * j;
    if (i < HEAD_DIM) raw[i] = transform && NORM ? value[j] * scale * weights[i] : value[j];
  }
  warp_barrier();
  const auto turn = [&](int pair, float& cosine, float& sine) { cosine = prepared.turns[pair][0], sine = prepared.turns[pair][1]; };
#pragma unroll 1
  for (int i = lane; i < PADDED; i += 32)
    take(i, i >= HEAD_DIM ? 0.0f : transform ? roped([&](int j) { return raw[j]; }, i, turn) : raw[i]);
  warp_barrier();
}

// What a lane holds of a stream's key and value, of the STREAMS from `base` on. A key this step makes is in shared memory only.
DEVICE void load_key(Vec4& key, Vec4& value, const u16* keys_at, const u16* values_at, int base, int end, int position) {
  const int part = threadIdx.x % 32 % LANES, at = base + (int)threadIdx.x / LANES;
  key = value = {0, 0, 0, 0};
  if (at < end && 8 * part < PADDED && !(APPEND && at == position)) {
    const u64 offset = (u64)at * PADDED + 8 * part;
    key = APPEND ? load_stream((const Vec4*)(keys_at + offset)) : *(const Vec4*)(keys_at + offset);
    value = APPEND ? load_stream((const Vec4*)(values_at + offset)) : *(const Vec4*)(values_at + offset);
  }
}

// q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM] (null unless APPEND), fp32. Caches: bfloat16
// [sequence][KEY_HEADS][context][PADDED]. positions, sequences [rows]; a row at position -1 is skipped.
// out: [SPLITS][rows][HEADS][HEAD_DIM] and statistics [SPLITS][rows][HEADS][2], the largest score (in powers of two) and the sum
// of the weights; or, with one split, the result [rows][HEADS][HEAD_DIM]. zeros: `zero_count` floats that are set to zero. Grid: KEY_HEADS * GROUPS, SPLITS, rows.
KERNEL void __launch_bounds__(THREADS) {{ name }}(const float* q, const float* k, const float* v, u16* key_cache, u16* value_cache,
    const int* positions, const int* sequences, const float* q_weight, const float* k_weight, const float* sinks, Out* out,
    float* statistics, u64 context, float* zeros, u64 zero_count) {
  SHARED float queries[GROUP][PADDED];
  SHARED Vec4 fresh[2][PADDED / 8];             // this step's key and value, as the cache has them
  SHARED float merged[STREAMS][GROUP][PADDED];   // before that, scratch of the warps that prepare heads
  SHARED float peaks[GROUP][STREAMS], totals[GROUP][STREAMS], group_statistics[GROUP][2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key_head = blockIdx.x / GROUPS, first_head = blockIdx.x * GROUP;
  const int split = blockIdx.y, row = blockIdx.z, rows = gridDim.z;

  // Positions and, under APPEND, all keys but the newest are from steps before: they are on their way before q is.
  launch_dependents();
  const int position = load_early(positions + row);
  const int splits = active_splits(position);
  const int first = first_key(position), keys = position + 1 - first;
  const int share = splits > 0 ? (keys + splits - 1) / splits : 0;
  const int begin = first + split * share;
  const int end = split >= splits ? begin : begin + share < position + 1 ? begin + share : position + 1;
  const u64 cache_row = ((u64)load_early(sequences + row) * KEY_HEADS + key_head) * context * PADDED;
  u16* keys_at = key_cache + cache_row;
  u16* values_at = value_cache + cache_row;
  Vec4 key[2], value[2];
  const auto load_first = [&]() {
#pragma unroll
    for (int i = 0; i < 2; i++) load_key(key[i], value[i], keys_at, values_at, begin + i * STREAMS, end, position);
  };
  SHARED Prepared prepared;
  if (APPEND) {
    load_first();
    for (int pair = threadIdx.x; pair < ROPE_DIM / 2; pair += THREADS)
      rope_rotation(position, pair, prepared.turns[pair][0], prepared.turns[pair][1]);
    for (int i = threadIdx.x; i < HEAD_DIM && NORM; i += THREADS) {
      prepared.weights[0][i] = q_weight ? float_of(load_early((const int*)q_weight + i)) : 1.0f;
      prepared.weights[1][i] = k_weight ? float_of(load_early((const int*)k_weight + i)) : 1.0f;
    }
    block_barrier();
  }
  wait_for_dependencies();
  const u64 block = blockIdx.x + gridDim.x * (split + gridDim.y * row);
  for (u64 i = block * THREADS + threadIdx.x; i < zero_count; i += (u64)gridDim.x * gridDim.y * rows * THREADS) zeros[i] = 0.0f;
  if (split >= splits) return;
  if (!APPEND) load_first();

  // The split that holds the newest key stores it. Blocks of one key head store the same bytes. A split may be left without keys: it has to
  // say so, as it will be combined.
  const bool newest = APPEND && begin < end && end == position + 1;
  for (int job = warp; job < GROUP + 2 * newest; job += WARPS) {
    const bool is_query = job < GROUP, is_key = job == GROUP;
    const float* from = is_query ? q + ((u64)row * HEADS + first_head + job) * HEAD_DIM : (is_key ? k : v) + ((u64)row * KEY_HEADS + key_head) * HEAD_DIM;
    u16* to = (u16*)fresh[is_key ? 0 : 1];
    u16* cached = (is_key ? keys_at : values_at) + (u64)position * PADDED;
    const auto take = [&](int i, float value) {
      if (is_query) queries[job][i] = value;
      else store(to + i, value), store(cached + i, value);
    };
    load_head(take, merged[warp][0], from, prepared.weights[is_query ? 0 : 1], is_query ? EPS_Q : EPS_K, prepared, APPEND && (is_query || is_key));
  }
  block_barrier();

  // Each stream of LANES lanes takes every STREAMS-th key; a lane holds 8 values of q, k, v and of the sum for each head.
  const int part = lane % LANES, stream = threadIdx.x / LANES;
  const bool holds = 8 * part < PADDED;
  float query[GROUP][8], sum[GROUP][8] = {}, largest[GROUP], total[GROUP];
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    largest[h] = NEGATIVE_INFINITY, total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) query[h][i] = holds ? queries[h][8 * part + i] * (SOFTCAP > 0.0f ? SCALE : SCALE * LOG2E) : 0.0f;
  }
#pragma unroll 1
  for (int base = begin; base < end; base += STREAMS) {
    const int at = base + stream;
    const bool live = at < end;
    if (newest && at == position && holds) key[0] = fresh[0][part], value[0] = fresh[1][part];
    float k8[8], v8[8];
    unpack(k8, key[0]);
    unpack(v8, value[0]);
    key[0] = key[1], value[0] = value[1];
    load_key(key[1], value[1], keys_at, values_at, base + 2 * STREAMS, end, position);
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; i++) score += query[h][i] * k8[i];
#pragma unroll
      for (int mask = LANES / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
      if (SOFTCAP > 0.0f) score = SOFTCAP * tanhf(score / SOFTCAP) * LOG2E;
      if (live) {
        const float peak = fmaxf(largest[h], score);
        const float keep = power_of_two(largest[h] - peak), weight = power_of_two(score - peak);
        largest[h] = peak;
        total[h] = total[h] * keep + weight;
#pragma unroll
        for (int i = 0; i < 8; i++) sum[h][i] = sum[h][i] * keep + weight * v8[i];
      }
    }
  }

  // Streams merge through shared memory in their order: a warp a head weighs them, then a thread a value adds them up.
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    if (holds) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const Vec4 four = {bits_of(sum[h][i]), bits_of(sum[h][i + 1]), bits_of(sum[h][i + 2]), bits_of(sum[h][i + 3])};
        *(Vec4*)&merged[stream][h][8 * part + i] = four;
      }
    }
    if (part == 0) peaks[h][stream] = largest[h], totals[h][stream] = total[h];
  }
  block_barrier();
  for (int h = warp; h < GROUP; h += WARPS) {
    float peak = NEGATIVE_INFINITY, weights = 0.0f;
    for (int s = lane; s < STREAMS; s += 32) peak = fmaxf(peak, peaks[h][s]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) peak = fmaxf(peak, shuffle_xor(peak, mask));
    const bool sink = SINKS && split == 0;
    if (sink) peak = fmaxf(peak, sinks[first_head + h] * LOG2E);
    for (int s = lane; s < STREAMS; s += 32) {
      const float weight = peaks[h][s] == NEGATIVE_INFINITY ? 0.0f : power_of_two(peaks[h][s] - peak);
      weights += weight * totals[h][s];
      peaks[h][s] = weight;
    }
    weights = warp_sum(weights);
    if (sink) weights += power_of_two(sinks[first_head + h] * LOG2E - peak);
    if (lane == 0) group_statistics[h][0] = peak, group_statistics[h][1] = weights;
  }
  block_barrier();
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM, d = i % HEAD_DIM;
    const u64 at = ((u64)split * rows + row) * HEADS + first_head + h;
    float value = 0.0f;
#pragma unroll 8
    for (int s = 0; s < STREAMS; s++) value += peaks[h][s] * merged[s][h][d];
    if (SPLITS > 1) {
      store(out + at * HEAD_DIM + d, value);
      if (d == 0) statistics[at * 2] = group_statistics[h][0], statistics[at * 2 + 1] = group_statistics[h][1];
    } else {
      store(out + at * HEAD_DIM + d, value / group_statistics[h][1]);
    }
  }
}
