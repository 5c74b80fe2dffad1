{% include "device.cuh" %}
// {{ name }}: the sum of what the {{ route.top_k }} experts of each of {{ batch }} rows make of their insides, in the order of the experts. Reads the weights of the
// chosen alone, each once.
{% include "tiles.cuh" %}
{% include "route.cuh" %}
{% include "experts.cuh" %}
constexpr int SPLIT = {{ split }};              // blocks that share the columns of a row tile: two add to a sum in memory
constexpr bool STAGED = {{ staged }};           // the insides go through shared memory
constexpr int COLUMNS = BATCH;
constexpr int BLOCK_PAIRS = (MOST * PAIRS + SPLIT - 1) / SPLIT;  // pairs of a row tile that a block may take, of all experts
constexpr int STAGE_STRIDE = BLOCK_PAIRS * 32 + 32;              // 64 bytes more than a row: rows fall into other banks
static_assert(!GATED, "the sum is of single products");
static_assert(SPLIT == 1 || SPLIT == 2, "two addends have one sum; the order of three would show");

// Starts the loads of a pair. Pairs are counted over the listed experts.
DEVICE void load_pair(Vec4 (&pair)[2], const Vec4* weights, const int (&list)[MOST], int tile, int at, int lane) {
  const Vec4* from = tile_pointer(expert_pointer(weights, list[at / PAIRS]), tile, at % PAIRS) + lane;
  pair[0] = load_stream(from);
  pair[1] = load_stream(from + 32);
}

// Eight of the columns of row b that a pair multiplies.
DEVICE Vec4 load_hidden(const u16* hidden, int b, int at, int eight) {
  return load_activations(hidden + ((u64)(at / PAIRS) * BATCH + b) * K, at % PAIRS * 32 + 8 * eight);
}

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
  const int all = list_experts(lists[warp], sets, lane) * PAIRS;
  const int begin = rank * ((all + SPLIT - 1) / SPLIT), end = SPLIT == 1 || rank == 1 ? all : (all + SPLIT - 1) / SPLIT;
  const int chunks = (end - begin + WARPS * DEPTH - 1) / (WARPS * DEPTH);
  Vec4 held[DEPTH][2];
#pragma unroll
  for (int i = 0; i < DEPTH; i++) {
    const int at = begin + warp + WARPS * i;
    if (at < end) load_pair(held[i], weights, list, first_tile, at, lane);
  }
  wait_for_dependencies();

  if (STAGED) {
    for (int i = threadIdx.x; i < BATCH * 4 * (end - begin); i += THREADS) {
      const int b = i / (4 * (end - begin)), eight = i % (4 * (end - begin));
      *(Vec4*)(staged + b * STAGE_STRIDE + 8 * eight) = load_hidden(hidden, b, begin + eight / 4, eight % 4);
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
        const int at = begin + warp + WARPS * (DEPTH * chunk + i), next = begin + warp + WARPS * (DEPTH * next_chunk + i);
        if (at < end) {
          const int b = group % BATCH;
          const Vec4 v = STAGED ? *(const Vec4*)(staged + b * STAGE_STRIDE + 32 * (at - begin) + 8 * quad) : load_hidden(hidden, b, at, quad);
          mma_bf16(sum[0], held[i][0], v.x, v.y);
          mma_bf16(sum[1], held[i][1], v.z, v.w);
        }
        if (next < end && next_tile < TILES) load_pair(held[i], weights, list, next_tile, next, lane);
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
