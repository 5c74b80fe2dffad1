// The device vocabulary in plain C++. It compiles a kernel's source for the host, where engine.cc runs a block's threads as fibers.
// Compiled with -fsanitize=thread,bounds,alignment: the hooks those call are engine.cc's, which checks each access.
#pragma once

#define KERNEL extern "C"
#define DEVICE static inline
#define SHARED static __attribute__((section("fuse_shared")))
#define CONSTANT static const
#define __launch_bounds__(...)
// Stands between a kernel's `void` and its name, where only a whole declaration can tell its entry of the number.
#define CLUSTER_OF(blocks) fuse_of_clusters(); constexpr int FUSE_CLUSTER = blocks; KERNEL void
namespace fuse_otherwise { constexpr int FUSE_CLUSTER = 1; }   // what ::FUSE_CLUSTER is where a kernel says nothing
using namespace fuse_otherwise;

// What kernels use of the C library. Its headers would take most of the time of a compilation.
extern "C" {
float expf(float), exp2f(float), logf(float), erff(float), tanhf(float), rintf(float), sinf(float), cosf(float);
float fmaxf(float, float), fminf(float, float), fabsf(float), sqrtf(float), fmaf(float, float, float);
double sqrt(double);
long long llrint(double);
void* memcpy(void*, const void*, decltype(sizeof 0));
}

// What engine.cc offers. A thread that fails a check never returns from the call.
extern "C" {
struct FuseIndex { u32 x, y, z; };
struct FuseAccumulators { float d[4]; };
__attribute__((const)) FuseIndex fuse_thread_index();
__attribute__((const)) FuseIndex fuse_block_index();
__attribute__((const)) FuseIndex fuse_block_size();
__attribute__((const)) FuseIndex fuse_grid_size();
char* fuse_shared_memory();
void fuse_block_barrier();
void fuse_cluster_begin();
void fuse_cluster_join();
void fuse_cluster_arrive();
void fuse_cluster_wait();
void fuse_store_peer(const void* p, const void* value, u32 bytes, int rank);
u64 fuse_load_peer(const void* p, u32 bytes, int rank);
void fuse_expect(u64* arrived, u32 bytes);
void fuse_copy_bulk(void* to, const void* from, u32 bytes, u64* arrived);
void fuse_await(const u64* arrived);
void fuse_barrier_begin(u64* barrier, u32 arrivals);
void fuse_barrier_expect(u64* barrier, u32 bytes);
void fuse_barrier_arrive(u64* barrier);
void fuse_barrier_wait(u64* barrier, u32 phase);
void fuse_group_barrier(int count);
void fuse_shared_before_copies();
void fuse_store_bulk(void* to, const void* from, u32 bytes);
void fuse_await_stores();
void fuse_multiply(float* d, const u32* a, const char* b, int columns, int halves);
void fuse_products_end();
void fuse_await_products(int latest);
void fuse_copy_async(void* to, const void* from);
void fuse_await_copies();
void fuse_warp_barrier();
void fuse_launch_dependents();
void fuse_wait_for_dependencies();
void fuse_stream(const void* p, u64 bytes);
void fuse_settled(const void* p, u64 bytes);
FuseAccumulators fuse_mma(FuseAccumulators d, Vec4 a, u32 b0, u32 b1, int halves);
u64 fuse_shuffle_xor(u64 value, int mask);
u64 fuse_shuffle_from(u64 value, int lane);
u64 fuse_shuffle_up(u64 value, int delta);
u32 fuse_atomic_add4(u32* p, u32 value);
void fuse_atomic_max4(u32* p, u32 value);
void fuse_accumulate(float* p, float value);
void fuse_accumulate8(u64* p, u64 value);
}

#define threadIdx fuse_thread_index()
#define blockIdx fuse_block_index()
#define blockDim fuse_block_size()
#define gridDim fuse_grid_size()

DEVICE char* shared_memory() { return fuse_shared_memory(); }
DEVICE void block_barrier() { fuse_block_barrier(); }
DEVICE void warp_barrier() { fuse_warp_barrier(); }
DEVICE void cluster_begin() { fuse_cluster_begin(); }
DEVICE void cluster_join() { fuse_cluster_join(); }
DEVICE void cluster_arrive() { fuse_cluster_arrive(); }
DEVICE void cluster_wait() { fuse_cluster_wait(); }
DEVICE void store_peer(u64* p, u64 value, int rank) { fuse_store_peer(p, &value, 8, rank); }
DEVICE void store_peer(u32* p, u32 value, int rank) { fuse_store_peer(p, &value, 4, rank); }
DEVICE void store_peer(float* p, float value, int rank) { fuse_store_peer(p, &value, 4, rank); }
DEVICE u64 load_peer(const u64* p, int rank) { return fuse_load_peer(p, 8, rank); }
DEVICE u32 load_peer(const u32* p, int rank) { return (u32)fuse_load_peer(p, 4, rank); }
DEVICE int load_peer(const int* p, int rank) { return (int)load_peer((const u32*)p, rank); }
DEVICE void expect(u64* arrived, u32 bytes) { fuse_expect(arrived, bytes); }
DEVICE void copy_bulk(Vec4* to, const Vec4* from, u32 bytes, u64* arrived) { fuse_copy_bulk(to, from, bytes, arrived); }
DEVICE void await(const u64* arrived) { fuse_await(arrived); }
DEVICE u32 shared_offset(const void* p) { return (u32)(u64)p; }
DEVICE void barrier_begin(u64* barrier, u32 arrivals) { fuse_barrier_begin(barrier, arrivals); }
DEVICE void barriers_begun() {}
DEVICE void barrier_expect(u64* barrier, u32 bytes) { fuse_barrier_expect(barrier, bytes); }
DEVICE void barrier_arrive(u64* barrier) { fuse_barrier_arrive(barrier); }
DEVICE void barrier_wait(u64* barrier, u32 phase) { fuse_barrier_wait(barrier, phase); }
DEVICE void group_barrier(int count) { fuse_group_barrier(count); }
DEVICE void shared_before_copies() { fuse_shared_before_copies(); }
DEVICE void store_bulk(void* to, const void* from, u32 bytes) { fuse_store_bulk(to, from, bytes); }
DEVICE void stores_end() {}
DEVICE void await_stores_read() { fuse_await_stores(); }
DEVICE void await_stores() { fuse_await_stores(); }
DEVICE void take_registers() {}
DEVICE void give_registers() {}
// The products of a warpgroup are made when they are waited for.
DEVICE void products_begin() {}
DEVICE void products_end() { fuse_products_end(); }
template <int LATEST> DEVICE void await_products() { fuse_await_products(LATEST); }
DEVICE Vec4 load_peer(const Vec4* p, int rank) {
  const u64 *low = (const u64*)p, first = fuse_load_peer(low, 8, rank), second = fuse_load_peer(low + 1, 8, rank);
  return {(u32)first, (u32)(first >> 32), (u32)second, (u32)(second >> 32)};
}
DEVICE void launch_dependents() { fuse_launch_dependents(); }
DEVICE void wait_for_dependencies() { fuse_wait_for_dependencies(); }

// The reads of global memory that may come before the wait.
__attribute__((no_sanitize_thread)) DEVICE int load_early(const int* p) {
  fuse_stream(p, sizeof *p);
  return *p;
}
__attribute__((no_sanitize_thread)) DEVICE Vec4 load_stream(const Vec4* p) {
  fuse_stream(p, sizeof *p);
  return *p;
}
__attribute__((no_sanitize_thread)) DEVICE u64 load_stream(const u64* p) {
  fuse_stream(p, sizeof *p);
  return *p;
}
__attribute__((no_sanitize_thread)) DEVICE float load_settled(const float* p) {
  fuse_settled(p, sizeof *p);
  return *p;
}
__attribute__((no_sanitize_thread)) DEVICE u64 load_settled(const u64* p) {
  fuse_settled(p, sizeof *p);
  return *p;
}

DEVICE void load_and_forget(const float* p) { (void)*(const volatile float*)p; }
DEVICE Vec4 load_here(const Vec4* p) { return *p; }

DEVICE void copy_async(Vec4* to, const Vec4* from) { fuse_copy_async(to, from); }
DEVICE void await_copies() { fuse_await_copies(); }
DEVICE Vec4 load_transposed(const Vec4* row) {
  const int lane = threadIdx.x % 32;
  u32 words[4];
  for (int tile = 0; tile < 4; tile++) {
    const u16* even = (const u16*)fuse_shuffle_from((u64)row, 8 * tile + lane % 4 * 2);
    const u16* odd = (const u16*)fuse_shuffle_from((u64)row, 8 * tile + lane % 4 * 2 + 1);
    words[tile] = (u32)odd[lane / 4] << 16 | even[lane / 4];
  }
  return {words[0], words[1], words[2], words[3]};
}

DEVICE float float_of(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
DEVICE u32 bits_of(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
DEVICE float load_peer(const float* p, int rank) { return float_of((u32)fuse_load_peer(p, 4, rank)); }

DEVICE void mma_bf16(float (&d)[4], const Vec4& a, u32 b0, u32 b1) {
  const Vec4 words = {a.x, a.y, a.z, a.w};   // reads that are checked; that of an argument is not
  const FuseAccumulators sum = fuse_mma({ {d[0], d[1], d[2], d[3]} }, words, b0, b1, 0);
  d[0] = sum.d[0], d[1] = sum.d[1], d[2] = sum.d[2], d[3] = sum.d[3];
}
DEVICE void mma_f16(float (&d)[4], const Vec4& a, u32 b0, u32 b1) {
  const Vec4 words = {a.x, a.y, a.z, a.w};
  const FuseAccumulators sum = fuse_mma({ {d[0], d[1], d[2], d[3]} }, words, b0, b1, 1);
  d[0] = sum.d[0], d[1] = sum.d[1], d[2] = sum.d[2], d[3] = sum.d[3];
}

DEVICE u32 fuse_bf16(float value) {
  const u32 bits = bits_of(value);
  if (value != value) return 0x7fff;                        // the NaN that cvt.rn.bf16x2 gives
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 fuse_f16(float value) {
  const u32 bits = bits_of(value), sign = bits >> 16 & 0x8000;
  const float size = fabsf(value);
  if (value != value) return 0x7fff;                        // the NaN that cvt.rn.f16x2 gives
  if (size >= 65520.0f) return sign | 0x7bff;               // and its largest number
  if (size < 6.103515625e-5f) return sign | (u32)(int)rintf(size * 16777216.0f);
  const u32 rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return sign | (rounded - 0x38000000) >> 13;
}
DEVICE u32 pack_f16(float low, float high) { return fuse_f16(high) << 16 | fuse_f16(low); }
DEVICE float f16_low(u32 pair) {
  const u32 sign = (pair & 0x8000) << 16, rest = pair & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | rest << 13);
  if (rest < 0x400) return float_of(sign | bits_of((float)rest * 5.9604644775390625e-8f));
  return float_of(sign | ((rest << 13) + 0x38000000));
}
DEVICE float f16_high(u32 pair) { return f16_low(pair >> 16); }
DEVICE u32 times_f16(u32 a, u32 b) { return pack_f16(f16_low(a) * f16_low(b), f16_high(a) * f16_high(b)); }
DEVICE u32 pack_bf16(float low, float high) { return fuse_bf16(high) << 16 | fuse_bf16(low); }

DEVICE float shuffle_xor(float value, int mask) { return float_of((u32)fuse_shuffle_xor(bits_of(value), mask)); }
DEVICE int shuffle_xor(int value, int mask) { return (int)(u32)fuse_shuffle_xor((u32)value, mask); }
DEVICE float shuffle_from(float value, int lane) { return float_of((u32)fuse_shuffle_from(bits_of(value), lane)); }
DEVICE int shuffle_from(int value, int lane) { return (int)(u32)fuse_shuffle_from((u32)value, lane); }
DEVICE u32 ballot(bool value) {
  u32 votes = (u32)value << threadIdx.x % 32;
  for (int mask = 16; mask > 0; mask /= 2) votes |= (u32)fuse_shuffle_xor(votes, mask);
  return votes;
}
DEVICE int warp_max(int value) {
  for (int mask = 16; mask > 0; mask /= 2) { const int other = shuffle_xor(value, mask); value = other > value ? other : value; }
  return value;
}
DEVICE int warp_min(int value) {
  for (int mask = 16; mask > 0; mask /= 2) { const int other = shuffle_xor(value, mask); value = other < value ? other : value; }
  return value;
}
DEVICE int warp_sum(int value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
DEVICE u32 odd_bytes(u32 w) { return w >> 8 & 0x00ff00ffu; }
DEVICE u32 choose_bytes(u32 a, u32 b, u32 selector) {
  u32 chosen = 0;
  for (int i = 0; i < 4; i++) chosen |= (u32)((((u64)b << 32 | a) >> 8 * (selector >> 4 * i & 7)) & 0xff) << 8 * i;
  return chosen;
}
DEVICE int count_bits(u32 value) { return __builtin_popcount(value); }
DEVICE int leading_zeros(u32 value) { return value ? __builtin_clz(value) : 32; }
DEVICE u64 shuffle_xor(u64 value, int mask) { return fuse_shuffle_xor(value, mask); }
DEVICE u64 shuffle_up(u64 value, int delta) { return fuse_shuffle_up(value, delta); }

DEVICE float rsqrtf(float value) { return (float)(1.0 / sqrt((double)value)); }
DEVICE float power_of_two(float exponent) { return exp2f(exponent); }
DEVICE float reciprocal(float value) { return 1.0f / value; }
DEVICE float plain_sum(float a, float b) { return a + b; }
DEVICE float sine_of(float angle) { return sinf(angle); }
DEVICE float cosine_of(float angle) { return cosf(angle); }
DEVICE u32 multiply_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
DEVICE u32 atomic_add_shared(u32* p, u32 value) { return fuse_atomic_add4(p, value); }
DEVICE void atomic_max_shared(u32* p, u32 value) { fuse_atomic_max4(p, value); }
DEVICE void accumulate(float* p, float value) { fuse_accumulate(p, value); }
DEVICE void accumulate(u64* p, u64 value) { fuse_accumulate8(p, value); }
DEVICE u64 fixed_of(float value) { return (u64)llrint(value * 4294967296.0); }
DEVICE float float_of_fixed(u64 value) { return (float)(long long)value * 2.3283064365386963e-10f; }
DEVICE void publish(u32* p, u32 value) { *p = value; }
DEVICE void settle_for_host() {}
DEVICE void publish(u64* p, u64 value) { *p = value; }

// The way from an array of 64-bit words to a kernel's parameters. host_build.rs appends the exported entry, which uses it.
template <int... I> struct FuseSequence {};
template <int N, int... I> struct FuseCount : FuseCount<N - 1, N - 1, I...> {};
template <int... I> struct FuseCount<0, I...> { typedef FuseSequence<I...> type; };
template <typename... P>
constexpr int fuse_parameters(void (*)(P...)) {
  static_assert(((sizeof(P) == 8) && ...), "every parameter is a pointer or a 64-bit integer");
  return sizeof...(P);
}
template <typename... P, int... I>
__attribute__((no_sanitize_thread)) void fuse_call(void (*kernel)(P...), const u64* arguments, FuseSequence<I...>) {
  kernel((P)arguments[I]...);
}
