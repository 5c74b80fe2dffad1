{% include "device.cuh" %}
// {{ self.name() }}: normalises and rotates the heads of q and k, and stores each row's keys and values in the
// caches. One warp per head.
{% let rope = self.turns() %}{% include "rope.cuh" %}
constexpr int HEADS = {{ heads }};  // query heads; 0: q is as attention reads it
constexpr int KEY_HEADS = {{ key_heads }};
constexpr int HEAD_DIM = {{ head_dim }};
constexpr int NORM_Q = {{ self.norm_q() }}, NORM_K = {{ self.norm_k() }};  // of each head, before the rotation. 1: rms_norm, 2: layer_norm, 0: none
constexpr float EPS_Q = {{ self.eps_q() }}, EPS_K = {{ self.eps_k() }};
constexpr int WARPS = {{ self.warps() }};
constexpr int THREADS = 32 * WARPS;
constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;  // a cache row: HEAD_DIM values, zeros up to 16 bytes
constexpr int PER_LANE = (HEAD_DIM + 31) / 32;  // values of a head per lane

// q fp32 [rows][HEADS][HEAD_DIM], k and v [rows][KEY_HEADS][HEAD_DIM]; positions, sequences [rows]; weights [HEAD_DIM], null where absent.
// q_out fp32 [rows][HEADS][HEAD_DIM]; caches bfloat16 [sequence][KEY_HEADS][context][PADDED], in which a row at position -1 has no place.
// Grid: rows, (HEADS + 2 KEY_HEADS) / WARPS rounded up.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float turns[ROPE_DIM / 2 + 1][2];  // cosine and sine of a pair
  SHARED float heads[WARPS][HEAD_DIM];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x;
  launch_dependents();
  const int position = load_early(positions + row), sequence = load_early(sequences + row);
  for (int pair = threadIdx.x; pair < ROPE_DIM / 2; pair += THREADS) rope_rotation(position, pair, turns[pair][0], turns[pair][1]);
  wait_for_dependencies();
  block_barrier();
  const int job = blockIdx.y * WARPS + warp;
  const bool is_query = job < HEADS, is_key = !is_query && job < HEADS + KEY_HEADS;
  if (job >= HEADS + 2 * KEY_HEADS || (!is_query && position < 0)) return;

  const int head = is_query ? job : is_key ? job - HEADS : job - HEADS - KEY_HEADS;
  const float* from = is_query ? q + ((u64)row * HEADS + head) * HEAD_DIM : (is_key ? k : v) + ((u64)row * KEY_HEADS + head) * HEAD_DIM;
  const float* weight = is_query ? q_weight : k_weight;
  const int norm = is_query ? NORM_Q : is_key ? NORM_K : 0;
  float value[PER_LANE], mean = 0.0f, square = 0.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++) {
    value[j] = lane + 32 * j < HEAD_DIM ? from[lane + 32 * j] : 0.0f;
    mean += value[j];
  }
  mean = norm == 2 ? warp_sum(mean) / HEAD_DIM : 0.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++)
    if (lane + 32 * j < HEAD_DIM) square += (value[j] - mean) * (value[j] - mean);
  const float scale = norm > 0 ? rsqrtf(warp_sum(square) / HEAD_DIM + (is_query ? EPS_Q : EPS_K)) : 1.0f;
#pragma unroll
  for (int j = 0; j < PER_LANE; j++)
    if (lane + 32 * j < HEAD_DIM) heads[warp][lane + 32 * j] = (value[j] - mean) * scale * (norm > 0 && weight ? weight[lane + 32 * j] : 1.0f);
  warp_barrier();

  float* const query = q_out + ((u64)row * HEADS + head) * HEAD_DIM;
  u16* const cached = (is_key ? key_cache : value_cache) + (((u64)sequence * KEY_HEADS + head) * context + position) * PADDED;
  const auto turn = [&](int pair, float& cosine, float& sine) { cosine = turns[pair][0], sine = turns[pair][1]; };
  const auto at = [&](int i) { return heads[warp][i]; };
#pragma unroll
  for (int i = lane; i < PADDED; i += 32) {
    const float y = i >= HEAD_DIM ? 0.0f : is_query || is_key ? roped(at, i, turn) : at(i);
    if (!is_query) store(cached + i, y);
    else if (i < HEAD_DIM) query[i] = y;
  }
}
