{% include "device.cuh" %}
// {{ self.name() }}: {% if self.layer() %}layer_norm{% else %}rms_norm{% endif %} of each row, one block per row.
constexpr int SIZE = {{ size }};            // values per row
constexpr bool LAYER = {{ self.layer() }};  // subtract the mean
constexpr float EPS = {{ self.epsilon() }};
constexpr int WARPS = {{ self.warps() }};
constexpr bool PAIRED = {{ paired }};  // a row of results is a hi/lo split: SIZE hi parts, then SIZE lo parts
typedef {{ out }} Out;

DEVICE float block_sum(float value, float (&scratch)[WARPS]) {
  value = warp_sum(value);
  block_barrier();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  block_barrier();
  float sum = 0.0f;
  for (int i = 0; i < WARPS; i++) sum += scratch[i];
  return sum;
}

// x [rows][SIZE], out [rows][SIZE] or, PAIRED, [rows][2][SIZE]; weight, bias [SIZE], null where absent. Grid: rows.
KERNEL void __launch_bounds__(32 * WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float scratch[WARPS];
  launch_dependents();
  wait_for_dependencies();
  const float* row = x + (u64)blockIdx.x * SIZE;
  float mean = 0.0f, square = 0.0f;
  if (LAYER) {
    for (int i = threadIdx.x; i < SIZE; i += 32 * WARPS) mean += row[i];
    mean = block_sum(mean, scratch) / SIZE;
  }
  for (int i = threadIdx.x; i < SIZE; i += 32 * WARPS) square += (row[i] - mean) * (row[i] - mean);
  const float scale = rsqrtf(block_sum(square, scratch) / SIZE + EPS);
  Out* to = out + (u64)blockIdx.x * SIZE * (PAIRED ? 2 : 1);
  for (int i = threadIdx.x; i < SIZE; i += 32 * WARPS) {
    const float y = (row[i] - mean) * scale * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
    store(to + i, y);
    if (PAIRED) store(to + SIZE + i, y - load(to + i));
  }
}
