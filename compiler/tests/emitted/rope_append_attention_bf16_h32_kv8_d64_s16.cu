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

// A value that the launch before the last wrote, read before the wait: for kernels behind one that launches its dependents after its own
// wait, so that all in front of it have ended. From L2: L1 may hold what was there before.
DEVICE float load_settled(const float* p) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
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
DEVICE u32 ballot(bool value) { return __ballot_sync(0xffffffffu, value); }   // bit l: lane l's value
DEVICE int warp_max(int value) {
  int most;
  asm volatile("redux.sync.max.s32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(value));
  return most;
}
DEVICE int warp_min(int value) {
  int least;
  asm volatile("redux.sync.min.s32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(value));
  return least;
}
DEVICE int count_bits(u32 value) { return __popc(value); }
DEVICE u64 shuffle_up(u64 value, int delta) { return __shfl_up_sync(0xffffffffu, value, delta); }

DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE float power_of_two(float exponent) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
  return value;
}
DEVICE float sine_of(float angle) { return __sinf(angle); }      // |angle| <= pi
DEVICE float cosine_of(float angle) { return __cosf(angle); }    // |angle| <= pi
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }
DEVICE void atomic_add_shared(u32* p, u32 value) { atomicAdd(p, value); }
DEVICE void atomic_add_shared(u64* p, u64 value) { atomicAdd(p, value); }
// Adds to a float in memory, in no order.
DEVICE void accumulate(float* p, float value) { asm volatile("red.global.add.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory"); }
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
// rope_append_attention_bf16_h32_kv8_d64_s16: causal attention of a few query heads that share a key head, for one row. The keys of a row are split over blocks.
// How many blocks share the keys of one head, from the live length. The attention kernel and the projection that combines agree on it.
constexpr int SPLITS = 16;          // blocks a key head at most
constexpr int SPLIT_KEYS = 64;     // keys that make a further block worth its while
constexpr int WINDOW = 0;       // keys a token sees; 0: all

DEVICE int first_key(int position) { return WINDOW > 0 && position + 1 > WINDOW ? position + 1 - WINDOW : 0; }
DEVICE int active_splits(int position) {
  int splits = (position + 1 - first_key(position) + SPLIT_KEYS - 1) / SPLIT_KEYS;
  return splits < SPLITS ? splits : SPLITS;
}
// Rotary position embedding of one head. Needs ROPE_DIM, ROPE_INTERLEAVED, ROPE_MAGNITUDE, and ROPE_FREQUENCIES.
CONSTANT float ROPE_FREQUENCIES[] = { 1.0f, 0.6636012f, 0.4403666f, 0.29222783f, 0.19392274f, 0.12868737f, 0.0853971f, 0.056669623f, 0.03760603f, 0.024955409f, 0.01656044f, 0.010989528f, 0.0072926646f, 0.0048394212f, 0.003211446f, 0.0012905479f, 0.0004295568f, 9.708288e-5f, 1.9461639e-5f, 1.29147675e-5f, 8.570256e-6f, 5.6872323e-6f, 3.7740542e-6f, 2.5044671e-6f, 1.6619674e-6f, 1.1028836e-6f, 7.31875e-7f, 4.856731e-7f, 3.222933e-7f, 2.1387423e-7f, 1.419272e-7f, 9.4183065e-8f };
constexpr int ROPE_DIM = 64;                    // values of a head that rotate; 0: none
constexpr bool ROPE_INTERLEAVED = false;   // pairs (2i, 2i+1), else (i, i + ROPE_DIM/2)
constexpr float ROPE_MAGNITUDE = 1.0f;

// Cosine and sine of `position` times a frequency. The product is rounded to fp32 first, as checkpoints were trained.
DEVICE void rope_rotation(int position, int pair, float& cosine, float& sine) {
  float angle = (float)position * ROPE_FREQUENCIES[pair];
  float turns = rintf(angle * 0.15915494309f);
  float rest = fmaf(-turns, 6.2831854820251465f, angle);
  rest = fmaf(-turns, -1.7484556000744487e-7f, rest);
  cosine = ROPE_MAGNITUDE * cosine_of(rest);
  sine = ROPE_MAGNITUDE * sine_of(rest);
}

// Element `i` of the rotated head. `at(i)` reads the head before rotation, `turn(pair, cosine, sine)` gives the rotation of a pair.
template <typename At, typename Turn>
DEVICE float roped(At at, int i, Turn turn) {
  if (i >= ROPE_DIM) return at(i);
  const int half = ROPE_DIM / 2;
  const int pair = ROPE_INTERLEAVED ? i / 2 : i % half;
  const bool second = ROPE_INTERLEAVED ? i % 2 == 1 : i >= half;
  const int partner = ROPE_INTERLEAVED ? i ^ 1 : (second ? i - half : i + half);
  float cosine, sine;
  turn(pair, cosine, sine);
  return second ? at(i) * cosine + at(partner) * sine : at(i) * cosine - at(partner) * sine;
}
constexpr int HEADS = 32;              // query heads
constexpr int KEY_HEADS = 8;
constexpr int HEAD_DIM = 64;
constexpr int GROUP = 4;              // query heads a block takes; they share a key head
constexpr int WARPS = 8;
constexpr float SCALE = 0.125f;            // multiplies q · k
constexpr float SOFTCAP = 0.0f;        // cap · tanh(score / cap); 0: none
constexpr bool APPEND = true;           // normalise, rotate and store this row's key and value first
constexpr bool NORM = false;               // rms_norm of each head of q and k, before the rotation; under APPEND
constexpr float EPS_Q = 0.0f, EPS_K = 0.0f;
constexpr bool SINKS = false;             // a logit a head that takes part in the softmax and adds no value
typedef float Out;                     // SPLITS > 1: fp32 sums to be combined; else the result
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int LANES = PADDED <= 8 ? 1 : PADDED <= 16 ? 2 : PADDED <= 32 ? 4 : PADDED <= 64 ? 8 : PADDED <= 128 ? 16 : 32;   // lanes a key
constexpr int STREAMS = WARPS * 32 / LANES;     // keys the block looks at in one go
constexpr int THREADS = 32 * WARPS;
constexpr int PER_LANE = (PADDED + 31) / 32;    // values of a head a lane loads
constexpr int GROUPS = HEADS / KEY_HEADS / GROUP;   // blocks that share a key head
constexpr float LOG2E = 1.4426950408889634f;
static_assert(PADDED <= 256, "a lane holds 8 values of a head");
static_assert(HEADS % KEY_HEADS == 0 && HEADS / KEY_HEADS % GROUP == 0, "groups are whole");

DEVICE void unpack(float (&f)[8], const Vec4& v) {
  f[0] = bf16_low(v.x), f[1] = bf16_high(v.x), f[2] = bf16_low(v.y), f[3] = bf16_high(v.y);
  f[4] = bf16_low(v.z), f[5] = bf16_high(v.z), f[6] = bf16_low(v.w), f[7] = bf16_high(v.w);
}

// What turns a head and weighs it, the same for all heads: made before the wait.
struct Prepared {
  float turns[ROPE_DIM / 2 + 1][2];   // cosine and sine of a pair
  float weights[2][HEAD_DIM];         // of the norms of q and k
};

// One head, normalised and rotated, one warp a head. `take(i, value)` is given each element up to PADDED; `raw` is scratch of the warp.
template <typename Take>
DEVICE void load_head(Take take, float* raw, const float* from, const float* weights, float eps, const Prepared& prepared, bool transform) {
  const int lane = threadIdx.x % 32;
  float value[PER_LANE], square = 0.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++) {
    const int i = lane + 32 * j;
    value[j] = i < HEAD_DIM ? from[i] : 0.0f;
    square += value[j] * value[j];
  }
  const float scale = transform && NORM ? rsqrtf(warp_sum(square) / HEAD_DIM + eps) : 1.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++) {
    const int i = lane + 32 * j;
    if (i < HEAD_DIM) raw[i] = transform && NORM ? value[j] * scale * weights[i] : value[j];
  }
  warp_barrier();
  const auto turn = [&](int pair, float& cosine, float& sine) { cosine = prepared.turns[pair][0], sine = prepared.turns[pair][1]; };
#pragma unroll 1
  for (int i = lane; i < PADDED; i += 32)
    take(i, i >= HEAD_DIM ? 0.0f : transform ? roped([&](int j) { return raw[j]; }, i, turn) : raw[i]);
  warp_barrier();
}

// What a lane holds of a stream's key and value, of the STREAMS from `base` on. A key this step makes is in shared memory only.
DEVICE void load_key(Vec4& key, Vec4& value, const u16* keys_at, const u16* values_at, int base, int end, int position) {
  const int part = threadIdx.x % 32 % LANES, at = base + (int)threadIdx.x / LANES;
  key = value = {0, 0, 0, 0};
  if (at < end && 8 * part < PADDED && !(APPEND && at == position)) {
    const u64 offset = (u64)at * PADDED + 8 * part;
    key = APPEND ? load_stream((const Vec4*)(keys_at + offset)) : *(const Vec4*)(keys_at + offset);
    value = APPEND ? load_stream((const Vec4*)(values_at + offset)) : *(const Vec4*)(values_at + offset);
  }
}

// q [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM] (null unless APPEND), fp32. Caches: bfloat16
// [sequence][KEY_HEADS][context][PADDED]. positions, sequences [rows]; a row at position -1 is skipped.
// out: [SPLITS][rows][HEADS][HEAD_DIM] and statistics [SPLITS][rows][HEADS][2], the largest score (in powers of two) and the sum
// of the weights; or, with one split, the result [rows][HEADS][HEAD_DIM]. zeros: `zero_count` floats that are set to zero. Grid: KEY_HEADS * GROUPS, SPLITS, rows.
KERNEL void __launch_bounds__(THREADS) rope_append_attention_bf16_h32_kv8_d64_s16(const float* q, const float* k, const float* v, u16* key_cache, u16* value_cache,
    const int* positions, const int* sequences, const float* q_weight, const float* k_weight, const float* sinks, Out* out,
    float* statistics, u64 context, float* zeros, u64 zero_count) {
  SHARED float queries[GROUP][PADDED];
  SHARED Vec4 fresh[2][PADDED / 8];             // this step's key and value, as the cache has them
  SHARED float merged[STREAMS][GROUP][PADDED];   // before that, scratch of the warps that prepare heads
  SHARED float peaks[GROUP][STREAMS], totals[GROUP][STREAMS], group_statistics[GROUP][2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key_head = blockIdx.x / GROUPS, first_head = blockIdx.x * GROUP;
  const int split = blockIdx.y, row = blockIdx.z, rows = gridDim.z;

  // Positions and, under APPEND, all keys but the newest are from steps before: they are on their way before q is.
  launch_dependents();
  const int position = load_early(positions + row);
  const int splits = active_splits(position);
  const int first = first_key(position), keys = position + 1 - first;
  const int share = splits > 0 ? (keys + splits - 1) / splits : 0;
  const int begin = first + split * share;
  const int end = split >= splits ? begin : begin + share < position + 1 ? begin + share : position + 1;
  const u64 cache_row = ((u64)load_early(sequences + row) * KEY_HEADS + key_head) * context * PADDED;
  u16* keys_at = key_cache + cache_row;
  u16* values_at = value_cache + cache_row;
  Vec4 key[2], value[2];
  const auto load_first = [&]() {
#pragma unroll
    for (int i = 0; i < 2; i++) load_key(key[i], value[i], keys_at, values_at, begin + i * STREAMS, end, position);
  };
  SHARED Prepared prepared;
  if (APPEND) {
    load_first();
    for (int pair = threadIdx.x; pair < ROPE_DIM / 2; pair += THREADS)
      rope_rotation(position, pair, prepared.turns[pair][0], prepared.turns[pair][1]);
    for (int i = threadIdx.x; i < HEAD_DIM && NORM; i += THREADS) {
      prepared.weights[0][i] = q_weight ? float_of(load_early((const int*)q_weight + i)) : 1.0f;
      prepared.weights[1][i] = k_weight ? float_of(load_early((const int*)k_weight + i)) : 1.0f;
    }
    block_barrier();
  }
  wait_for_dependencies();
  const u64 block = blockIdx.x + gridDim.x * (split + gridDim.y * row);
  for (u64 i = block * THREADS + threadIdx.x; i < zero_count; i += (u64)gridDim.x * gridDim.y * rows * THREADS) zeros[i] = 0.0f;
  if (split >= splits) return;
  if (!APPEND) load_first();

  // The split that holds the newest key stores it. Blocks of one key head store the same bytes. A split may be left without keys: it has to
  // say so, as it will be combined.
  const bool newest = APPEND && begin < end && end == position + 1;
  for (int job = warp; job < GROUP + 2 * newest; job += WARPS) {
    const bool is_query = job < GROUP, is_key = job == GROUP;
    const float* from = is_query ? q + ((u64)row * HEADS + first_head + job) * HEAD_DIM : (is_key ? k : v) + ((u64)row * KEY_HEADS + key_head) * HEAD_DIM;
    u16* to = (u16*)fresh[is_key ? 0 : 1];
    u16* cached = (is_key ? keys_at : values_at) + (u64)position * PADDED;
    const auto take = [&](int i, float value) {
      if (is_query) queries[job][i] = value;
      else store(to + i, value), store(cached + i, value);
    };
    load_head(take, merged[warp][0], from, prepared.weights[is_query ? 0 : 1], is_query ? EPS_Q : EPS_K, prepared, APPEND && (is_query || is_key));
  }
  block_barrier();

  // Each stream of LANES lanes takes every STREAMS-th key; a lane holds 8 values of q, k, v and of the sum for each head.
  const int part = lane % LANES, stream = threadIdx.x / LANES;
  const bool holds = 8 * part < PADDED;
  float query[GROUP][8], sum[GROUP][8] = {}, largest[GROUP], total[GROUP];
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    largest[h] = NEGATIVE_INFINITY, total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) query[h][i] = holds ? queries[h][8 * part + i] * (SOFTCAP > 0.0f ? SCALE : SCALE * LOG2E) : 0.0f;
  }
#pragma unroll 1
  for (int base = begin; base < end; base += STREAMS) {
    const int at = base + stream;
    const bool live = at < end;
    if (newest && at == position && holds) key[0] = fresh[0][part], value[0] = fresh[1][part];
    float k8[8], v8[8];
    unpack(k8, key[0]);
    unpack(v8, value[0]);
    key[0] = key[1], value[0] = value[1];
    load_key(key[1], value[1], keys_at, values_at, base + 2 * STREAMS, end, position);
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; i++) score += query[h][i] * k8[i];
#pragma unroll
      for (int mask = LANES / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
      if (SOFTCAP > 0.0f) score = SOFTCAP * tanhf(score / SOFTCAP) * LOG2E;
      if (live) {
        const float peak = fmaxf(largest[h], score);
        const float keep = power_of_two(largest[h] - peak), weight = power_of_two(score - peak);
        largest[h] = peak;
        total[h] = total[h] * keep + weight;
#pragma unroll
        for (int i = 0; i < 8; i++) sum[h][i] = sum[h][i] * keep + weight * v8[i];
      }
    }
  }

  // Streams merge through shared memory in their order: a warp a head weighs them, then a thread a value adds them up.
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    if (holds) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const Vec4 four = {bits_of(sum[h][i]), bits_of(sum[h][i + 1]), bits_of(sum[h][i + 2]), bits_of(sum[h][i + 3])};
        *(Vec4*)&merged[stream][h][8 * part + i] = four;
      }
    }
    if (part == 0) peaks[h][stream] = largest[h], totals[h][stream] = total[h];
  }
  block_barrier();
  for (int h = warp; h < GROUP; h += WARPS) {
    float peak = NEGATIVE_INFINITY, weights = 0.0f;
    for (int s = lane; s < STREAMS; s += 32) peak = fmaxf(peak, peaks[h][s]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) peak = fmaxf(peak, shuffle_xor(peak, mask));
    const bool sink = SINKS && split == 0;
    if (sink) peak = fmaxf(peak, sinks[first_head + h] * LOG2E);
    for (int s = lane; s < STREAMS; s += 32) {
      const float weight = peaks[h][s] == NEGATIVE_INFINITY ? 0.0f : power_of_two(peaks[h][s] - peak);
      weights += weight * totals[h][s];
      peaks[h][s] = weight;
    }
    weights = warp_sum(weights);
    if (sink) weights += power_of_two(sinks[first_head + h] * LOG2E - peak);
    if (lane == 0) group_statistics[h][0] = peak, group_statistics[h][1] = weights;
  }
  block_barrier();
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM, d = i % HEAD_DIM;
    const u64 at = ((u64)split * rows + row) * HEADS + first_head + h;
    float value = 0.0f;
#pragma unroll 8
    for (int s = 0; s < STREAMS; s++) value += peaks[h][s] * merged[s][h][d];
    if (SPLITS > 1) {
      store(out + at * HEAD_DIM + d, value);
      if (d == 0) statistics[at * 2] = group_statistics[h][0], statistics[at * 2 + 1] = group_statistics[h][1];
    } else {
      store(out + at * HEAD_DIM + d, value / group_statistics[h][1]);
    }
  }
}