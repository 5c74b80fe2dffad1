{% include "device.cuh" %}
// {{ self.name() }}: causal attention of a few query heads that share a key head, for one row. The keys of a row are split over blocks.
{% include "attention.cuh" %}
typedef {{ out }} Out;                                                                   // SPLITS > 1: fp32 sums to be combined; else the result
constexpr int GROUPS = HEADS / KEY_HEADS / GROUP;                                        // blocks that share a key head
constexpr int BLOCKS = PADDED <= 128 && WARPS <= 8 && !(APPEND && SPLITS == 1) ? 2 : 1;  // per multiprocessor

// q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM] (null unless APPEND), fp32. Caches: bfloat16
// [sequence][KEY_HEADS][context][PADDED]. positions, sequences [rows]; a row at position -1 is skipped.
// out: [SPLITS][rows][HEADS][HEAD_DIM] and statistics [SPLITS][rows][HEADS][2], the largest score (in powers of two) and the sum
// of the weights; or, with one split, the result [rows][HEADS][HEAD_DIM]. zeros: `zero_count` floats that are set to zero.
// Grid: KEY_HEADS * GROUPS, SPLITS, rows.
KERNEL void __launch_bounds__(THREADS, BLOCKS) {{ self.name() }}({{ self.signature() }}) {
  SHARED Vec4 queries[GROUP][2 * QUERY_STRIDE / 8];
  SHARED Vec4 fresh[2][PADDED / 8];  // this step's key and value, as the cache has them
  SHARED Part parts[WARPS];          // before that, scratch of the warps that prepare heads
  SHARED Prepared prepared;
  const int warp = threadIdx.x / 32;
  const int key_head = blockIdx.x / GROUPS, first_head = blockIdx.x * GROUP;
  const int split = blockIdx.y, row = blockIdx.z, rows = gridDim.z;

  // 1 Keys and values in flight. Positions and, under APPEND, all keys but the newest are from earlier steps: they are loaded before the wait.
  if (!LATE) launch_dependents();
  const int position = load_early(positions + row);
  const int splits = active_splits(position);
  // Splits that are not needed end at once. The first always waits, so that this kernel ends after all before it.
  if (split > 0 && split >= splits) {
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
  Tile tile = {};
  if (APPEND) {
    load_first(tile, span, begin + 16 * warp);
    prepare_turns(prepared, position);
    prepare_weights(prepared, q_weight, k_weight);
    block_barrier();
  }
  wait_for_dependencies();
  if (LATE) launch_dependents();
  if (split == 0)
    for (u64 i = (u64)(blockIdx.x + gridDim.x * row) * THREADS + threadIdx.x; i < zero_count; i += (u64)gridDim.x * rows * THREADS) zeros[i] = 0.0f;
  if (splits == 0) return;
  if (!APPEND) {
    load_first(tile, span, begin + 16 * warp);
  }

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
  attend(parts[warp], tile, span, (const u16*)queries, 16 * warp, 16 * WARPS);
  block_barrier();

  // 4 The warps merged.
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM, d = i % HEAD_DIM;
    const u64 at = ((u64)split * rows + row) * HEADS + first_head + h;
    float peak, total;
    const float value = merge(parts, WARPS, h, d, SINKS && split == 0 ? sinks + first_head + h : nullptr, peak, total);
    store(out + at * HEAD_DIM + d, SPLITS > 1 ? value : value / total);
    if (SPLITS > 1 && d == 0) statistics[at * 2] = peak, statistics[at * 2 + 1] = total;
  }
}
