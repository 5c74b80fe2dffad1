{% include "device.cuh" %}
// {{ name }}: the sum of what {{ top_k }} experts of each row make of their insides. Reads the chosen experts alone.
{% include "tiles.cuh" %}
{% include "experts.cuh" %}
constexpr int ALL_PAIRS = TOP_K * PAIRS;                         // of a row tile of every expert
constexpr int SHARE = (ALL_PAIRS + WARPS - 1) / WARPS;           // of them a warp takes
constexpr int CHUNKS = (SHARE + DEPTH - 1) / DEPTH;              // rings of pairs a row tile
constexpr bool WHOLE = ALL_PAIRS == WARPS * DEPTH * CHUNKS;      // nothing is padded

// Starts the loads of a pair of weights and of the columns of the row that they multiply.
DEVICE void load_pair(Vec4 (&pair)[3], const Vec4* weights, const u16* hidden, const int (&experts)[TOP_K], int tile, int at, int lane) {
  if (tile >= TILES || !(WHOLE || at < ALL_PAIRS)) return;
  const int slot = at / PAIRS, of = at % PAIRS;
  const Vec4* from = tile_pointer(expert_pointer(weights, experts[slot]), tile, of) + lane;
  pair[0] = load_stream(from);
  pair[1] = load_stream(from + 32);
  pair[2] = load_activations(hidden + (u64)(2 * slot + lane / 4 % 2) * K, 32 * of + 8 * (lane % 4));
}

// weights: experts of packed tiles. hidden: bfloat16 [rows][TOP_K][2][K]. chosen: [rows][TOP_K]. residual: fp32 [rows][ROWS] or null.
// Grid: any, rows.
KERNEL void __launch_bounds__(THREADS, 16 / WARPS) {{ name }}(const Vec4* weights, const u16* hidden, const int* chosen,
    const float* residual, Out* out) {
  SHARED float partial[2][WARPS][16];
  SHARED int experts[TOP_K];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y;
  launch_dependents();
  wait_for_dependencies();
  if (threadIdx.x < TOP_K) experts[threadIdx.x] = chosen[row * TOP_K + threadIdx.x];
  block_barrier();
  hidden += (u64)row * TOP_K * 2 * K;

  Vec4 held[DEPTH][3];
#pragma unroll
  for (int i = 0; i < DEPTH; i++) load_pair(held[i], weights, hidden, experts, blockIdx.x, warp + WARPS * i, lane);
  int parity = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
    TileSum sum = {};
    float add = 0.0f;
    const int at = tile * TILE_ROWS + lane;
    const bool writes = warp == 0 && lane < TILE_ROWS && at < ROWS[0];
    if (residual && writes) add = residual[(u64)row * ROWS[0] + at];
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      // Each pair makes room for the one a ring later: of the next chunk, or the next row tile.
      const bool same = chunk + 1 < CHUNKS;
      const int next_tile = same ? tile : tile + gridDim.x, next_chunk = same ? chunk + 1 : 0;
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        if (WHOLE || warp + WARPS * (DEPTH * chunk + i) < ALL_PAIRS) {
          mma_bf16(sum.a, held[i][0], held[i][2].x, held[i][2].y);
          mma_bf16(sum.b, held[i][1], held[i][2].z, held[i][2].w);
        }
        load_pair(held[i], weights, hidden, experts, next_tile, warp + WARPS * (DEPTH * next_chunk + i), lane);
      }
    }
    leave_partial(partial[parity], sum, warp, lane);
    block_barrier();
    if (warp == 0) {
      const float y = finish(partial[parity], lane);
      if (writes) store(out + (u64)row * ROWS[0] + at, y + add);
    }
    parity ^= 1;
  }
}
