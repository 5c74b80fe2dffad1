{% include "device.cuh" %}
// {{ self.name() }}: each row's keys (or values) into the cache, at the row's position.
constexpr int KEY_HEADS = {{ key_heads }}, HEAD_DIM = {{ head_dim }};
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int THREADS = {{ self.threads() }};

// x fp32 [rows][KEY_HEADS][HEAD_DIM]; cache bfloat16 [sequence][KEY_HEADS][context][PADDED]; a row at position -1 is skipped. Grid: rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  const int position = positions[blockIdx.x];
  if (position < 0) return;
  for (int i = threadIdx.x; i < KEY_HEADS * PADDED; i += THREADS) {
    const int head = i / PADDED, d = i % PADDED;
    store(cache + (((u64)sequences[blockIdx.x] * KEY_HEADS + head) * context + position) * PADDED + d,
          d < HEAD_DIM ? x[((u64)blockIdx.x * KEY_HEADS + head) * HEAD_DIM + d] : 0.0f);
  }
}
