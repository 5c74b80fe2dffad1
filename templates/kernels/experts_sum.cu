{% include "device.cuh" %}
// {{ name }}: the sum of what the {{ route.top_k }} experts of each of {{ batch }} rows make of their insides, in the order of the experts. Reads the weights of the
// chosen alone, each once.
{% include "tiles.cuh" %}
{% include "route.cuh" %}
{% include "experts.cuh" %}
constexpr int SPLIT = {{ split }};              // blocks that share the columns of a row tile: two add to a sum in memory
constexpr bool STAGED = {{ staged }};           // the insides go through shared memory
constexpr int COLUMNS = BATCH;
constexpr int BLOCK_PAIRS = (PAIRS + SPLIT - 1) / SPLIT;         // pairs of a row tile of an expert that a block takes
constexpr int SHARE = (BLOCK_PAIRS + WARPS - 1) / WARPS;         // and a warp: the same ones whatever the other rows' experts are
constexpr bool WHOLE = PAIRS == SPLIT * WARPS * SHARE;           // nothing is padded
constexpr int EXPERT_K = BLOCK_PAIRS * 32;                       // columns of an expert that a block brings to shared memory
constexpr int STAGE_STRIDE = MOST * EXPERT_K + 32;               // 64 bytes more than a row: rows fall into other banks
static_assert(!GATED, "the sum is of single products");
static_assert(SPLIT == 1 || SPLIT == 2, "two addends have one sum; the order of three would show");

// A warp's turns: SHARE pairs of the first listed expert, then those of the next. Whether a turn has one, and not padding.
DEVICE bool is_pair(int turn, int rank, int warp) {
  const int pair = warp + WARPS * (turn % SHARE);
  return WHOLE || (pair < BLOCK_PAIRS && rank * BLOCK_PAIRS + pair < PAIRS);
}

// Starts the loads of the pair of a turn.
DEVICE void load_pair(Vec4 (&pair)[2], const Vec4* weights, const int (&list)[MOST], int tile, int turn, int rank, int warp, int lane) {
  if (!is_pair(turn, rank, warp)) return;
  const int at = rank * BLOCK_PAIRS + warp + WARPS * (turn % SHARE);
  const Vec4* from = tile_pointer(expert_pointer(weights, list[turn / SHARE]), tile, at) + lane;
  pair[0] = load_stream(from);
  pair[1] = load_stream(from + 32);
}

// Eight of the columns of listed expert `slot` for row b.
DEVICE Vec4 load_hidden(const u16* hidden, int slot, int b, int k) { return load_activations(hidden + ((u64)slot * BATCH + b) * K, k); }

// weights: experts of packed tiles. hidden: bfloat16 [listed experts][BATCH][K]. logits: fp32 [BATCH][EXPERTS]. residual: fp32
// [BATCH][ROWS] or null. With SPLIT out holds zeros, to which both blocks add. Grid: any number of SPLIT blocks.
KERNEL void __launch_bounds__(THREADS, 16 / WARPS) {{ name }}(const Vec4* weights, const u16* hidden, const float* logits,
    const float* residual, Out* out) {
  SHARED float partial[2][WARPS][16][COLUMNS];
  SHARED u32 sets[BATCH][WORDS];
  SHARED int lists[WARPS][MOST];
  u16* staged = (u16*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int rank = blockIdx.x % SPLIT, first_tile = blockIdx.x / SPLIT, teams = gridDim.x / SPLIT;
  launch_dependents();

  // Which experts it is, and their weights, before the kernel in front is done: it began behind the one that made the logits.
  if (warp < BATCH) {
    float logit[WORDS], top;
    load_logits<true>(logit, logits + warp * EXPERTS, lane);
    leave_chosen(sets, warp, choose(logit, top, lane), lane);
  }
  block_barrier();
  const int (&list)[MOST] = lists[warp];
  const int count = list_experts(lists[warp], sets, lane), turns = count * SHARE, chunks = (turns + DEPTH - 1) / DEPTH;
  Vec4 held[DEPTH][2];
#pragma unroll
  for (int i = 0; i < DEPTH; i++)
    if (i < turns && first_tile < TILES) load_pair(held[i], weights, list, first_tile, i, rank, warp, lane);
  wait_for_dependencies();

  if (STAGED) {
    for (int i = 8 * threadIdx.x; i < BATCH * count * EXPERT_K; i += 8 * THREADS) {
      const int row = i / EXPERT_K, k = i % EXPERT_K, slot = row / BATCH, b = row % BATCH;
      *(Vec4*)(staged + b * STAGE_STRIDE + slot * EXPERT_K + k) = load_hidden(hidden, slot, b, rank * EXPERT_K + k);
    }
    block_barrier();
  }
  int parity = 0;
#pragma unroll 1
  for (int tile = first_tile; tile < TILES; tile += teams) {
    const int row = tile * 16 + lane;
    const bool writes = warp < BATCH && lane < 16 && row < ROWS[0];
    float add = 0.0f, sum[2][4] = {};
    if (writes && residual && rank == 0) add = residual[warp * ROWS[0] + row];
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      // Each pair makes room for the one a ring later: of the next chunk, or the next row tile.
      const bool same = chunk + 1 < chunks;
      const int next_tile = same ? tile : tile + teams, next_chunk = same ? chunk + 1 : 0;
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        const int turn = DEPTH * chunk + i, next = DEPTH * next_chunk + i;
        if (turn < turns && is_pair(turn, rank, warp)) {
          const int b = group % BATCH, slot = turn / SHARE, k = 32 * (warp + WARPS * (turn % SHARE)) + 8 * quad;
          const Vec4 v = STAGED ? *(const Vec4*)(staged + b * STAGE_STRIDE + slot * EXPERT_K + k)
                                : load_hidden(hidden, slot, b, rank * EXPERT_K + k);
          mma_bf16(sum[0], held[i][0], v.x, v.y);
          mma_bf16(sum[1], held[i][1], v.z, v.w);
        }
        if (next < turns && next_tile < TILES) load_pair(held[i], weights, list, next_tile, next, rank, warp, lane);
      }
    }
    leave_partial(partial[parity], sum, warp, lane);
    block_barrier();
    if (warp < BATCH) {
      const float y = total_of(partial[parity], warp, lane) + add;
      if (writes && SPLIT == 2) accumulate((float*)out + warp * ROWS[0] + row, y);
      if (writes && SPLIT == 1) store(out + warp * ROWS[0] + row, y);
    }
    parity ^= 1;
  }
}
