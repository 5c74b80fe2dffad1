{% include "device.cuh" %}
// {{ self.name() }}: reads memory as fast as it can: the ceiling that a step is measured against.
constexpr int THREADS = {{ threads }};
constexpr int UNROLL = {{ unroll }};

// `vectors` is a multiple of THREADS * UNROLL. Grid: any.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  u32 sum = 0;
  for (u64 base = (u64)blockIdx.x * THREADS * UNROLL; base < vectors; base += (u64)gridDim.x * THREADS * UNROLL) {
    Vec4 held[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; i++) held[i] = load_stream(data + base + i * THREADS + threadIdx.x);
#pragma unroll
    for (int i = 0; i < UNROLL; i++) sum ^= held[i].x ^ held[i].y ^ held[i].z ^ held[i].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}
