{% include "device.cuh" %}
// {{ self.name() }}: causal attention of a few query heads that share a key head, for one row. The keys of a row are split over blocks
// of which clusters merge what they have.
{% include "attention.cuh" %}
{% if out.is_tiled() %}{% include "activations.cuh" %}
{%- endif -%}
typedef {{ out }} Out;                                                                        // LEFT > 1: in half precision, to be combined
constexpr int GROUPS = HEADS / KEY_HEADS / GROUP;                                             // blocks that share a key head
constexpr int REGISTERS = 42 + 24 * CHUNKS + 32 * CHUNKS * HELD;                              // per thread, nearly
constexpr int BLOCKS = 2 * THREADS * REGISTERS <= 67000 && !(APPEND && SPLITS == 1) ? 2 : 1;  // per multiprocessor
constexpr int SHARE = (GROUP * HEAD_DIM + MERGED - 1) / MERGED;                               // of the results that a block of a cluster finishes

// q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM] (null unless APPEND), fp32. Caches: bfloat16
// [sequence][KEY_HEADS][context][PADDED]. positions, sequences [rows]; a row at position -1 is skipped.
// out: [LEFT][rows][HEADS][HEAD_DIM] and, where more than one is left, statistics [LEFT][rows][HEADS][2], the largest score (in powers of two) and the sum
// of the weights. zeros: `zero_count` floats that are set to zero.
// Grid: SPLITS, KEY_HEADS * GROUPS, rows.
KERNEL void {% if attention.splits.merged > 1 %}CLUSTER_OF(MERGED){% endif %} __launch_bounds__(THREADS, BLOCKS) {{ self.name() }}({{ self.signature() }}) {
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
  {%- if attention.splits.merged > 1 %}
  cluster_begin();
  {%- endif %}
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

  // 4 The warps merged{% if attention.splits.merged > 1 %}, each element's weight beside it, then the blocks: each finishes a share of the elements{% endif %}.
  const auto leave = [&](int i, float value, float peak, float total) {
    const u64 at = ((u64)result * rows + row) * HEADS + first_head + i / HEAD_DIM;
    {%- if out.is_tiled() %}
    store(out + activation_at(row, first_head * HEAD_DIM + i, rows), total == 0.0f ? 0.0f : value / total);
    {%- else %}
    store(out + at * HEAD_DIM + i % HEAD_DIM, total == 0.0f ? 0.0f : value / total);
    {%- endif %}
    if (LEFT > 1 && i % HEAD_DIM == 0) statistics[at * 2] = peak, statistics[at * 2 + 1] = total;
  };
  {%- if attention.splits.merged > 1 %}
  SHARED float values[MERGED][SHARE], peaks[MERGED][SHARE], totals[MERGED][SHARE];
  cluster_join();
  {%- endif %}
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM;
    float peak, total;
    const float value = merge(parts, WARPS, h, i % HEAD_DIM, SINKS && split == 0 ? sinks + first_head + h : nullptr, peak, total);
    {%- if attention.splits.merged > 1 %}
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
    {%- else %}
    leave(i, value, peak, total);
    {%- endif %}
  }
}
