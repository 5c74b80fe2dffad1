{% include "device.cuh" %}
// {{ self.name() }}: y = W attention(x) + r, {{ batch }} rows of x per cluster. A cluster computes a slice of the rows of y: each of its blocks attends with some
// of the heads and multiplies the result, and the products are summed through distributed shared memory, in the order of the blocks.
{% include "attention.cuh" %}
{% include "tiles.cuh" %}
constexpr int BATCH = {{ batch }};      // rows of x that a cluster takes
constexpr int CLUSTER = {{ cluster }};  // blocks that share the heads
constexpr int SLICE = {{ slice }};      // row tiles of a cluster
constexpr int BLOCK_KEY_HEADS = KEY_HEADS / CLUSTER;
constexpr int BLOCK_HEADS = HEADS / CLUSTER;
constexpr int GROUPS = BLOCK_HEADS / GROUP;             // of a row of x in a block
constexpr int JOBS = BATCH * GROUPS;                    // of attention in a block
constexpr int PARTS = JOBS < WARPS ? WARPS / JOBS : 1;  // warps that share a job
constexpr int COLUMNS = BLOCK_HEADS * HEAD_DIM;         // of W in a block
constexpr int BLOCK_STEPS = COLUMNS / STEP;
constexpr int SPLIT = SLICE >= WARPS ? 1 : WARPS / SLICE;  // warps that share a row tile
constexpr int STAGE_STRIDE = COLUMNS + 32;
constexpr int RESULTS = 16 * SLICE * BATCH;               // of a cluster
constexpr int SHARE = (RESULTS + CLUSTER - 1) / CLUSTER;  // and of a block
constexpr int OWN = (SHARE + THREADS - 1) / THREADS;      // and of a thread
static_assert(COLUMNS % STEP == 0 && KEY_HEADS % CLUSTER == 0, "a block's columns are whole steps");
static_assert(BATCH <= 8 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");

// What lies in dynamic shared memory, in this order.
struct alignas(16) Shared {
  Vec4 weights[SLICE][BLOCK_STEPS * STEP_WORDS];
  Part parts[JOBS * PARTS > WARPS ? JOBS * PARTS : WARPS];  // before that, scratch of the warps that prepare heads
  Vec4 queries[BATCH * BLOCK_HEADS][2 * QUERY_STRIDE / 8];
  Vec4 fresh[BATCH * BLOCK_KEY_HEADS][2][PADDED / 8];
  Vec4 staged[BATCH][STAGE_STRIDE / 8];
  float products[CLUSTER][SPLIT][SHARE];  // of the results that this block finishes, each block's
  Prepared prepared[BATCH];
};

// weights: packed tiles. q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM], fp32. Caches: bfloat16 [sequence][KEY_HEADS][context][PADDED].
// positions, sequences [rows]; a row at position -1 attends to nothing. bias [rows of y], residual and y [rows][rows of y], fp32.
// zeros: `zero_count` floats that are set to zero. Grid: CLUSTER, slices, rows / BATCH.
KERNEL void CLUSTER_OF(CLUSTER) __launch_bounds__(THREADS, 1) {{ self.name() }}({{ self.signature() }}) {
  SHARED u64 arrived;  // of the weights
  Shared& shared = *(Shared*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int rank = blockIdx.x, first_tile = blockIdx.y * SLICE;
  const int tiles = smaller(SLICE, TILES - first_tile), first_row = blockIdx.z * BATCH;
  q += (u64)first_row * HEADS * HEAD_DIM, k += (u64)first_row * KEY_HEADS * HEAD_DIM, v += (u64)first_row * KEY_HEADS * HEAD_DIM;
  positions += first_row, sequences += first_row, out += (u64)first_row * ROWS[0];
  if (residual) residual += (u64)first_row * ROWS[0];

  // 1 Weights in flight, then the keys and values of a warp's first job, but for the newest: they are from earlier steps.
  if (!LATE) launch_dependents();
  cluster_begin();
  if (threadIdx.x == 0) {
    expect(&arrived, tiles * BLOCK_STEPS * STEP_WORDS * 16);
#pragma unroll 1
    for (int t = 0; t < tiles; t++)
      copy_bulk(shared.weights[t], tile_pointer(weights, first_tile + t, rank * BLOCK_STEPS), BLOCK_STEPS * STEP_WORDS * 16, &arrived);
  }
  const auto span_of = [&](int job) {
    const int row = job / GROUPS, head = job % GROUPS * GROUP / (HEADS / KEY_HEADS), position = load_early(positions + row);
    const u64 at = ((u64)load_early(sequences + row) * KEY_HEADS + rank * BLOCK_KEY_HEADS + head) * context * PADDED;
    return Span{key_cache + at, value_cache + at, first_key(position), position + 1, position, shared.fresh[row * BLOCK_KEY_HEADS + head]};
  };
  Tile in_flight[HELD] = {};
  Span span = span_of(smaller(warp / PARTS, JOBS - 1));
  load_first(in_flight, span, span.first + 16 * (warp % PARTS), 16 * PARTS);
#pragma unroll 1
  for (int row = 0; row < BATCH; row++) {
    prepare_turns(shared.prepared[row], load_early(positions + row));
    prepare_weights(shared.prepared[row], q_weight, k_weight);
  }
  block_barrier();
  wait_for_dependencies();
  if (LATE) launch_dependents();
  if (first_row == 0)
    for (u64 i = (blockIdx.x + gridDim.x * blockIdx.y) * THREADS + threadIdx.x; i < zero_count; i += gridDim.x * gridDim.y * THREADS) zeros[i] = 0.0f;

  // 2 Queries, and the newest keys and values. Every block computes the heads that it needs; the first slice stores the key and the value.
#pragma unroll 1
  for (int job = warp; job < BATCH * (BLOCK_HEADS + 2 * BLOCK_KEY_HEADS); job += WARPS) {
    const int row = job % BATCH, which = job / BATCH, other = which - BLOCK_HEADS, head = rank * BLOCK_KEY_HEADS + other % BLOCK_KEY_HEADS;
    const bool is_query = other < 0, is_key = !is_query && other < BLOCK_KEY_HEADS;
    const int position = load_early(positions + row);
    const float* from = is_query ? q + ((u64)row * HEADS + rank * BLOCK_HEADS + which) * HEAD_DIM : (is_key ? k : v) + ((u64)row * KEY_HEADS + head) * HEAD_DIM;
    u16* to = is_query ? (u16*)shared.queries[row * BLOCK_HEADS + which] : (u16*)shared.fresh[row * BLOCK_KEY_HEADS + other % BLOCK_KEY_HEADS][is_key ? 0 : 1];
    u16* cached = (is_key ? key_cache : value_cache) + (((u64)load_early(sequences + row) * KEY_HEADS + head) * context + position) * PADDED;
    const bool keeps = blockIdx.y == 0 && position >= 0;
    const auto take = [&](int i, float value) {
      if (is_query) {
        store_query(to, i, value);
      } else {
        store(to + i, value);
        if (keeps) store(cached + i, value);
      }
    };
    load_head(take, shared.parts[warp].sums[0], from, shared.prepared[row].weights[is_query ? 0 : 1], is_query ? EPS_Q : EPS_K, shared.prepared[row],
              is_query || is_key);
    if (is_query) pad_query(to);
  }
  block_barrier();
  // 3 Attention: a job is a group of heads for one row of x, PARTS warps each.
#pragma unroll 1
  for (int slot = warp; slot < JOBS * PARTS; slot += WARPS) {
    const int job = slot / PARTS, begin = 16 * (slot % PARTS);
    if (slot != warp) {
      span = span_of(job);
#pragma unroll
      for (int i = 0; i < HELD; i++) in_flight[i] = {};
      load_first(in_flight, span, span.first + begin, 16 * PARTS);
    }
    attend(shared.parts[slot], in_flight, span, (const u16*)shared.queries[job / GROUPS * BLOCK_HEADS + job % GROUPS * GROUP], begin, 16 * PARTS);
  }
  block_barrier();
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * COLUMNS; i += THREADS) {
    const int row = i / COLUMNS, head = i % COLUMNS / HEAD_DIM, d = i % HEAD_DIM, job = row * GROUPS + head / GROUP;
    float peak, total;
    const float value = merge(shared.parts + job * PARTS, PARTS, head % GROUP, d, SINKS ? sinks + rank * BLOCK_HEADS + head : nullptr, peak, total);
    store((Operand*)shared.staged[row] + i % COLUMNS, peak == NEGATIVE_INFINITY ? 0.0f : value / total * latter_of(i % COLUMNS));
  }
  block_barrier();
  cluster_join();
  await(&arrived);

  // 4 Products. A warp multiplies a row tile, or a part of its columns.
#pragma unroll 1
  for (int job = warp; job < SLICE * SPLIT; job += WARPS) {
    const int t = job / SPLIT, part = job % SPLIT;
    if (t >= tiles) break;
    float sum[2][4] = {};
#pragma unroll 4
    for (int step = part; step < BLOCK_STEPS; step += SPLIT) {
      Held held;
      load_again(held, shared.weights[t] + STEP_WORDS * step + lane);
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) multiply(sum, held, pair, load_staged((const u16*)shared.staged[group % BATCH], STEP * step + 32 * pair, quad));
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int b = 2 * quad + i % 2, result = (16 * t + group + i / 2 * 8) * BATCH + b;
      if (b < BATCH) store_peer(&shared.products[rank][part][result % SHARE], (sum[0][i] + sum[1][i]) * FACTOR, result / SHARE);
    }
  }
  // 5 Sums and epilogue. Bias and residual are loaded before the products of the other blocks arrive.
  cluster_arrive();
  const auto place_of = [&](int own) { return rank * SHARE + own * THREADS + (int)threadIdx.x; };
  const auto is_mine = [&](int own) {
    return own * THREADS + threadIdx.x < SHARE && place_of(own) < RESULTS && 16 * first_tile + place_of(own) / BATCH < ROWS[0];
  };
  float y[OWN];
#pragma unroll
  for (int own = 0; own < OWN; own++) {
    const int b = place_of(own) % BATCH, row = 16 * first_tile + place_of(own) / BATCH;
    y[own] = (is_mine(own) && bias ? bias[row] : 0.0f) + (is_mine(own) && residual ? residual[b * ROWS[0] + row] : 0.0f);
  }
  cluster_wait();
#pragma unroll
  for (int own = 0; own < OWN; own++) {
    if (!is_mine(own)) break;
#pragma unroll
    for (int r = 0; r < CLUSTER; r++)
#pragma unroll
      for (int part = 0; part < SPLIT; part++) y[own] += shared.products[r][part][own * THREADS + threadIdx.x];
    store(out + place_of(own) % BATCH * ROWS[0] + 16 * first_tile + place_of(own) / BATCH, y[own]);
  }
}
