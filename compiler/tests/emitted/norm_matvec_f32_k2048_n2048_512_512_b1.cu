// The device vocabulary: every built-in and every line of PTX that a kernel uses. host/vocabulary.h says the same in plain C++.
typedef unsigned short u16;  // a bfloat16 in memory
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(16) Vec4 { u32 x, y, z, w; };  // 16 bytes: eight bfloat16 or four floats

#ifdef FUSE_HOST
#include "vocabulary.h"
#else
#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define CONSTANT __constant__

extern __shared__ Vec4 dynamic_shared[];
DEVICE char* shared_memory() { return (char*)dynamic_shared; }
DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

// Programmatic dependent launch. Every thread of every kernel waits, so that a kernel's end implies the end of all before it.
DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
DEVICE void wait_for_dependencies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 16 bytes of a weight, read once. Volatile: it stays before the wait it was written before.
DEVICE Vec4 load_stream(const Vec4* p) {
  Vec4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 { %0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// A word that no kernel of this step writes, read before the wait.
DEVICE int load_early(const int* p) {
  int v;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

// d += A B for one 16x16 tile A in fragment order and eight columns of B, in fp32.
DEVICE void mma_bf16(float (&d)[4], const Vec4& a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %0, %1, %2, %3}, { %4, %5, %6, %7}, { %8, %9}, { %0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Two floats rounded to nearest even, `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u64 shuffle_up(u64 value, int delta) { return __shfl_up_sync(0xffffffffu, value, delta); }

DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE float sine_of(float angle) { return __sinf(angle); }      // |angle| <= pi
DEVICE float cosine_of(float angle) { return __cosf(angle); }    // |angle| <= pi
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }
DEVICE void atomic_add_shared(u32* p, u32 value) { atomicAdd(p, value); }
DEVICE void atomic_add_shared(u64* p, u64 value) { atomicAdd(p, value); }
// A word that the host polls in pinned memory.
DEVICE void publish(u32* p, u32 value) { asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory"); }
#endif

#define NEGATIVE_INFINITY float_of(0xff800000u)

DEVICE float bf16_low(u32 pair) { return float_of(pair << 16); }
DEVICE float bf16_high(u32 pair) { return float_of(pair & 0xffff0000u); }

DEVICE float load(const float* p) { return *p; }
DEVICE float load(const u16* p) { return float_of((u32)*p << 16); }
DEVICE void store(float* p, float value) { *p = value; }
DEVICE void store(u16* p, float value) { *p = (u16)pack_bf16(value, 0.0f); }

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

constexpr int SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, IDENTITY = 5;
template <int KIND>
DEVICE float activate(float x) {
  if (KIND == SILU) return x / (1.0f + expf(-x));
  if (KIND == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678118f));
  if (KIND == GELU_TANH) return 0.5f * x * (1.0f + tanhf(0.79788456080f * (x + 0.044715f * x * x * x)));
  if (KIND == RELU) return x > 0.0f ? x : 0.0f;
  if (KIND == RELU2) return x > 0.0f ? x * x : 0.0f;
  return x;
}
// norm_matvec_f32_k2048_n2048_512_512_b1: y = W f(x) for 1 rows of x, the warps of a block sharing the columns of a row tile. Reads W once.
// Packed weights. A tile is 16 rows by 16 columns, 512 bytes: lane l holds 16 bytes, its own mma.m16n8k16 A fragment. Two tiles make a
// pair of 32 columns, ordered so that lane l's share of a pair is columns 8 (l % 4) .. + 7 of rows l / 4 and l / 4 + 8: one 16-byte load
// of an activation row at column 8 (l % 4) is then the B fragment of both tiles. Rows and columns beyond the weight are zeros.
constexpr int K = 2048;                          // columns
constexpr int PAIRS = (K + 31) / 32;                      // pairs a row tile
constexpr int OUTPUTS = 3;              // weights packed one behind the other, each in its own row tiles
constexpr int ROWS[3] = { 2048, 512, 512 };   // rows of each
constexpr bool GATED = false;                 // a row tile is 8 rows of the gate above 8 rows of the other
constexpr int TILE_ROWS = GATED ? 8 : 16;                 // results a row tile
constexpr int TILES0 = (ROWS[0] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES1 = (ROWS[1] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES2 = (ROWS[2] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES = TILES0 + TILES1 + TILES2;           // row tiles in all
typedef float Out;                         // storage of the results

DEVICE const Vec4* tile_pointer(const Vec4* weights, int tile, int pair) { return weights + ((u64)tile * PAIRS + pair) * 64; }

// Eight consecutive bfloat16 of an activation row, zeros beyond K.
DEVICE Vec4 load_activations(const u16* row, int k) {
  Vec4 v = {0, 0, 0, 0};
  if (K % 8 == 0) {
    if (k < K) v = *(const Vec4*)(row + k);
  } else {
    u32 e[8];
#pragma unroll
    for (int i = 0; i < 8; i++) e[i] = k + i < K ? row[k + i] : 0;
    v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
  }
  return v;
}

// Where result `row` of a row tile goes: which output, and which of its rows. A row at or beyond ROWS[output] is padding.
struct Place { int output, row; };
DEVICE Place place_of(int tile, int row) {
  if (OUTPUTS > 2 && tile >= TILES0 + TILES1) return {2, (tile - TILES0 - TILES1) * TILE_ROWS + row};
  if (OUTPUTS > 1 && tile >= TILES0) return {1, (tile - TILES0) * TILE_ROWS + row};
  return {0, tile * TILE_ROWS + row};
}

constexpr int BATCH = 1;              // rows of x
constexpr int WARPS = 8;              // they take the pairs of a row tile in turn
constexpr int DEPTH = 8;              // pairs of weights a warp has in flight
constexpr int NORM = 1;                // 0 none, 1 rms_norm, 2 layer_norm of x, which is then fp32
constexpr float EPS = 1e-5f;
constexpr bool COMBINE = false;         // x is what the blocks of a split attention left
constexpr bool STAGED = true;           // x goes through shared memory as bfloat16
constexpr int HEADS = 1, HEAD_DIM = 1;   // of that attention
constexpr int ACTIVATION = 5;
constexpr bool ARGMAX = false;           // also leave each block's largest result and its row
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



// weights: packed tiles. x: fp32 [BATCH][K] under a norm, bfloat16 [BATCH][K] without, or [SPLITS][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][ROWS]: null where absent. maxima: [BATCH][gridDim.x] value, row.
KERNEL void __launch_bounds__(THREADS) norm_matvec_f32_k2048_n2048_512_512_b1(const Vec4* weights, const void* x, const float* norm_weight, const float* norm_bias,
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
  
  wait_for_dependencies();

  if (NORM != 0) stage_norm(staged, sums, (const float*)x, w, norm_bias);
  
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