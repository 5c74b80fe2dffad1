{% include "device.cuh" %}
// {{ self.name() }}: causal attention of a few query heads that share a key head, for one row, with heads of any size: the lanes of a warp share the values of a key.
// The keys of a row are split over blocks.
{% include "splits.cuh" %}
constexpr int HEADS = {{ heads }};  // query heads
constexpr int KEY_HEADS = {{ key_heads }};
constexpr int HEAD_DIM = {{ head_dim }};
constexpr int VALUE_DIM = {{ value_dim }};         // values per head of the result
constexpr bool LATENT = {{ latent }};              // values are the first VALUE_DIM of their keys
constexpr int GROUP = {{ group }};                 // query heads that are taken together; they share a key head
constexpr int WARPS = {{ self.warps() }};          // they take keys in turn
constexpr float SCALE = {{ self.score_scale() }};  // multiplies q · k
constexpr float SOFTCAP = {{ self.score_cap() }};  // cap · tanh(score / cap); 0: none
constexpr bool SINKS = {{ sinks }};                // a logit per head that takes part in the softmax and adds no value
typedef {{ out }} Out;                             // SPLITS > 1: in half precision, to be combined
{% if out.is_tiled() %}{% include "activations.cuh" %}
{%- endif %}
constexpr int THREADS = 32 * WARPS;
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;              // a row of the key cache: HEAD_DIM values, zeros up to 16 bytes
constexpr int VALUE_PADDED = (VALUE_DIM + 7) / 8 * 8;       // and of the value cache
constexpr int CHUNKS = (PADDED / 8 + 31) / 32;              // of 16 bytes of a key per lane
constexpr int VALUE_CHUNKS = (VALUE_PADDED / 8 + 31) / 32;  // and of a value
constexpr int AT_ONCE = 2;                                  // keys that a warp has in flight
constexpr float LOG2E = 1.4426950408889634f;
constexpr float QUERY_SCALE = SOFTCAP > 0.0f ? SCALE : SCALE * LOG2E;
static_assert(HEADS % KEY_HEADS == 0 && HEADS / KEY_HEADS % GROUP == 0, "groups are whole");
static_assert(!LATENT || VALUE_DIM <= HEAD_DIM, "values are a part of their keys");

DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// The 16 bytes of a cache row at a chunk; zeros beyond it.
DEVICE Vec4 load_chunk(const u16* row, int chunk, int chunks) {
  const Vec4 none = {0, 0, 0, 0};
  return chunk < chunks ? *((const Vec4*)row + chunk) : none;
}
DEVICE float value_at(const Vec4& v, int i) {
  const u32 both = i < 2 ? v.x : i < 4 ? v.y : i < 6 ? v.z : v.w;
  return i % 2 == 0 ? bf16_low(both) : bf16_high(both);
}

// q fp32 [rows][HEADS][HEAD_DIM]. Caches: bfloat16 [sequence][KEY_HEADS][context][PADDED or VALUE_PADDED], which hold the rows' own keys and values. positions,
// sequences [rows]; what a row at position -1 attends to is zeros. out: [SPLITS][rows][HEADS][VALUE_DIM] and, with more than one split, statistics
// [SPLITS][rows][HEADS][2], the largest score (in powers of two) and the sum of the weights. Grid: HEADS / GROUP, SPLITS, rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  SHARED Vec4 sums[WARPS][GROUP][VALUE_PADDED / 4];
  SHARED float peaks[WARPS][GROUP], totals[WARPS][GROUP];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_head = blockIdx.x * GROUP, key_head = first_head / (HEADS / KEY_HEADS);
  const int split = blockIdx.y, row = blockIdx.z;
  launch_dependents();
  const int position = load_early(positions + row), splits = active_splits(position);
  const u64 cache_row = ((u64)load_early(sequences + row) * KEY_HEADS + key_head) * context;
  wait_for_dependencies();
  if (SPLITS > 1 && split >= splits) return;

  // 1 Queries.
  float query[GROUP][CHUNKS][8];
#pragma unroll
  for (int h = 0; h < GROUP; h++)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int at = 8 * (lane + 32 * c) + i;
        query[h][c][i] = at < HEAD_DIM ? q[((u64)row * HEADS + first_head + h) * HEAD_DIM + at] * QUERY_SCALE : 0.0f;
      }

  // 2 Scores and weighted sums: a warp takes AT_ONCE keys of each WARPS AT_ONCE.
  const u16* const keys = key_cache + cache_row * PADDED;
  {%- if !latent %}
  const u16* const values = value_cache + cache_row * VALUE_PADDED;
  {%- endif %}
  const int first = first_key(position), count = position + 1 - first;
  const int share = splits > 0 ? (count + splits - 1) / splits : 0;
  const int begin = first + split * share, end = smaller(begin + share, position + 1);
  float sum[GROUP][VALUE_CHUNKS][8] = {}, largest[GROUP], total[GROUP] = {};
#pragma unroll
  for (int h = 0; h < GROUP; h++) largest[h] = NEGATIVE_INFINITY;
#pragma unroll 1
  for (int base = begin + AT_ONCE * warp; base < end; base += AT_ONCE * WARPS) {
    Vec4 key[AT_ONCE][CHUNKS], value[AT_ONCE][VALUE_CHUNKS];
#pragma unroll
    for (int t = 0; t < AT_ONCE; t++) {
      const int at = smaller(base + t, end - 1);
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) key[t][c] = load_chunk(keys + (u64)at * PADDED, lane + 32 * c, PADDED / 8);
#pragma unroll
      for (int c = 0; c < VALUE_CHUNKS; c++) {
        {%- if latent %}
        value[t][c] = key[t][c];
        {%- else %}
        value[t][c] = load_chunk(values + (u64)at * VALUE_PADDED, lane + 32 * c, VALUE_PADDED / 8);
        {%- endif %}
      }
    }
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
      float score[AT_ONCE], peak = largest[h];
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++) {
        float dot = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
          for (int i = 0; i < 8; i++) dot += query[h][c][i] * value_at(key[t][c], i);
        dot = warp_sum(dot);
        if (SOFTCAP > 0.0f) dot = SOFTCAP * tanhf(dot / SOFTCAP) * LOG2E;
        score[t] = base + t < end ? dot : NEGATIVE_INFINITY;
        peak = fmaxf(peak, score[t]);
      }
      const float keep = power_of_two(largest[h] - peak);
      largest[h] = peak, total[h] *= keep;
#pragma unroll
      for (int c = 0; c < VALUE_CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum[h][c][i] *= keep;
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++) {
        const float weight = power_of_two(score[t] - peak);
        total[h] += weight;
#pragma unroll
        for (int c = 0; c < VALUE_CHUNKS; c++)
#pragma unroll
          for (int i = 0; i < 8; i++) sum[h][c][i] += weight * value_at(value[t][c], i);
      }
    }
  }

  // 3 The warps merged.
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    if (lane == 0) peaks[warp][h] = largest[h], totals[warp][h] = total[h];
#pragma unroll
    for (int c = 0; c < VALUE_CHUNKS; c++) {
      const int chunk = lane + 32 * c;
      if (chunk >= VALUE_PADDED / 8) continue;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float (&v)[8] = sum[h][c];
        sums[warp][h][2 * chunk + i] = {bits_of(v[4 * i]), bits_of(v[4 * i + 1]), bits_of(v[4 * i + 2]), bits_of(v[4 * i + 3])};
      }
    }
  }
  block_barrier();
  for (int i = threadIdx.x; i < GROUP * VALUE_DIM; i += THREADS) {
    const int h = i / VALUE_DIM, d = i % VALUE_DIM;
    const float sink = SINKS && split == 0 ? sinks[first_head + h] * LOG2E : NEGATIVE_INFINITY;
    float peak = sink, value = 0.0f;
    for (int w = 0; w < WARPS; w++) peak = fmaxf(peak, peaks[w][h]);
    float whole = sink == NEGATIVE_INFINITY ? 0.0f : power_of_two(sink - peak);
    for (int w = 0; w < WARPS; w++) {
      const float weight = peaks[w][h] == NEGATIVE_INFINITY ? 0.0f : power_of_two(peaks[w][h] - peak);
      whole += weight * totals[w][h];
      value += weight * ((const float*)sums[w][h])[d];
    }
    // Without a key the sum of weights is not positive, or that of the sink alone.
    const float result = whole > 0.0f ? value / whole : whole == whole ? 0.0f : whole;
    {%- if out.is_tiled() %}
    store(out + activation_at(row, (first_head + h) * VALUE_DIM + d, rows), result);
    {%- else %}
    const u64 at = ((u64)split * rows + row) * HEADS + first_head + h;
    store(out + at * VALUE_DIM + d, result);
    if (SPLITS > 1 && d == 0) statistics[at * 2] = peak, statistics[at * 2 + 1] = whole;
    {%- endif %}
  }
}
