// The device vocabulary: every built-in and every line of PTX that a kernel uses. host/vocabulary.h says the same in plain C++.
typedef unsigned short u16;  // a bfloat16 in memory
typedef unsigned int u32;
typedef unsigned long long u64;
// An activation in memory as IEEE half precision: a sixteenth of its value.
struct f16 {
  u16 bits;
};
// 16 bytes: eight bfloat16 or four floats.
struct alignas(16) Vec4 {
  u32 x, y, z, w;
};

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

#if __CUDA_ARCH__ >= 900
// Blocks of a cluster run together and read each other's shared memory.
#define CLUSTER_OF(blocks) __cluster_dims__(blocks, 1, 1)
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// A block may access the shared memory of another once both have started: the first signals it, the second waits for all. They order no accesses.
DEVICE void cluster_begin() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
DEVICE void cluster_join() { asm volatile("barrier.cluster.wait.aligned;"); }
// The address in block `rank` of the cluster of what this block has at `p`.
DEVICE u32 place_in_peer(const void* p, int rank) {
  u32 at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((u32)__cvta_generic_to_shared(p)), "r"(rank));
  return at;
}
DEVICE float load_peer(const float* p, int rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(place_in_peer(p, rank)));
  return value;
}
DEVICE int load_peer(const int* p, int rank) {
  int value;
  asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(value) : "r"(place_in_peer(p, rank)));
  return value;
}
DEVICE u32 load_peer(const u32* p, int rank) { return (u32)load_peer((const int*)p, rank); }
DEVICE u64 load_peer(const u64* p, int rank) {
  u64 value;
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(place_in_peer(p, rank)));
  return value;
}
DEVICE void store_peer(float* p, float value, int rank) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(place_in_peer(p, rank)), "f"(value) : "memory");
}
DEVICE void store_peer(u32* p, u32 value, int rank) { asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(place_in_peer(p, rank)), "r"(value) : "memory"); }
DEVICE void store_peer(u64* p, u64 value, int rank) { asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(place_in_peer(p, rank)), "l"(value) : "memory"); }
// Asynchronous bulk copies of weights into shared memory. One thread says how many bytes the mbarrier `arrived` expects, and starts the copies; all
// threads wait for them after a block_barrier.
DEVICE void expect(u64* arrived, u32 bytes) {
  const u32 at = (u32)__cvta_generic_to_shared(arrived);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
DEVICE void copy_bulk(Vec4* to, const Vec4* from, u32 bytes, u64* arrived) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
               "r"(bytes), "r"((u32)__cvta_generic_to_shared(arrived))
               : "memory");
}
DEVICE void await(const u64* arrived) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"((u32)__cvta_generic_to_shared(arrived))
                 : "memory");
  } while (!done);
}
#endif

// Programmatic dependent launch. Blocks of every kernel wait, so that a kernel's end implies the end of all before it.
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

DEVICE u64 load_stream(const u64* p) {
  u64 v;
  asm volatile("ld.global.nc.L1::no_allocate.u64 %0, [%1];" : "=l"(v) : "l"(p));
  return v;
}

// 16 bytes, loaded at this place in the code: a load that the compiler moves up occupies registers for longer.
DEVICE Vec4 load_here(const Vec4* p) {
  Vec4 v;
  asm volatile("ld.global.v4.u32 { %0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// Brings a word's line to L1.
DEVICE void load_and_forget(const float* p) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
}

// 16 bytes from global to shared memory while the thread goes on: visible to it after await_copies, to others after a barrier that follows.
DEVICE void copy_async(Vec4* to, const Vec4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
DEVICE void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 tiles of bfloat16 in shared memory, transposed, as B fragments: lane 8 i + r has the address of row r of tile i, whose rows are the
// fragment's rows k.
DEVICE Vec4 load_transposed(const Vec4* row) {
  Vec4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 { %0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"((u32)__cvta_generic_to_shared(row)));
  return v;
}

// A word that no kernel of this step writes, read before the wait.
DEVICE int load_early(const int* p) {
  int v;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

// A value that the launch before the last wrote, read before the wait: for kernels after one that launches its dependents after its own
// wait, so that all before that one have ended. From L2: L1 may hold an older value.
DEVICE float load_settled(const float* p) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}

DEVICE u64 load_settled(const u64* p) {
  u64 v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p));
  return v;
}

// d += A B for one 16x16 tile A in fragment order and eight columns of B, in fp32.
DEVICE void mma_bf16(float (&d)[4], const Vec4& a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %0, %1, %2, %3}, { %4, %5, %6, %7}, { %8, %9}, { %0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The same for IEEE half precision, subnormal numbers included, which take no longer.
DEVICE void mma_f16(float (&d)[4], const Vec4& a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %0, %1, %2, %3}, { %4, %5, %6, %7}, { %8, %9}, { %0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Two floats rounded to nearest even, `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The same for half precision: what is beyond its range becomes the largest number.
DEVICE u32 pack_f16(float low, float high) {
  u32 packed;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
DEVICE float f16_low(u32 pair) {
  float value;
  asm("{ .reg .b16 low, high; mov.b32 { low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(value) : "r"(pair));
  return value;
}
DEVICE float f16_high(u32 pair) {
  float value;
  asm("{ .reg .b16 low, high; mov.b32 { low, high}, %1; cvt.f32.f16 %0, high; }" : "=f"(value) : "r"(pair));
  return value;
}

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle_from(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE int shuffle_from(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE u32 ballot(bool value) { return __ballot_sync(0xffffffffu, value); }  // bit l: lane l's value
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
DEVICE int warp_sum(int value) {
  int sum;
  asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(value));
  return sum;
}
DEVICE u32 odd_bytes(u32 w) { return __byte_perm(w, 0, 0x4341); }  // bytes 1 and 3, each in a half
DEVICE int count_bits(u32 value) { return __popc(value); }
DEVICE int leading_zeros(u32 value) { return __clz(value); }
DEVICE u64 shuffle_xor(u64 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u64 shuffle_up(u64 value, int delta) { return __shfl_up_sync(0xffffffffu, value, delta); }

DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE float power_of_two(float exponent) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
  return value;
}
// Never contracted to a fused multiply-add, so that all kernels compute the same bits.
DEVICE float plain_sum(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sine_of(float angle) { return __sinf(angle); }    // |angle| <= pi
DEVICE float cosine_of(float angle) { return __cosf(angle); }  // |angle| <= pi
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }
DEVICE u32 atomic_add_shared(u32* p, u32 value) { return atomicAdd(p, value); }  // returns the old value
DEVICE void atomic_max_shared(u32* p, u32 value) { atomicMax(p, value); }
// Adds to a float in memory, in any order.
DEVICE void accumulate(float* p, float value) { asm volatile("red.global.add.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory"); }
// Or to an integer, whose sum is the same in any order.
DEVICE void accumulate(u64* p, u64 value) { asm volatile("red.global.add.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory"); }
// Fixed point with 32 fractional bits.
DEVICE u64 fixed_of(float value) { return (u64)__float2ll_rn(value * 4294967296.0f); }
DEVICE float float_of_fixed(u64 value) { return __ll2float_rn((long long)value) * 2.3283064365386963e-10f; }
// The products of two pairs of half precision numbers.
DEVICE u32 times_f16(u32 a, u32 b) {
  u32 product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// A word that the host polls in pinned memory. It orders no other write.
DEVICE void publish(u32* p, u32 value) { asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory"); }
#endif

#define NEGATIVE_INFINITY float_of(0xff800000u)

DEVICE float bf16_low(u32 pair) { return float_of(pair << 16); }
DEVICE float bf16_high(u32 pair) { return float_of(pair & 0xffff0000u); }

DEVICE u32 even_bytes(u32 w) { return w & 0x00ff00ffu; }
DEVICE u32 low_halves(u32 a, u32 b) { return (a & 0xffff) | b << 16; }
DEVICE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
DEVICE u32 word(const Vec4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEVICE float load(const float* p) { return *p; }
DEVICE float load(const u16* p) { return float_of((u32)*p << 16); }
DEVICE void store(float* p, float value) { *p = value; }
DEVICE void store(u16* p, float value) { *p = (u16)pack_bf16(value, 0.0f); }

// Activations in half precision reach 16 times as far as its numbers: 1,048,064. Those below 2^-10 have fewer bits.
constexpr float F16_UNIT = 16.0f;
DEVICE float load(const f16* p) { return F16_UNIT * f16_low(p->bits); }
DEVICE void store(f16* p, float value) { p->bits = (u16)pack_f16(value / F16_UNIT, 0.0f); }

// Two activations of a type of 16 bits as a word.
DEVICE u32 pack_two(u16, float low, float high) { return pack_bf16(low, high); }
DEVICE u32 pack_two(f16, float low, float high) { return pack_f16(low / F16_UNIT, high / F16_UNIT); }

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

DEVICE u32 warp_max(u32 value) { return (u32)warp_max((int)(value ^ 0x80000000u)) ^ 0x80000000u; }
DEVICE u32 warp_min(u32 value) { return (u32)warp_min((int)(value ^ 0x80000000u)) ^ 0x80000000u; }

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
