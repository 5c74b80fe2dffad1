{% include "device.cuh" %}
// {{ name }}: y = W f(x) for {{ batch }} rows of x, the warps of a block sharing the columns of a row tile. Reads W once.
{% include "tiles.cuh" %}
{% if combine %}{% include "splits.cuh" %}
{% endif %}
constexpr int BATCH = {{ batch }};              // rows of x
constexpr int WARPS = {{ warps }};              // they take the pairs of a row tile in turn
constexpr int DEPTH = {{ depth }};              // pairs of weights a warp has in flight
constexpr int NORM = {{ norm }};                // 0 none, 1 rms_norm, 2 layer_norm of x, which is then fp32
constexpr float EPS = {{ eps }};
constexpr bool COMBINE = {{ combine }};         // x is what the blocks of a split attention left
constexpr bool STAGED = {{ staged }};           // x goes through shared memory as bfloat16
constexpr int HEADS = {{ heads }}, HEAD_DIM = {{ head_dim }};   // of that attention
constexpr int ACTIVATION = {{ activation }};
constexpr bool ARGMAX = {{ argmax }};           // also leave each block's largest result and its row
constexpr int THREADS = 32 * WARPS;
constexpr int SHARE = (PAIRS + WARPS - 1) / WARPS;               // pairs of a row tile that a warp takes
// Under a norm x is two bfloat16 a value, what rounding keeps and what it leaves: two columns of the product where eight have room for
// them, else two rounds.
constexpr bool PAIRED = NORM != 0;
constexpr int ROUNDS = PAIRED && 2 * BATCH > 8 ? 2 : 1;
constexpr int COLUMNS = PAIRED && ROUNDS == 1 ? 2 * BATCH : BATCH;
constexpr int STAGE_STRIDE = PAIRS * 32 + 32;                    // 64 bytes more than a row: rows fall into other banks
constexpr int PASSES = (PAIRS * 32 + 8 * THREADS - 1) / (8 * THREADS);   // eights of x a thread brings to shared memory
static_assert(BATCH >= 1 && BATCH <= 8 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");
static_assert(16 * BATCH <= THREADS, "one thread a result");
static_assert(STAGED || (NORM == 0 && !COMBINE), "what is computed on the way passes through shared memory");

// The pairs of a warp, tile after tile: where the next loads come from.
struct Cursor {
  const Vec4* at;
  int tile, turn;
};

DEVICE Cursor first_pair(const Vec4* weights, int warp, int lane) {
  return {tile_pointer(weights, blockIdx.x, warp) + lane, (int)blockIdx.x, 0};
}

// Starts the loads of one pair and steps to the next.
DEVICE void load_pair(Vec4 (&pair)[2], Cursor& cursor, const Vec4* weights, int warp, int lane) {
  if (cursor.tile < TILES && (PAIRS % WARPS == 0 || warp + WARPS * cursor.turn < PAIRS)) {
    pair[0] = load_stream(cursor.at);
    pair[1] = load_stream(cursor.at + 32);
  }
  cursor.at += WARPS * 64;
  if (++cursor.turn == SHARE) {
    cursor.turn = 0;
    cursor.tile += gridDim.x;
    cursor.at = tile_pointer(weights, cursor.tile, warp) + lane;
  }
}

// Eight consecutive floats, zeros beyond K. EARLY: of a weight, before the wait.
template <bool EARLY>
DEVICE void load_floats(float (&v)[8], const float* row, int k) {
  if (K % 4 == 0) {
#pragma unroll
    for (int h = 0; h < 8; h += 4) {
      const Vec4* at = (const Vec4*)(row + k + h);
      Vec4 four = {0, 0, 0, 0};
      if (k + h < K) four = EARLY ? load_stream(at) : *at;
      v[h] = float_of(four.x), v[h + 1] = float_of(four.y), v[h + 2] = float_of(four.z), v[h + 3] = float_of(four.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i >= K ? 0.0f : EARLY ? float_of((u32)load_early((const int*)row + k + i)) : row[k + i];
  }
}

DEVICE Vec4 store_eight(u16* at, const float (&v)[8]) {
  return *(Vec4*)at = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// Eight values rounded, and BATCH rows further on what the rounding left.
DEVICE void store_pair(u16* at, const float (&v)[8]) {
  const Vec4 kept = store_eight(at, v);
  const float left[8] = {v[0] - bf16_low(kept.x), v[1] - bf16_high(kept.x), v[2] - bf16_low(kept.y), v[3] - bf16_high(kept.y),
                         v[4] - bf16_low(kept.z), v[5] - bf16_high(kept.z), v[6] - bf16_low(kept.w), v[7] - bf16_high(kept.w)};
  store_eight(at + BATCH * STAGE_STRIDE, left);
}

// The sum of one value a thread over the block, in the order of the warps.
DEVICE float block_total(float value, float (&sums)[WARPS][BATCH]) {
  value = warp_sum(value);
  block_barrier();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][0] = value;
  block_barrier();
  float total = 0.0f;
  for (int i = 0; i < WARPS; i++) total += sums[i][0];
  block_barrier();
  return total;
}

// x · w into shared memory, and the warp's part of what the norm divides by. RMS is applied to the products, which are linear in it.
// The loads of two rows go out together.
DEVICE void stage_norm(u16* staged, float (&sums)[WARPS][BATCH], const float* x, const float (&w)[PASSES][8], const float* bias) {
  constexpr int ROWS_AT_ONCE = BATCH > 1 && NORM == 1 ? 2 : 1;
#pragma unroll
  for (int first = 0; first < BATCH; first += ROWS_AT_ONCE) {
    float mean = 0.0f, scale = 1.0f, square[ROWS_AT_ONCE] = {};
    if (NORM == 2) {
      const float* row = x + first * K;
      float sum = 0.0f, squares = 0.0f;
      for (int k = threadIdx.x; k < K; k += THREADS) sum += row[k];
      mean = block_total(sum, sums) / K;
      for (int k = threadIdx.x; k < K; k += THREADS) squares += (row[k] - mean) * (row[k] - mean);
      scale = rsqrtf(block_total(squares, sums) / K + EPS);
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      const int k = 8 * (threadIdx.x + THREADS * pass);
      if (k >= PAIRS * 32) break;
      float v[ROWS_AT_ONCE][8];
#pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) load_floats<false>(v[r], x + (first + r) * K, k);
#pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          square[r] += v[r][i] * v[r][i];
          v[r][i] = (NORM == 2 ? (v[r][i] - mean) * scale : v[r][i]) * w[pass][i];
          if (bias && k + i < K) v[r][i] += bias[k + i];
        }
        store_pair(staged + (first + r) * STAGE_STRIDE + k, v[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE && NORM == 1; r++) {
      square[r] = warp_sum(square[r]);
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][first + r] = square[r];
    }
  }
}

{% if combine %}
// The softmax-weighted mean of the splits, in their order; the loads of four splits go out together. Eights of columns lie in one head, or
// are taken one by one.
constexpr int RUN = HEAD_DIM % 8 == 0 ? 8 : 1;
constexpr int TOGETHER = SPLITS < 4 ? SPLITS : 4;

DEVICE void load_run(float (&v)[RUN], const float* from) {
  if (RUN == 8) {
#pragma unroll
    for (int h = 0; h < RUN; h += 4) {
      const Vec4 four = *(const Vec4*)(from + h);
      v[h] = float_of(four.x), v[(h + 1) % RUN] = float_of(four.y), v[(h + 2) % RUN] = float_of(four.z), v[(h + 3) % RUN] = float_of(four.w);
    }
  } else {
    v[0] = from[0];
  }
}

DEVICE void stage_combined(u16* staged, const float* partial, const float* statistics, const int* splits_of) {
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    const int splits = splits_of[b];
    for (int k = 8 * threadIdx.x; k < PAIRS * 32; k += 8 * THREADS) {
      float v[8];
#pragma unroll
      for (int run = 0; run < 8; run += RUN) {
        float largest = NEGATIVE_INFINITY, total = 0.0f, sum[RUN] = {};
        const int head = (k + run) / HEAD_DIM;
        const bool inside = k + run < K;
        for (int first = 0; first < splits && inside; first += TOGETHER) {
          float score[TOGETHER], weight[TOGETHER], values[TOGETHER][RUN];
#pragma unroll
          for (int s = 0; s < TOGETHER; s++) {
            const int at = (first + s) * BATCH + b;
            score[s] = NEGATIVE_INFINITY, weight[s] = 0.0f;
            if (first + s < splits) {
              score[s] = statistics[(at * HEADS + head) * 2], weight[s] = statistics[(at * HEADS + head) * 2 + 1];
              load_run(values[s], partial + (u64)at * K + k + run);
            }
          }
#pragma unroll
          for (int s = 0; s < TOGETHER; s++) {
            if (first + s >= splits) break;
            const float peak = fmaxf(largest, score[s]), keep = exp2f(largest - peak), take = exp2f(score[s] - peak);
            largest = peak;
            total = total * keep + take * weight[s];
#pragma unroll
            for (int i = 0; i < RUN; i++) sum[i] = sum[i] * keep + take * values[s][i];
          }
        }
#pragma unroll
        for (int i = 0; i < RUN; i++) v[run + i] = inside && splits > 0 ? sum[i] / total : 0.0f;
      }
      store_eight(staged + b * STAGE_STRIDE + k, v);
    }
  }
}
{% endif %}

// weights: packed tiles. x: fp32 [BATCH][K] under a norm, bfloat16 [BATCH][K] without, or [SPLITS][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][ROWS]: null where absent. maxima: [BATCH][gridDim.x] value, row.
KERNEL void __launch_bounds__(THREADS) {{ name }}(const Vec4* weights, const void* x, const float* norm_weight, const float* norm_bias,
    const float* bias, const float* residual, Out* out0, Out* out1, Out* out2, const float* statistics, const int* positions, u32* maxima) {
  SHARED float partial[2][WARPS][16][COLUMNS];
  SHARED float sums[WARPS][BATCH];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  u16* staged = (u16*)shared_memory();

  // The weights depend on nothing: they are on their way before the kernel that makes x is done. Nor do positions within a step.
  launch_dependents();
  Vec4 held[DEPTH][2];
  Cursor cursor = first_pair(weights, warp, lane);
#pragma unroll
  for (int i = 0; i < DEPTH; i++) load_pair(held[i], cursor, weights, warp, lane);
  float w[PASSES][8];
  if (NORM != 0) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
      for (int i = 0; i < 8; i++) w[pass][i] = 1.0f;
      if (norm_weight) load_floats<true>(w[pass], norm_weight, 8 * (threadIdx.x + THREADS * pass));
    }
  }
  {% if combine %}int splits_of[BATCH];
#pragma unroll
  for (int i = 0; i < BATCH; i++) splits_of[i] = active_splits(load_early(positions + i));
  {% endif %}
  wait_for_dependencies();

  if (NORM != 0) stage_norm(staged, sums, (const float*)x, w, norm_bias);
  {% if combine %}stage_combined(staged, (const float*)x, statistics, splits_of);
  {% endif %}
  if (STAGED && NORM == 0 && !COMBINE) {
#pragma unroll
    for (int b = 0; b < BATCH; b++)
      for (int k = 8 * threadIdx.x; k < PAIRS * 32; k += 8 * THREADS)
        *(Vec4*)(staged + b * STAGE_STRIDE + k) = load_activations((const u16*)x + b * K, k);
  }
  if (STAGED) block_barrier();

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

  // The warp goes through its pairs in a ring of DEPTH. A row tile ends after SHARE of them, wherever in the ring that is.
  float sum[2][4] = {};
  int tile = blockIdx.x, turn = 0, parity = 0;
  while (tile < TILES) {
#pragma unroll
    for (int slot = 0; slot < DEPTH; slot++) {
      if (tile >= TILES) break;
      const int pair = warp + WARPS * turn;
      if (PAIRS % WARPS == 0 || pair < PAIRS) {
        const int k = 32 * pair + 8 * quad;
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
          const int row = group % COLUMNS + round * BATCH;
          const Vec4 v = STAGED ? *(const Vec4*)(staged + row * STAGE_STRIDE + k) : load_activations((const u16*)x + row * K, k);
          mma_bf16(sum[0], held[slot][0], v.x, v.y);
          mma_bf16(sum[1], held[slot][1], v.z, v.w);
        }
      }
      load_pair(held[slot], cursor, weights, warp, lane);
      if (++turn < SHARE) continue;

      // Columns repeat every COLUMNS: the first COLUMNS of the eight are written down.
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int column = 2 * quad + i;
        if (column < COLUMNS) {
          partial[parity][warp][group][column] = sum[0][i] + sum[1][i];
          partial[parity][warp][group + 8][column] = sum[0][i + 2] + sum[1][i + 2];
        }
      }
      const Place place = place_of(tile, row_in_tile);
      const bool writes = finishes && place.row < ROWS[place.output];
      const int at = b * ROWS[place.output] + place.row;
      float add = 0.0f, bias_low = 0.0f, bias_high = 0.0f;
      if (writes && residual) add = residual[at];
      if (writes && bias) bias_low = bias[tile * 16 + row_in_tile];
      if (writes && bias && GATED) bias_high = bias[tile * 16 + row_in_tile + 8];
      block_barrier();
      if (writes) {
        float y = 0.0f, other = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++)
#pragma unroll
          for (int c = b; c < COLUMNS; c += BATCH) y += partial[parity][i][row_in_tile][c];
        if (GATED) {
#pragma unroll
          for (int i = 0; i < WARPS; i++)
#pragma unroll
            for (int c = b; c < COLUMNS; c += BATCH) other += partial[parity][i][row_in_tile + 8][c];
        }
        y = activate<ACTIVATION>(y * scale + bias_low);
        if (GATED) y *= other * scale + bias_high;
        y += add;
        store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
        if (ARGMAX && y > best) best = y, best_row = place.row;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) sum[0][i] = sum[1][i] = 0.0f;
      turn = 0, parity ^= 1, tile += gridDim.x;
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
