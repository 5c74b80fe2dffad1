{% include "device.cuh" %}
// {{ self.name() }}: {% if self.0.layer() %}layer_norm{% else %}rms_norm{% endif %} of each row for products of many rows, one block per row, whose values it reads once.
{% if self.0.out.is_tiled() %}{% include "activations.cuh" %}
{%- endif -%}
constexpr int SIZE = {{ self.0.size }};       // values per row
constexpr bool LAYER = {{ self.0.layer() }};  // subtract the mean
constexpr float EPS = {{ self.0.epsilon() }};
constexpr int WARPS = {{ self.0.warps() }};
typedef {{ self.0.out }} Out;
constexpr int THREADS = 32 * WARPS, FOURS = SIZE / 4, TURNS = (FOURS + THREADS - 1) / THREADS;
static_assert(SIZE % 64 == 0, "results in the order of activations are 64 columns and 64 columns");

DEVICE float block_sum(float value, float (&scratch)[WARPS]) {
  value = warp_sum(value);
  block_barrier();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  block_barrier();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) sum += scratch[i];
  return sum;
}

DEVICE void load_four(float (&v)[4], const float* from) {
  const Vec4 four = *(const Vec4*)from;
  v[0] = float_of(four.x), v[1] = float_of(four.y), v[2] = float_of(four.z), v[3] = float_of(four.w);
}

// x fp32 [rows][SIZE], out [rows][SIZE] or in the order of activations.cuh; weight, bias [SIZE], null where absent. Grid: rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float scratch[WARPS];
  launch_dependents();
  wait_for_dependencies();
  // 1 The row into registers, four values per thread and turn.
  float held[TURNS][4] = {};
#pragma unroll
  for (int t = 0; t < TURNS; t++)
    if (t * THREADS + (int)threadIdx.x < FOURS) load_four(held[t], x + (u64)blockIdx.x * SIZE + 4 * (t * THREADS + threadIdx.x));

  // 2 Mean and variance.
  float mean = 0.0f, square = 0.0f;
  if (LAYER) {
#pragma unroll
    for (int t = 0; t < TURNS; t++) mean += held[t][0] + held[t][1] + held[t][2] + held[t][3];
    mean = block_sum(mean, scratch) / SIZE;
  }
#pragma unroll
  for (int t = 0; t < TURNS; t++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (t * THREADS + (int)threadIdx.x < FOURS) square += (held[t][i] - mean) * (held[t][i] - mean);
  const float scale = rsqrtf(block_sum(square, scratch) / SIZE + EPS);

  // 3 Results, two neighbours a word.
#pragma unroll
  for (int t = 0; t < TURNS; t++) {
    const int column = 4 * (t * THREADS + threadIdx.x);
    if (column >= SIZE) break;
    float factor[4] = {1.0f, 1.0f, 1.0f, 1.0f}, more[4] = {};
    if (weight) load_four(factor, weight + column);
    if (bias) load_four(more, bias + column);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float a = (held[t][i] - mean) * scale * factor[i] + more[i], b = (held[t][i + 1] - mean) * scale * factor[i + 1] + more[i + 1];
      *(u32*)(out + {% if self.0.out.is_tiled() %}activation_at(blockIdx.x, column + i, gridDim.x){% else %}(u64)blockIdx.x * SIZE + column + i{% endif %}) =
          pack_two(Out(), a, b);
    }
  }
}
