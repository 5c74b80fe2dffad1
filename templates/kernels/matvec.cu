{% include "device.cuh" %}
// {{ name }}: y = W f(x) for {{ batch }} rows of x, the warps of a block sharing the columns of a row tile. Reads W once.
{% include "tiles.cuh" %}
{% if combine %}{% include "splits.cuh" %}
{% endif %}
constexpr int BATCH = {{ batch }};              // rows of x
constexpr int WARPS = {{ warps }};              // they take the pairs of a row tile in turn
constexpr int CHUNK = {{ chunk }};              // pairs a warp holds in registers while the next ones arrive
constexpr int NORM = {{ norm }};                // 0 none, 1 rms_norm, 2 layer_norm of x, which is then fp32
constexpr float EPS = {{ eps }};
constexpr bool COMBINE = {{ combine }};         // x is what the blocks of a split attention left
constexpr int HEADS = {{ heads }}, HEAD_DIM = {{ head_dim }};   // of that attention
constexpr int ACTIVATION = {{ activation }};
constexpr bool ARGMAX = {{ argmax }};           // also leave each block's largest result and its row
constexpr int THREADS = 32 * WARPS;
constexpr int CHUNKS = (PAIRS + WARPS * CHUNK - 1) / (WARPS * CHUNK);
constexpr bool STAGED = NORM != 0 || COMBINE;   // x goes through shared memory as bfloat16
constexpr int STAGE_STRIDE = PAIRS * 32 + 32;   // 64 bytes more than a row: rows fall into other banks
static_assert(BATCH >= 1 && BATCH <= 8 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");
static_assert(16 * BATCH <= THREADS, "one thread a result");

DEVICE void load_chunk(Vec4 (&held)[2 * CHUNK], const Vec4* weights, int tile, int chunk, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    const int pair = warp + WARPS * (chunk * CHUNK + i);
    if (pair < PAIRS) {
      held[2 * i] = load_stream(tile_pointer(weights, tile, pair) + lane);
      held[2 * i + 1] = load_stream(tile_pointer(weights, tile, pair) + 32 + lane);
    }
  }
}

DEVICE void load_rows(Vec4 (&rows)[CHUNK], const u16* x, int chunk, int warp, int lane) {
  const u16* row = x + (lane / 4 % BATCH) * K;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) rows[i] = load_activations(row, 32 * (warp + WARPS * (chunk * CHUNK + i)) + 8 * (lane % 4));
}

// x · w into shared memory, and the warp's part of what the norm divides by. RMS is applied to the products, which are linear in it.
DEVICE void stage_norm(u16* staged, float (&sums)[WARPS][BATCH], const float* x, const float* w, const float* bias) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    const float* row = x + b * K;
    float mean = 0.0f, scale = 1.0f;
    if (NORM == 2) {
      float sum = 0.0f;
      for (int k = threadIdx.x; k < K; k += THREADS) sum += row[k];
      sum = warp_sum(sum);
      if (lane == 0) sums[warp][b] = sum;
      block_barrier();
      for (int i = 0; i < WARPS; i++) mean += sums[i][b];
      mean /= K;
      block_barrier();
      float square = 0.0f;
      for (int k = threadIdx.x; k < K; k += THREADS) square += (row[k] - mean) * (row[k] - mean);
      square = warp_sum(square);
      if (lane == 0) sums[warp][b] = square;
      block_barrier();
      float variance = 0.0f;
      for (int i = 0; i < WARPS; i++) variance += sums[i][b];
      scale = rsqrtf(variance / K + EPS);
      block_barrier();
    }
    float square = 0.0f;
#pragma unroll 4
    for (int k = 2 * threadIdx.x; k < PAIRS * 32; k += 2 * THREADS) {
      float v[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const bool inside = k + i < K;
        const float value = inside ? row[k + i] : 0.0f;
        square += value * value;
        v[i] = NORM == 2 ? (value - mean) * scale : value;
        v[i] = inside ? v[i] * (w ? w[k + i] : 1.0f) + (bias ? bias[k + i] : 0.0f) : 0.0f;
      }
      *(u32*)(staged + b * STAGE_STRIDE + k) = pack_bf16(v[0], v[1]);
    }
    if (NORM == 1) {
      square = warp_sum(square);
      if (lane == 0) sums[warp][b] = square;
    }
  }
}

{% if combine %}
// The softmax-weighted mean of the splits, in their order.
DEVICE void stage_combined(u16* staged, const float* partial, const float* statistics, const int* positions) {
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    const int splits = active_splits(positions[b]);
    for (int k = 2 * threadIdx.x; k < PAIRS * 32; k += 2 * THREADS) {
      float v[2] = {0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (k + i >= K) continue;
        const int head = (k + i) / HEAD_DIM;
        float largest = NEGATIVE_INFINITY;
        for (int s = 0; s < splits; s++) largest = fmaxf(largest, statistics[((s * BATCH + b) * HEADS + head) * 2]);
        float total = 0.0f, value = 0.0f;
        for (int s = 0; s < splits; s++) {
          const int at = (s * BATCH + b) * HEADS + head;
          const float weight = exp2f(statistics[at * 2] - largest);
          total += weight * statistics[at * 2 + 1];
          value += weight * partial[(s * BATCH + b) * K + k + i];
        }
        v[i] = splits > 0 ? value / total : 0.0f;
      }
      *(u32*)(staged + b * STAGE_STRIDE + k) = pack_bf16(v[0], v[1]);
    }
  }
}
{% endif %}

// weights: packed tiles. x: fp32 [BATCH][K] under a norm, bfloat16 [BATCH][K] without, or [SPLITS][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][ROWS]: null where absent. maxima: [BATCH][gridDim.x] value, row.
KERNEL void __launch_bounds__(THREADS) {{ name }}(const Vec4* weights, const void* x, const float* norm_weight, const float* norm_bias,
    const float* bias, const float* residual, Out* out0, Out* out1, Out* out2, const float* statistics, const int* positions, u32* maxima) {
  SHARED float partial[2][WARPS][16][BATCH];
  SHARED float sums[WARPS][BATCH];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  u16* staged = (u16*)shared_memory();

  // The weights depend on nothing: they are on their way before the kernel that makes x is done.
  launch_dependents();
  Vec4 held[2 * CHUNK], coming[2 * CHUNK], rows[CHUNK], rows_coming[CHUNK];
  load_chunk(held, weights, blockIdx.x, 0, warp, lane);
  wait_for_dependencies();

  if (NORM != 0) stage_norm(staged, sums, (const float*)x, norm_weight, norm_bias);
  {% if combine %}stage_combined(staged, (const float*)x, statistics, positions);
  {% endif %}
  if (STAGED) block_barrier();
  else load_rows(rows, (const u16*)x, 0, warp, lane);

  // Thread i < 16 BATCH finishes row i % 16 of column i / 16.
  const int row_in_tile = threadIdx.x % 16, b = threadIdx.x / 16;
  const bool finishes = b < BATCH && row_in_tile < TILE_ROWS;
  float scale = 1.0f;
  if (NORM == 1 && finishes) {
    float square = 0.0f;
    for (int i = 0; i < WARPS; i++) square += sums[i][b];
    scale = rsqrtf(square / K + EPS);
  }
  float best = NEGATIVE_INFINITY;
  int best_row = 0;

  for (int tile = blockIdx.x, turn = 0; tile < TILES; tile += gridDim.x, turn ^= 1) {
    float sum[2][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      const bool last = chunk + 1 == CHUNKS;
      const int next_tile = last ? tile + gridDim.x : tile;
      const int next_chunk = last ? 0 : chunk + 1;
      if (next_tile < TILES) {
        load_chunk(coming, weights, next_tile, next_chunk, warp, lane);
        if (!STAGED) load_rows(rows_coming, (const u16*)x, next_chunk, warp, lane);
      }
#pragma unroll
      for (int i = 0; i < CHUNK; i++) {
        const int pair = warp + WARPS * (chunk * CHUNK + i);
        if (pair < PAIRS) {
          const Vec4 v = STAGED ? *(const Vec4*)(staged + (group % BATCH) * STAGE_STRIDE + 32 * pair + 8 * quad) : rows[i];
          mma_bf16(sum[0], held[2 * i], v.x, v.y);
          mma_bf16(sum[1], held[2 * i + 1], v.z, v.w);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * CHUNK; i++) held[i] = coming[i];
#pragma unroll
      for (int i = 0; i < CHUNK; i++) rows[i] = rows_coming[i];
    }

    // Columns repeat every BATCH: the first BATCH of the eight are written down.
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = 2 * quad + i;
      if (column < BATCH) {
        partial[turn][warp][group][column] = sum[0][i] + sum[1][i];
        partial[turn][warp][group + 8][column] = sum[0][i + 2] + sum[1][i + 2];
      }
    }
    block_barrier();
    if (finishes) {
      const Place place = place_of(tile, row_in_tile);
      float y = 0.0f, other = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS; i++) y += partial[turn][i][row_in_tile][b];
      y = y * scale + (bias ? bias[tile * 16 + row_in_tile] : 0.0f);
      if (GATED) {
#pragma unroll
        for (int i = 0; i < WARPS; i++) other += partial[turn][i][row_in_tile + 8][b];
        other = other * scale + (bias ? bias[tile * 16 + row_in_tile + 8] : 0.0f);
      }
      y = activate<ACTIVATION>(y);
      if (GATED) y *= other;
      if (place.row < ROWS[place.output]) {
        const int at = b * ROWS[place.output] + place.row;
        if (residual) y += residual[at];
        store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
        if (ARGMAX && y > best) best = y, best_row = place.row;
      }
    }
  }

  if (ARGMAX && threadIdx.x < (16 * BATCH + 31) / 32 * 32) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) {
      const float value = shuffle_xor(best, mask);
      const int row = shuffle_xor(best_row, mask);
      if (value > best || (value == best && row < best_row)) best = value, best_row = row;
    }
    if (finishes && row_in_tile == 0) {
      maxima[(b * gridDim.x + blockIdx.x) * 2] = bits_of(best);
      maxima[(b * gridDim.x + blockIdx.x) * 2 + 1] = best_row;
    }
  }
}
