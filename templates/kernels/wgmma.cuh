// The vocabulary for rings of stages and warpgroups, for sm_90a, beyond device.cuh.
#ifndef FUSE_HOST
// Barriers of a ring in shared memory. A phase ends when as many threads as barrier_begin said have arrived, and all bytes that one of
// them expects have been copied; phases are numbered 0, 1, 0, ... barriers_begun and a block_barrier (or a cluster's) come before their use.
DEVICE u32 shared_offset(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void barrier_begin(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_offset(barrier)), "r"(arrivals) : "memory");
}
DEVICE void barriers_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_offset(barrier)), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u64* barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_offset(barrier)) : "memory"); }
DEVICE void barrier_wait(u64* barrier, u32 phase) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_offset(barrier)), "r"(phase)
                 : "memory");
  } while (!done);
}
// From shared to global memory while the thread goes on. What threads wrote is visible to it after shared_before_copies by each of them and a barrier.
DEVICE void shared_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void store_bulk(void* to, const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_offset(from)), "r"(bytes) : "memory");
}
DEVICE void stores_end() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
DEVICE void await_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }  // shared memory may be written again
DEVICE void await_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// A barrier of the first `threads` of a block.
DEVICE void group_barrier(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }
DEVICE Vec4 load_peer(const Vec4* p, int rank) {
  Vec4 v;
  asm volatile("ld.shared::cluster.v4.u32 { %0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(place_in_peer(p, rank)));
  return v;
}
// Of a block of three warpgroups, two take registers from the third.
DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }
DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
DEVICE float reciprocal(float value) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
  return inverse;
}
#endif

// Products of a warpgroup, four warps whose first is a multiple of four: 64 rows of W by {{ columns }} rows of x, 16 columns. They run while the warps go on:
// products_begin before the first of a stage, products_end after the last, await_products<N> until no more than the latest N stages are in flight.
// Neither sums nor fragments nor rows of x may be touched before that.
#ifdef FUSE_HOST
DEVICE void multiply(float (&d)[{{ registers }}], const Vec4& a, const char* b) { fuse_multiply(d, &a.x, b, {{ columns }}, 1); }
#else
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LATEST>
DEVICE void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATEST) : "memory");
}
// d += A B. A: each warp's row tile in fragment order. B: in shared memory, rows of 128 bytes in the 128-byte swizzle, eight of them 1024 bytes from the next.
DEVICE void multiply(float (&d)[{{ registers }}], const Vec4& a, const char* b) {
  const u64 rows = (u64)((u32)__cvta_generic_to_shared(b) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n{{ columns }}k16.f32.f16.f16 {"
      "{% for i in 0..registers %}{% if i > 0 %}, {% endif %}%{{ i }}{% endfor %}}, "
      "{ %{{ registers }}, %{{ registers + 1 }}, %{{ registers + 2 }}, %{{ registers + 3 }}}, %{{ registers + 4 }}, 1, 1, 1, 0;"
      : {% for i in 0..registers %}{% if i > 0 %}, {% endif %}"+f"(d[{{ i }}]){% endfor %}
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(rows));
}
#endif

// An activation of a result that is rounded to 16 bits: to some 2^-21 of the value.
template <int KIND>
DEVICE float activate_rounded(float x) {
  if (KIND == SILU) return x * reciprocal(1.0f + power_of_two(-1.44269504f * x));
  return activate<KIND>(x);
}
