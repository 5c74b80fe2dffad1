{% include "device.cuh" %}
// {{ self.name() }}: a memory of each head, token after token: S = e^decay S, S += k new^T, result S^T q. new is v or, by the DELTA rule, beta (v - S^T k).
constexpr int HEADS = {{ heads }}, KEY_HEADS = {{ key_heads }}, SHARE = HEADS / KEY_HEADS;
constexpr int KEY_DIM = {{ key_dim }}, DIM = {{ dim }};  // rows and columns of a memory
constexpr bool DELTA = {{ delta }};
constexpr bool PER_CHANNEL = {{ per_channel }};  // a decay for each row of a memory
constexpr bool PROMPT = {{ prompt }};            // rows follow each other in one sequence, idle ones first; otherwise each is of another one
constexpr int WARPS = {{ self.warps() }};
constexpr int PART = {{ self.part() }};  // rows of a memory that a warp has, a column per lane

// q, k fp32 [rows][KEY_HEADS][KEY_DIM]; v, out [rows][HEADS][DIM]; decay [rows][HEADS] or, PER_CHANNEL, [rows][HEADS][KEY_DIM]; beta [rows][HEADS] or null;
// memory fp32 [sequence][HEADS][KEY_DIM][DIM]; positions, sequences [rows]. A row at position -1 is idle. Grid: HEADS; DIM / 32, rounded up; 1 of PROMPT, or
// rows.
KERNEL void __launch_bounds__(32 * WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float sums[2][WARPS][32];
  launch_dependents();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head = blockIdx.x, column = blockIdx.y * 32 + lane, first_row = warp * PART;
  const int begin = PROMPT ? 0 : blockIdx.z, end = PROMPT ? (int)rows : begin + 1;
  const bool inside = column < DIM;
  int first = end;
  for (int row = begin + (PROMPT ? lane : 0); row < end; row += 32) {
    if (load_early(positions + row) >= 0 && row < first) first = row;
  }
  if (PROMPT) first = warp_min(first);

  wait_for_dependencies();
  float* const kept = memory + (((u64)load_early(sequences + begin) * HEADS + head) * KEY_DIM + first_row) * DIM + column;
  const bool has_past = first < end && load_early(positions + first) > 0 && inside;
  const auto exists = [&](int r) { return KEY_DIM % PART == 0 || first_row + r < KEY_DIM; };
  float state[PART];
#pragma unroll
  for (int r = 0; r < PART; r++) state[r] = has_past && exists(r) ? kept[r * DIM] : 0.0f;
  for (int row = begin + warp; row < first && inside; row += WARPS) out[((u64)row * HEADS + head) * DIM + column] = 0.0f;

  // The sum over all rows of a memory.
  const auto over_warps = [&](float value, int turn) {
    sums[turn][warp][lane] = value;
    block_barrier();
    float sum = 0.0f;
    for (int w = 0; w < WARPS; w++) sum += sums[turn][w][lane];
    return sum;
  };
  for (int row = first; row < end; row++) {
    const u64 of_head = (u64)row * HEADS + head, of_key = ((u64)row * KEY_HEADS + head / SHARE) * KEY_DIM + first_row;
    const float all = PER_CHANNEL ? 0.0f : expf(decay[of_head]);
    float key[PART], recalled = 0.0f, result = 0.0f;
#pragma unroll
    for (int r = 0; r < PART; r++) {
      key[r] = exists(r) ? k[of_key + r] : 0.0f;
      state[r] *= !PER_CHANNEL ? all : exists(r) ? expf(decay[of_head * KEY_DIM + first_row + r]) : 0.0f;
      recalled += key[r] * state[r];
    }
    float value = inside ? v[of_head * DIM + column] : 0.0f;
    if (DELTA) value = beta[of_head] * (value - over_warps(recalled, 0));
#pragma unroll
    for (int r = 0; r < PART; r++) {
      state[r] += key[r] * value;
      result += (exists(r) ? q[of_key + r] : 0.0f) * state[r];
    }
    // A turn of its own: without the delta rule nothing else keeps a row's sums from the next row's.
    result = over_warps(result, DELTA ? 1 : row % 2);
    if (warp == 0 && inside) out[of_head * DIM + column] = result;
  }
#pragma unroll
  for (int r = 0; r < PART; r++) {
    if (first < end && inside && exists(r)) kept[r * DIM] = state[r];
  }
}
