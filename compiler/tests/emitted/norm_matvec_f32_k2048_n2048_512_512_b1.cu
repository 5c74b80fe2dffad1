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
constexpr int CHUNK = 4;              // pairs a warp holds in registers while the next ones arrive
constexpr int NORM = 1;                // 0 none, 1 rms_norm, 2 layer_norm of x, which is then fp32
constexpr float EPS = 1e-5f;
constexpr bool COMBINE = false;         // x is what the blocks of a split attention left
constexpr int HEADS = 1, HEAD_DIM = 1;   // of that attention
constexpr int ACTIVATION = 5;
constexpr bool ARGMAX = false;           // also leave each block's largest result and its row
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



// weights: packed tiles. x: fp32 [BATCH][K] under a norm, bfloat16 [BATCH][K] without, or [SPLITS][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][ROWS]: null where absent. maxima: [BATCH][gridDim.x] value, row.
KERNEL void __launch_bounds__(THREADS) norm_matvec_f32_k2048_n2048_512_512_b1(const Vec4* weights, const void* x, const float* norm_weight, const float* norm_bias,
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