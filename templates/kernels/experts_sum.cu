{% include "device.cuh" %}
// {{ self.name() }}: the down projections of the {{ route.top_k }} experts of each of {{ batch }} rows, summed in the order of the experts. Reads the weights of the
// chosen experts only, each once.
{% include "tiles.cuh" %}
{% include "route.cuh" %}
{% include "experts.cuh" %}
constexpr int SPLIT = {{ split }};     // blocks that share the columns of a row tile: two add to a sum in memory
constexpr bool STAGED = {{ staged }};  // hidden values go through shared memory
constexpr bool LATE = {{ late }};      // triggers dependents after griddepcontrol.wait, not at the start
constexpr int COLUMNS = BATCH;
constexpr int BLOCK_STEPS = (STEPS + SPLIT - 1) / SPLIT;         // steps of a row tile of an expert that a block takes
constexpr int SHARE = (BLOCK_STEPS + WARPS - 1) / WARPS;         // and a warp: the same ones whatever the other rows' experts are
constexpr bool WHOLE = STEPS == SPLIT * WARPS * SHARE;           // nothing is padded
constexpr bool FULL = BATCH == 1 && TOP_K * SHARE % DEPTH == 0;  // nor is a ring
constexpr int EXPERT_K = BLOCK_STEPS * STEP;                     // columns of an expert that a block loads into shared memory
constexpr int STAGE_STRIDE = MOST * EXPERT_K + 32;               // 64 bytes more than a row: rows fall into other banks
static_assert(!GATED, "the sum is of single products");
{%- if biased %}
static_assert(!SUMMED, "shares are of whole logits");
{%- endif %}
static_assert(SPLIT == 1 || SPLIT == 2, "two addends have one sum; the order of three would show");
{% include "partial.cuh" %}

// A warp's turns: SHARE steps of the first listed expert, then those of the next. Whether a turn has one, and not padding.
DEVICE bool is_step(int turn, int rank, int warp) {
  const int step = warp + WARPS * (turn % SHARE);
  return WHOLE || (step < BLOCK_STEPS && rank * BLOCK_STEPS + step < STEPS);
}

// Starts the loads of the step of a turn. `offset`: where the warp's steps of a row tile begin in an expert.
DEVICE void load_step(Held& held, const Vec4* const (&list)[MOST], int offset, int turn, int rank, int warp) {
  if (!is_step(turn, rank, warp)) return;
  load_once(held, list[turn / SHARE] + offset + turn % SHARE * WARPS * STEP_WORDS);
}

// Eight of the columns of the expert at `slot` for row b, or a lane's of a pair.
DEVICE const u16* hidden_row(const u16* hidden, int slot, int b) { return hidden + ((u64)slot * BATCH + b) * K; }

// weights: experts of packed tiles. hidden: operands [listed experts][BATCH][K]. logits: [BATCH][EXPERTS], or COPIES of that. residual: fp32
// [BATCH][ROWS] or null. choice_bias: fp32 [EXPERTS]. {% if biased %}biases: fp32 [EXPERTS][TILES][16]. {% endif %}With SPLIT out holds zeros, to which both blocks add. Grid: any number of SPLIT blocks.
KERNEL void __launch_bounds__(THREADS, 16 / WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float partial[2][WARPS][WARP_STRIDE];
  SHARED u32 sets[BATCH][WORDS];
  SHARED int lists[WARPS][MOST], slots[WARPS][MOST];  // the experts in their order, and where in hidden each is if ALONE
  SHARED const Vec4* pointers[WARPS][MOST];
  {%- if biased %}
  SHARED float shares[BATCH][EXPERTS];
  {%- endif %}
  u16* staged = (u16*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int rank = blockIdx.x % SPLIT, first_tile = blockIdx.x / SPLIT, teams = gridDim.x / SPLIT;
  if (!LATE) launch_dependents();

  // 1 Experts, and their weights in flight, before the wait: the kernel before this one triggered after its own wait, so the logits are there.
  int count = TOP_K;
  if (warp < BATCH || ALONE) {
    float logit[WORDS], bias[WORDS] = {}, top;
    {%- if route.biased %}
    load_logits<true>(bias, choice_bias, lane);
    {%- endif %}
    load_logits<true>(logit, logits + warp % BATCH * EXPERTS, lane);
    int own = EXPERTS, place = 0;
    const u32 chosen = choose(logit, bias, top, lane, [&](int slot, int expert) {
      if (lane == slot) own = expert;
    });
    if (!ALONE) leave_chosen(sets, warp, chosen, lane);
    {%- if biased %}
    // Of the row that this warp finishes; it reads them after a barrier.
    float share[WORDS];
    shares_of(share, logit, chosen, top, lane);
    {%- if route.scaled %}
    scale_shares(share, expert_scale, lane);
{%- endif %}
#pragma unroll
    for (int w = 0; w < WORDS; w++)
      if (warp < BATCH && 32 * w + lane < EXPERTS) shares[warp][32 * w + lane] = share[w];
    {%- endif %}
    // Sums are in the order of the experts' numbers, so that a row has the same sum by itself and beside others.
    for (int slot = 0; ALONE && slot < TOP_K; slot++) place += shuffle_from(own, slot) < own;
    if (ALONE && lane < TOP_K) lists[warp][place] = own, slots[warp][place] = lane;
  }
  if (ALONE) {
    warp_barrier();
  } else {
    block_barrier();
    count = list_experts(lists[warp], sets, lane);
  }
  for (int i = lane; i < count; i += 32) pointers[warp][i] = expert_pointer(weights, lists[warp][i]);
  warp_barrier();
  const Vec4* const(&list)[MOST] = pointers[warp];
  const int turns = count * SHARE, chunks = (turns + DEPTH - 1) / DEPTH;
  int offset = (first_tile * STEPS + rank * BLOCK_STEPS + warp) * STEP_WORDS + lane;
  Held held[DEPTH];
#pragma unroll
  for (int i = 0; i < DEPTH; i++)
    if ((FULL || i < turns) && first_tile < TILES) load_step(held[i], list, offset, i, rank, warp);
  wait_for_dependencies();
  if (LATE) launch_dependents();

  // 2 Hidden values into shared memory.
  if (STAGED) {
    // Two loads are in flight together.
#pragma unroll 1
    for (int begin = 8 * threadIdx.x; begin < BATCH * count * EXPERT_K; begin += 16 * THREADS) {
      Vec4 v[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = begin + 8 * THREADS * h, row = i / EXPERT_K;
        if (row < BATCH * count)
          v[h] = load_activations(hidden_row(hidden, ALONE ? slots[warp][row / BATCH] : row / BATCH, row % BATCH), rank * EXPERT_K + i % EXPERT_K);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = begin + 8 * THREADS * h, row = i / EXPERT_K;
        if (row < BATCH * count) *(Vec4*)(staged + row % BATCH * STAGE_STRIDE + row / BATCH * EXPERT_K + i % EXPERT_K) = spread(v[h]);
      }
    }
    block_barrier();
  }
  int parity = 0;
#pragma unroll 1
  for (int tile = first_tile; tile < TILES; tile += teams) {
    const int row = tile * 16 + lane;
    const bool writes = warp < BATCH && lane < 16 && row < ROWS[0];
    // 3 Products.
    float add = 0.0f, sum[2][4] = {};
    if (writes && residual && rank == 0) add = residual[warp * ROWS[0] + row];
    {%- if biased %}
    for (int i = 0; writes && rank == 0 && i < count; i++) add += shares[warp][lists[warp][i]] * biases[((u64)lists[warp][i] * TILES + tile) * 16 + lane];
{%- endif %}
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      // Each step makes room for the one a ring later: of the next chunk, or the next row tile.
      const bool same = chunk + 1 < chunks;
      const int next_chunk = same ? chunk + 1 : 0;
      const bool more = same || tile + teams < TILES;
      if (!same) offset += teams * STEPS * STEP_WORDS;
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        const int turn = DEPTH * chunk + i, next = DEPTH * next_chunk + i;
        if ((FULL || turn < turns) && is_step(turn, rank, warp)) {
          const int b = group % BATCH, slot = turn / SHARE, k = STEP * (warp + WARPS * (turn % SHARE));
#pragma unroll
          for (int pair = 0; pair < PAIRS; pair++)
            multiply(sum, held[i], pair,
                     STAGED ? load_staged(staged + b * STAGE_STRIDE, slot * EXPERT_K + k + 32 * pair, quad)
                            : load_pair(hidden_row(hidden, ALONE ? slots[warp][slot] : slot, b), rank * EXPERT_K + k + 32 * pair, quad));
        }
        if (more && (FULL || next < turns)) load_step(held[i], list, offset, next, rank, warp);
      }
    }
    // 4 Sums and epilogue.
    leave_partial(partial[parity], sum, warp, lane);
    block_barrier();
    if (warp < BATCH) {
      const float y = total_of(partial[parity], warp, lane) * FACTOR + add;
      if (writes && SPLIT == 2) accumulate((float*)out + warp * ROWS[0] + row, y);
      if (writes && SPLIT == 1) store(out + warp * ROWS[0] + row, y);
    }
    parity ^= 1;
  }
}
