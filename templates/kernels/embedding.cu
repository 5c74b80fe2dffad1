{% include "device.cuh" %}
// {{ self.name() }}: rows of a table that is packed as a matmul's weight.
{% include "tiles.cuh" %}
constexpr int THREADS = {{ self.threads() }};

// out [rows][K]; tokens [rows], zeros for a negative one. Grid: rows, a thread a column.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  const int token = tokens[blockIdx.x];
  const int k = threadIdx.x + THREADS * blockIdx.y;
  if (k < K) {
    // Column k lies in pair k / 32, in the share of quad k / 8 % 4; two of its eight columns fill one register of one tile.
    const int tile = k / 4 % 2, half = k / 2 % 2, odd = k % 2, quad = k / 8 % 4, row = token % 16;
    const u16* lane = (const u16*)(tile_pointer(weights, token / 16, k / 32) + tile * 32 + row % 8 * 4 + quad);
    store(out + (u64)blockIdx.x * K + k, token < 0 ? 0.0f : load(lane + (row / 8 + 2 * half) * 2 + odd));
  }
}
