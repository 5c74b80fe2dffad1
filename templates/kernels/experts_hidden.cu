{% include "device.cuh" %}
// {{ name }}: which {{ top_k }} of {{ experts }} experts a row goes to, and what each has inside: share f(gate x) up x. Reads the chosen experts alone.
{% include "tiles.cuh" %}
{% include "experts.cuh" %}
constexpr int SOFTMAX = 0, SIGMOID = 1;
constexpr int SCORING = {{ scoring }};          // what makes shares of logits
constexpr bool NORMALISE = {{ normalise }};     // the shares of the chosen are divided by their sum
constexpr float SCALE = {{ scale }};            // multiplies the shares
constexpr bool NORM = {{ norm }};               // rms_norm of x
constexpr float EPS = {{ eps }};
constexpr int ACTIVATION = {{ activation }};
constexpr int SHARE = (PAIRS + WARPS - 1) / WARPS;               // pairs of a row tile that a warp takes
constexpr int CHUNKS = (SHARE + DEPTH - 1) / DEPTH;              // rings of pairs a row tile
constexpr bool WHOLE = PAIRS == WARPS * DEPTH * CHUNKS;          // nothing is padded
constexpr int STAGED_K = PAIRS * 32;
constexpr int STAGE_STRIDE = STAGED_K + 32;                      // 64 bytes more than a row: rows fall into other banks
constexpr int PASSES = (STAGED_K + 8 * THREADS - 1) / (8 * THREADS);     // eights of the row a thread brings to shared memory
constexpr int PARTS = THREADS >= 8 * EXPERTS ? 8 : THREADS >= 4 * EXPERTS ? 4 : THREADS >= 2 * EXPERTS ? 2 : 1;   // threads that rank an expert
constexpr int RANKERS = (EXPERTS * PARTS + 31) / 32 * 32;

// An integer that is ordered as the logits are, NaNs at the ends; and back.
DEVICE int order_of(float logit) { const int bits = (int)bits_of(logit); return bits ^ (bits >> 31 & 0x7fffffff); }
DEVICE float logit_of(int order) { return float_of((u32)(order ^ (order >> 31 & 0x7fffffff))); }

// The chosen experts of a row by their ranks, the first of equal ones first.
DEVICE void choose(int (&orders)[EXPERTS], int (&ranked)[TOP_K], int (&chosen)[TOP_K], const float* logits) {
  for (int e = threadIdx.x; e < EXPERTS; e += THREADS) orders[e] = order_of(logits[e]);
  block_barrier();
  for (int i = threadIdx.x; i < RANKERS; i += THREADS) {
    const int e = i / PARTS, own = e < EXPERTS ? orders[e] : 0;
    int rank = 0;
#pragma unroll 8
    for (int other = i % PARTS; other < EXPERTS; other += PARTS) rank += orders[other] > own || (orders[other] == own && other < e);
#pragma unroll
    for (int mask = PARTS / 2; mask > 0; mask /= 2) rank += shuffle_xor(rank, mask);
    if (e < EXPERTS && rank < TOP_K && i % PARTS == 0) ranked[rank] = orders[e], chosen[rank] = e;
  }
  block_barrier();
}

// The share of the expert of rank `slot`, for a whole warp.
DEVICE float share_of(const int (&orders)[EXPERTS], const int (&ranked)[TOP_K], int slot, int lane) {
  const float top = logit_of(ranked[0]), own = logit_of(ranked[slot]);
  float whole = 1.0f;
  if (NORMALISE || SCORING == SOFTMAX) {
    whole = 0.0f;
    for (int i = lane; i < (NORMALISE ? TOP_K : EXPERTS); i += 32) {
      const float logit = logit_of(NORMALISE ? ranked[i] : orders[i]);
      whole += SCORING == SOFTMAX ? expf(logit - top) : 1.0f / (1.0f + expf(-logit));
    }
    whole = warp_sum(whole);
  }
  return (SCORING == SOFTMAX ? expf(own - top) : 1.0f / (1.0f + expf(-own))) / whole * SCALE;
}

// Eight consecutive values, zeros beyond K.
DEVICE void load_floats(float (&v)[8], const float* row, int k) {
#pragma unroll
  for (int h = 0; h < 8; h += 4) {
    if (K % 4 == 0) {
      Vec4 four = {0, 0, 0, 0};
      if (k + h < K) four = *(const Vec4*)(row + k + h);
      v[h] = float_of(four.x), v[h + 1] = float_of(four.y), v[h + 2] = float_of(four.z), v[h + 3] = float_of(four.w);
    } else {
#pragma unroll
      for (int i = h; i < h + 4; i++) v[i] = k + i < K ? row[k + i] : 0.0f;
    }
  }
}

// Eight values rounded; in `v` remains what the rounding left.
DEVICE void store_eight(u16* at, float (&v)[8]) {
  const u32 kept[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  *(Vec4*)at = {kept[0], kept[1], kept[2], kept[3]};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] -= i % 2 ? bf16_high(kept[i / 2]) : bf16_low(kept[i / 2]);
}

// Starts the loads of turn i of a chunk of pairs that begins at `from`.
DEVICE void load_pair(Vec4 (&pair)[2], const Vec4* from, int tile, int chunk, int i, int warp) {
  if (tile >= TILES || !(WHOLE || warp + WARPS * (DEPTH * chunk + i) < PAIRS)) return;
  pair[0] = load_stream(from + WARPS * i * 64);
  pair[1] = load_stream(from + WARPS * i * 64 + 32);
}

// weights: experts of packed tiles. x: fp32 [rows][K]. norm_weight [K] or null. logits: fp32 [rows][EXPERTS].
// hidden: bfloat16 [rows][TOP_K][2][ROWS], what rounding keeps and what it leaves. chosen: [rows][TOP_K]. Grid: any, rows TOP_K.
KERNEL void __launch_bounds__(THREADS, 16 / WARPS) {{ name }}(const Vec4* weights, const float* x, const float* norm_weight,
    const float* logits, u16* hidden, int* chosen) {
  SHARED float partial[2][WARPS][16];
  SHARED float sums[WARPS];
  SHARED int orders[EXPERTS];
  SHARED int ranked[TOP_K];
  SHARED int experts[TOP_K];
  u16* staged = (u16*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row = blockIdx.y / TOP_K, slot = blockIdx.y % TOP_K;
  launch_dependents();
  wait_for_dependencies();

  // The row and its logits come together; the weights of its expert as soon as that is known.
  float v[PASSES][8];
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) load_floats(v[pass], x + (u64)row * K, 8 * (threadIdx.x + THREADS * pass));
  choose(orders, ranked, experts, logits + (u64)row * EXPERTS);
  const Vec4* expert = expert_pointer(weights, experts[slot]);
  Vec4 held[DEPTH][2];
  {
    const Vec4* from = tile_pointer(expert, blockIdx.x, warp) + lane;
#pragma unroll
    for (int i = 0; i < DEPTH; i++) load_pair(held[i], from, blockIdx.x, 0, i, warp);
  }

  // x · w into shared memory. The norm's division is applied to the products, which are linear in it.
  float square = 0.0f;
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    const int k = 8 * (threadIdx.x + THREADS * pass);
    if (k >= STAGED_K) break;
    float w[8];
    if (NORM && norm_weight) load_floats(w, norm_weight, k);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      square += v[pass][i] * v[pass][i];
      if (NORM && norm_weight) v[pass][i] *= w[i];
    }
    store_eight(staged + k, v[pass]);
    store_eight(staged + STAGE_STRIDE + k, v[pass]);
  }
  if (NORM) {
    square = warp_sum(square);
    if (lane == 0) sums[warp] = square;
  }
  const float share = share_of(orders, ranked, slot, lane);
  if (blockIdx.x == 0 && threadIdx.x == 0) chosen[blockIdx.y] = experts[slot];
  block_barrier();

  float scale = 1.0f;
  if (NORM) {
    square = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) square += sums[i];
    scale = rsqrtf(square / K + EPS);
  }
  int parity = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
    TileSum sum = {};
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      // Each pair makes room for the one a ring later: of the next chunk, or the next row tile.
      const bool same = chunk + 1 < CHUNKS;
      const int next_tile = same ? tile : tile + gridDim.x, next_chunk = same ? chunk + 1 : 0;
      const Vec4* from = tile_pointer(expert, next_tile, warp + WARPS * DEPTH * next_chunk) + lane;
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        const int pair = warp + WARPS * (DEPTH * chunk + i);
        if (WHOLE || pair < PAIRS) {
          const Vec4 b = *(const Vec4*)(staged + group % 2 * STAGE_STRIDE + 32 * pair + 8 * quad);
          mma_bf16(sum.a, held[i][0], b.x, b.y);
          mma_bf16(sum.b, held[i][1], b.z, b.w);
        }
        load_pair(held[i], from, next_tile, next_chunk, i, warp);
      }
    }
    leave_partial(partial[parity], sum, warp, lane);
    block_barrier();
    if (warp == 0) {
      float y = finish(partial[parity], lane) * scale;
      const float other = GATED ? shuffle_xor(y, 8) : 1.0f;
      y = activate<ACTIVATION>(y) * other * share;
      const int at = tile * TILE_ROWS + lane;
      if (lane < TILE_ROWS && at < ROWS[0]) {
        u16* to = hidden + (u64)blockIdx.y * 2 * ROWS[0] + at;
        store(to, y);
        store(to + ROWS[0], y - load(to));
      }
    }
    parity ^= 1;
  }
}
