{% include "device.cuh" %}
// {{ self.name() }}: hidden values of the {{ route.top_k }} of {{ route.experts }} experts that each of {{ batch }} rows goes to: share f(gate x) up x. Reads the weights
// of the chosen experts only, each once.
{% include "tiles.cuh" %}
{% include "route.cuh" %}
{% include "experts.cuh" %}
constexpr bool NORM = {{ norm.is_some() }};  // rms_norm of x
constexpr float EPS = {{ self.eps() }};
constexpr bool ALIKE = {{ alike }};  // an earlier norm saw rows of nearly the same root mean square
constexpr int ACTIVATION = {{ self.activation_code() }};
{%- if !gating.is_plain() %}
{% include "gating.cuh" %}
{%- endif %}
static_assert(NORM || !SUMMED, "the root mean square of a row is that of its norm");
constexpr int SHARE = (STEPS + WARPS - 1) / WARPS;       // steps of a row tile that a warp takes
constexpr int CHUNKS = (SHARE + DEPTH - 1) / DEPTH;      // rings of steps per row tile
constexpr bool WHOLE = STEPS == WARPS * DEPTH * CHUNKS;  // nothing is padded
// A hi/lo split of x is two columns of the product where eight have room for them, else two rounds.
constexpr int ROUNDS = X_PARTS * BATCH > 8 ? 2 : 1;
constexpr int COLUMNS = ROUNDS == 1 ? X_PARTS * BATCH : BATCH;
constexpr int STAGED_K = STEPS * STEP;
constexpr int STAGE_STRIDE = STAGED_K + 32;                           // 64 bytes more than a row: rows fall into other banks
constexpr int PASSES = (STAGED_K + 8 * THREADS - 1) / (8 * THREADS);  // groups of eight values of a row per thread

{% include "floats.cuh" %}
{% include "partial.cuh" %}

// The root mean square of a row, inverted.
DEVICE float inverse_rms(const float (&sums)[WARPS]) {
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) square += sums[i];
  return rsqrtf(square / K + EPS);
}

// x · w into shared memory, and the warp's part of the sum of squares. The root mean square is applied to the products, which are linear in it; half precision,
// which has no room for any x as it is, takes it times `range`, a power of two near the inverse of what an earlier norm saw, or after its root mean square.
constexpr bool RMS_FIRST = NORM && X_PARTS == 1 && !ALIKE;
DEVICE void stage_row(u16* staged, float (&sums)[BATCH][WARPS], float (&v)[PASSES][8], const float (&w)[PASSES][8], int row, float range) {
  float square = 0.0f, scale = X_UNIT * range;
#pragma unroll
  for (int pass = 0; pass < PASSES && NORM; pass++)
#pragma unroll
    for (int i = 0; i < 8; i++) square += v[pass][i] * v[pass][i];
  if (NORM) {
    square = warp_sum(square);
    if (threadIdx.x % 32 == 0) sums[row][threadIdx.x / 32] = square;
  }
  if (RMS_FIRST) {
    block_barrier();
    scale *= inverse_rms(sums[row]);
  }
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    const int k = 8 * (threadIdx.x + THREADS * pass);
    if (k >= STAGED_K) break;
#pragma unroll
    for (int i = 0; i < 8; i++) v[pass][i] *= (NORM ? scale * w[pass][i] : scale) * latter_of(i);
    store_operands(staged + row * STAGE_STRIDE + k, v[pass]);
  }
}

// Where a warp's steps begin in a chunk of a row tile of an expert.
DEVICE const Vec4* place_in(const Vec4* expert, int tile, int chunk, int warp, int lane) {
  return expert + ((tile * STEPS + warp + WARPS * DEPTH * chunk) * STEP_WORDS + lane);
}

// Starts the loads of step i of a chunk that begins at `from`.
DEVICE void load_step(Held& held, const Vec4* from, int chunk, int i, int warp) {
  if (!(WHOLE || warp + WARPS * (DEPTH * chunk + i) < STEPS)) return;
  load_once(held, from + WARPS * i * STEP_WORDS);
}

// And those of the first chunk of a row tile.
DEVICE void load_first(Held (&held)[DEPTH], const Vec4* expert, int tile, int warp, int lane) {
  const Vec4* from = place_in(expert, tile, 0, warp, lane);
#pragma unroll
  for (int i = 0; i < DEPTH; i++) load_step(held[i], from, 0, i, warp);
}

// weights: experts of packed tiles. x: fp32 [BATCH][K]. norm_weight [K] or null. logits: [BATCH][EXPERTS], or COPIES of that. choice_bias: fp32 [EXPERTS].
{%- if biased %}
// biases: fp32 [EXPERTS][TILES][16].
{%- endif %}
// rms_before: [BATCH] inverse root mean squares, as powers of two. hidden: [listed experts][BATCH][ROWS], ALONE in the order of the choice, else in that of their
// numbers. zeros: `zero_count` floats that are
// set to zero. Grid: any.
KERNEL void __launch_bounds__(THREADS, 16 / WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float partial[2][WARPS][WARP_STRIDE];
  SHARED float sums[BATCH][WARPS];
  SHARED float shares[BATCH][EXPERTS];
  SHARED u32 sets[BATCH][WORDS];
  SHARED int lists[WARPS][MOST];
  u16* staged = (u16*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  float w[PASSES][8];
  if (NORM) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
      for (int i = 0; i < 8; i++) w[pass][i] = 1.0f;
      if (norm_weight) load_floats<true>(w[pass], norm_weight, 8 * (threadIdx.x + THREADS * pass));
    }
  }
  float bias[WORDS] = {};
  {%- if route.biased %}
  load_logits<true>(bias, choice_bias, lane);
  {%- endif %}
  wait_for_dependencies();
  // After the wait: the logits are there before a dependent starts.
  launch_dependents();

  // 1 Experts, weights in flight, and x into shared memory. The logits and the rows are loaded together, and the weights as soon as the experts are known: row 0 is
  // staged after that. Where there is one row, each warp chooses for itself, and loads its first weights when it knows their expert.
  float logit[WORDS] = {}, top = 0.0f, v[PASSES][8], range = 1.0f, own_range = 1.0f;
  {%- if alike %}
  own_range = rms_before[warp % BATCH];
  {%- endif %}
  u32 chosen = 0;
  if (warp < BATCH || ALONE) load_logits<false>(logit, logits + warp % BATCH * EXPERTS, lane);
#pragma unroll 1
  for (int row = BATCH - 1; row >= 0; row--) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) load_floats<false>(v[pass], x + row * K, 8 * (threadIdx.x + THREADS * pass));
    {%- if alike %}
    range = rms_before[row];
    {%- endif %}
    if (row > 0) stage_row(staged, sums, v, w, row, range);
  }
  const int (&list)[MOST] = lists[warp];
  Held held[DEPTH];
  int items = TOP_K * TILES;
  if (ALONE) {
    chosen = choose(logit, bias, top, lane, [&](int slot, int expert) {
      if (lane == 0) lists[warp][slot] = expert;
      if (slot == blockIdx.x / TILES) load_first(held, expert_pointer(weights, expert), blockIdx.x % TILES, warp, lane);
    });
  } else {
    if (warp < BATCH) {
      chosen = choose(logit, bias, top, lane);
      leave_chosen(sets, warp, chosen, lane);
    }
    block_barrier();
    items = list_experts(lists[warp], sets, lane) * TILES;
    if (blockIdx.x < items) load_first(held, expert_pointer(weights, list[blockIdx.x / TILES]), blockIdx.x % TILES, warp, lane);
  }
  stage_row(staged, sums, v, w, 0, range);
  for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < zero_count; i += gridDim.x * THREADS) zeros[i] = 0.0f;
  block_barrier();

  // Of the row that this warp finishes: RMS, and the shares of its experts, which are read after a barrier.
  float scale = FACTOR;
  if (warp < BATCH) {
    float share[WORDS];
    const float rms = NORM ? inverse_rms(sums[warp]) : 1.0f;
    if (!RMS_FIRST) scale *= rms * inverse_power(own_range);
#pragma unroll
    for (int e = 0; SUMMED && e < WORDS; e++) logit[e] *= rms;
    shares_of(share, logit, chosen, SUMMED ? top * rms : top, lane);
    {%- if route.scaled %}
    scale_shares(share, expert_scale, lane);
{%- endif %}
#pragma unroll
    for (int e = 0; e < WORDS; e++)
      if (32 * e + lane < EXPERTS) shares[warp][32 * e + lane] = share[e];
  }
  // 2 Products. A row tile of a listed expert is an item; items of an expert follow each other.
  int parity = 0;
#pragma unroll 1
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    float sum[2][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      // Each step makes room for the one a ring later: of the next chunk, or the next item.
      const bool same = chunk + 1 < CHUNKS;
      const int next = same ? item : item + gridDim.x, next_chunk = same ? chunk + 1 : 0;
      const Vec4* from = next < items ? place_in(expert_pointer(weights, list[next / TILES]), next % TILES, next_chunk, warp, lane) : nullptr;
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        const int step = warp + WARPS * (DEPTH * chunk + i);
        if (WHOLE || step < STEPS) {
#pragma unroll
          for (int round = 0; round < ROUNDS; round++) {
            const u16* row = staged + (group % COLUMNS + round * BATCH) * STAGE_STRIDE;
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) multiply(sum, held[i], pair, load_staged(row, STEP * step + 32 * pair, quad));
          }
        }
        if (from) load_step(held[i], from, next_chunk, i, warp);
      }
    }
    // 3 Sums and epilogue.
    leave_partial(partial[parity], sum, warp, lane);
    block_barrier();
    if (warp < BATCH) {
      float y = total_of(partial[parity], warp, lane) * scale;
      {%- if biased %}
      y += biases[((u64)list[item / TILES] * TILES + item % TILES) * 16 + lane % 16];
      {%- endif %}
      const float other = GATED ? shuffle_xor(y, 8) : 1.0f, share = shares[warp][list[item / TILES]];
      {%- if gating.is_plain() %}
      y = share == 0.0f ? 0.0f : activate<ACTIVATION>(y) * other * share;
      {%- else %}
      y = share == 0.0f ? 0.0f : gated(y, other) * share;
      {%- endif %}
      const int at = item % TILES * TILE_ROWS + lane;
      if (lane < TILE_ROWS && at < ROWS[0]) store(hidden + ((u64)(item / TILES) * BATCH + warp) * ROWS[0] + at, y);
    }
    parity ^= 1;
  }
}
