{% include "device.cuh" %}
// {{ self.name() }}: rows of a table that is packed as a matmul's weight.
{% include "tiles.cuh" %}
constexpr int THREADS = {{ self.threads() }};

// out [rows][K]; tokens [rows], zeros for a negative one. Grid: rows, K / THREADS rounded up: one thread per column.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  const int token = tokens[blockIdx.x];
  const int k = threadIdx.x + THREADS * blockIdx.y;
  if (k < K) {
    store(out + (u64)blockIdx.x * K + k, token < 0 ? 0.0f : value_of(tile_pointer(weights, token / 16, k / STEP), token % 16, k % STEP));
  }
}
