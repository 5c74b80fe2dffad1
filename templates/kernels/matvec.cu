{% include "device.cuh" %}
// {{ self.name() }}: y = W f(x) for {{ batch }} rows of x, the warps of a block sharing the columns of a row tile. Reads W once.
{% include "tiles.cuh" %}
{% if tiles.out.is_tiled() %}{% include "activations.cuh" %}
{%- endif -%}
{% if let Some(combine) = combine %}{% let splits = combine.splits %}{% include "splits.cuh" %}
{%- endif %}
constexpr int BATCH = {{ batch }};            // rows of x
constexpr int WARPS = {{ warps }};            // they take the steps of a row tile in turn
constexpr int DEPTH = {{ depth }};            // steps of weights a warp has in flight
constexpr int UNIT = {{ unit }};              // row tiles that are finished together
constexpr int SPLIT = {{ split }};            // blocks that share the columns of a row tile: two add to a sum in memory
constexpr int NORM = {{ self.norm_code() }};  // 0 none, 1 rms_norm, 2 layer_norm of x; 3 none, x is fp32
constexpr float EPS = {{ self.eps() }};
constexpr bool ALIKE = {{ alike }};                                          // the norm before saw rows of nearly the same root mean square
constexpr bool COMBINE = {{ combine.is_some() }};                            // x is the partial results of a split attention
constexpr bool STAGED = {{ staged }};                                        // x goes through shared memory as operands
constexpr int HEADS = {{ self.heads() }}, HEAD_DIM = {{ self.head_dim() }};  // of that attention
constexpr int ACTIVATION = {{ self.activation_code() }};
constexpr bool LATE = {{ late }};      // triggers dependents after griddepcontrol.wait, not at the start
constexpr bool AHEAD = {{ ahead }};    // loads bias and residual before the products, not in the epilogue
constexpr bool ARGMAX = {{ argmax }};  // also writes each block's largest result and its row
constexpr int THREADS = 32 * WARPS;
constexpr int BLOCKS = WARPS < 16 ? 16 / WARPS : 1;       // per multiprocessor: 128 registers per thread
constexpr int BLOCK_STEPS = (STEPS + SPLIT - 1) / SPLIT;  // steps of a row tile that a block takes
constexpr int SHARE = (BLOCK_STEPS + WARPS - 1) / WARPS;  // and a warp
constexpr int TURNS = DEPTH / UNIT;                       // steps of a row tile in a ring
constexpr int CHUNKS = (SHARE + TURNS - 1) / TURNS;       // rings of steps per unit
constexpr int UNITS = (TILES + UNIT - 1) / UNIT;
constexpr int JOBS = (UNIT * BATCH + WARPS - 1) / WARPS;  // row tiles of a unit that a warp finishes, for a row of x each
constexpr int EIGHT = BATCH < 8 ? BATCH : 8;              // rows of x that are the columns of one product
constexpr int GROUPS = BATCH / EIGHT;                     // of them
// A hi/lo split of x is two columns of the product where eight have room for them, else two rounds.
constexpr bool PAIRED = NORM != 0 && X_PARTS == 2;
constexpr bool RMS_LAST = NORM == 1 && (PAIRED || ALIKE);  // the root mean square is applied to the products, which are linear in it
constexpr int ROUNDS = PAIRED && 2 * BATCH > 8 ? 2 : 1;
constexpr int COLUMNS = PAIRED && ROUNDS == 1 ? 2 * BATCH : EIGHT;
constexpr int STAGED_K = BLOCK_STEPS * STEP;         // columns of x that a block brings to shared memory
constexpr int STAGE_STRIDE = STAGED_K + 32;          // 64 bytes more than a row: rows fall into other banks
constexpr int ROW_WARPS = (STAGED_K / 8 + 31) / 32;  // warps that load a row in one pass
constexpr int SIDES = NORM != 1 ? 1 : BATCH >= 4 && 4 * ROW_WARPS <= WARPS ? 4 : BATCH >= 2 && 2 * ROW_WARPS <= WARPS ? 2 : 1;  // rows side by side
constexpr int SIDE_THREADS = THREADS / SIDES;
constexpr int PASSES = (STAGED_K + 8 * SIDE_THREADS - 1) / (8 * SIDE_THREADS);                          // groups of eight values of a row per thread
constexpr bool WHOLE = STEPS == SPLIT * WARPS * SHARE && CHUNKS * TURNS == SHARE && TILES % UNIT == 0;  // nothing is padded
static_assert(BATCH >= 1 && BATCH <= 32 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");
static_assert(WARPS % 2 == 0 && WARPS % EIGHT == 0, "half of a warp adds up half of the partial sums");
static_assert(GROUPS == 1 || (NORM == 0 && !COMBINE && !ARGMAX), "what is fused with x is for few rows");
static_assert(DEPTH % UNIT == 0, "a ring holds as many steps of each row tile of a unit");
static_assert(STAGED || (NORM == 0 && !COMBINE), "what is computed on the way passes through shared memory");
static_assert(!ALIKE || (NORM == 1 && !PAIRED), "only half precision has to be kept in range");
static_assert(SPLIT == 1 || SPLIT == 2, "two addends have one sum; the order of three would show");
static_assert(SPLIT == 1 || (NORM == 0 && !GATED && OUTPUTS == 1 && ACTIVATION == IDENTITY && !ARGMAX), "a share of a sum is only added");

// Where the steps of a warp begin in a chunk of a unit.
DEVICE const Vec4* place_in(const Vec4* weights, int unit, int chunk, int rank, int warp, int lane) {
  return tile_pointer(weights, unit * UNIT, rank * BLOCK_STEPS + warp + WARPS * TURNS * chunk) + lane;
}

// A ring has a turn's steps of all row tiles of a unit, then those of the next turn: step i is of row tile i % UNIT.
DEVICE int step_of(int chunk, int i, int warp) { return warp + WARPS * (chunk * TURNS + i / UNIT); }

// Whether step i of a chunk of a unit is one, and not padding.
DEVICE bool is_step(int unit, int chunk, int i, int rank, int warp) {
  const int step = step_of(chunk, i, warp);
  return WHOLE || (unit * UNIT + i % UNIT < TILES && step < BLOCK_STEPS && rank * BLOCK_STEPS + step < STEPS);
}

// Starts the loads of step i of a chunk of a unit that begins at `from`.
DEVICE void load_step(Held& held, const Vec4* from, int unit, int chunk, int i, int rank, int warp) {
  if (unit >= UNITS || !is_step(unit, chunk, i, rank, warp)) return;
  load_once(held, from + (i % UNIT * STEPS + WARPS * (i / UNIT)) * STEP_WORDS);
}

// The result that a lane of a warp has of its job in a unit: where it goes, and where its bias lies.
struct Result {
  int output, row, at, bias;
  bool exists;
};
DEVICE Result result_of(int unit, int job, int lane) {
  const int tile = unit * UNIT + job / BATCH;
  const Place place = place_of(tile, lane % 16);
  const bool exists = job < UNIT * BATCH && lane < TILE_ROWS && place.row < ROWS[place.output];
  return {place.output, place.row, job % BATCH * ROWS[place.output] + place.row, tile * 16 + lane % 16, exists};
}

// What is added to a result: to the product, to the other product of a gated one, and last.
struct Addends {
  float bias = 0.0f, other_bias = 0.0f, residual = 0.0f;
};
DEVICE Addends addends_of(const Result& result, const float* bias, const float* residual) {
  Addends add;
  if (!result.exists) return add;
  if (bias) add.bias = bias[result.bias];
  if (bias && GATED) add.other_bias = bias[result.bias + 8];
  if (residual) add.residual = residual[result.at];
  return add;
}

{% include "floats.cuh" %}
{% include "partial.cuh" %}
{% if let Some(routed) = router %}{% include "router.cuh" %}
{%- endif %}
// The sum of one value per thread over the block, in the order of the warps.
DEVICE float block_total(float value, float (&sums)[WARPS][BATCH]) {
  value = warp_sum(value);
  block_barrier();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][0] = value;
  block_barrier();
  float total = 0.0f;
  for (int i = 0; i < WARPS; i++) total += sums[i][0];
  block_barrier();
  return total;
}

// x · w into shared memory, and the warp's part of the sum of squares. The root mean square comes after the products; half precision, which has no room for any
// residual as it is, takes x times `range`, a power of two near the inverse of what the norm before saw.
// SIDES groups of warps take a row each, or two whose loads go out together.
constexpr int ROWS_AT_ONCE = BATCH >= 2 * SIDES && NORM == 1 ? 2 : 1;
DEVICE int side_of(int row) { return row / ROWS_AT_ONCE % SIDES; }

DEVICE void stage_norm(u16* staged, float (&sums)[WARPS][BATCH], const float* x, const float (&w)[PASSES][8], const float* bias, const float* range) {
  const int side = NORM == 1 ? threadIdx.x / SIDE_THREADS : 0, thread = threadIdx.x % SIDE_THREADS;
#pragma unroll 1
  for (int first = 0; first < BATCH; first += ROWS_AT_ONCE * SIDES) {
    const int row = first + side * ROWS_AT_ONCE;
    float mean = 0.0f, scale = 1.0f, square[ROWS_AT_ONCE] = {}, unit[ROWS_AT_ONCE];
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) unit[r] = ALIKE ? range[row + r] * X_UNIT : X_UNIT;
    if (NORM == 2) {
      float sum = 0.0f, squares = 0.0f;
      for (int k = threadIdx.x; k < K; k += THREADS) sum += x[row * K + k];
      mean = block_total(sum, sums) / K;
      for (int k = threadIdx.x; k < K; k += THREADS) squares += (x[row * K + k] - mean) * (x[row * K + k] - mean);
      scale = rsqrtf(block_total(squares, sums) / K + EPS);
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      const int k = 8 * (thread + SIDE_THREADS * pass);
      if (k >= STAGED_K) break;
      float v[ROWS_AT_ONCE][8];
#pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) load_floats<false>(v[r], x + (row + r) * K, k);
#pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          square[r] += v[r][i] * v[r][i];
          v[r][i] = (NORM == 2 ? (v[r][i] - mean) * scale : v[r][i]) * w[pass][i];
          if (bias && k + i < K) v[r][i] += bias[k + i];
          v[r][i] *= unit[r] * latter_of(i);
        }
        store_operands(staged + (row + r) * STAGE_STRIDE + k, v[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE && NORM == 1; r++) {
      square[r] = warp_sum(square[r]);
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][row + r] = square[r];
    }
  }
}

// rms_norm of x into shared memory, where nothing is known of its range: the threads of a row add up the squares first. A row of few values stays in registers,
// another one is read again.
constexpr bool KEPT = ROWS_AT_ONCE * PASSES <= 2;
DEVICE void stage_rms_norm(u16* staged, float (&sums)[WARPS][BATCH], const float* x, const float (&w)[PASSES][8]) {
  const int side = threadIdx.x / SIDE_THREADS, thread = threadIdx.x % SIDE_THREADS;
#pragma unroll 1
  for (int first = 0; first < BATCH; first += ROWS_AT_ONCE * SIDES) {
    const int row = first + side * ROWS_AT_ONCE;
    float v[ROWS_AT_ONCE][PASSES][8], square[ROWS_AT_ONCE] = {};
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      const int k = 8 * (thread + SIDE_THREADS * pass);
#pragma unroll
      for (int r = 0; r < ROWS_AT_ONCE; r++) {
        load_floats<false>(v[r][pass], x + (row + r) * K, k);
#pragma unroll
        for (int i = 0; i < 8; i++) square[r] += v[r][pass][i] * v[r][pass][i];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
      square[r] = warp_sum(square[r]);
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][row + r] = square[r];
    }
    block_barrier();
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS / SIDES; i++) total += sums[side * (WARPS / SIDES) + i][row + r];
      const float scale = rsqrtf(total / K + EPS) * X_UNIT;
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++) {
        const int k = 8 * (thread + SIDE_THREADS * pass);
        if (k >= STAGED_K) break;
        if (!KEPT) load_floats<false>(v[r][pass], x + (row + r) * K, k);
#pragma unroll
        for (int i = 0; i < 8; i++) v[r][pass][i] *= scale * latter_of(i) * w[pass][i];
        store_operands(staged + (row + r) * STAGE_STRIDE + k, v[r][pass]);
      }
    }
  }
}

// Columns of x from `base` on, as they are. A few loads of a thread go out together.
constexpr int EIGHTS = BATCH * STAGED_K / 8;
constexpr int EIGHTS_AT_ONCE = EIGHTS > 3 * THREADS ? 4 : (EIGHTS + THREADS - 1) / THREADS;

DEVICE void stage_plain(u16* staged, const u16* x, int base) {
#pragma unroll 1
  for (int begin = threadIdx.x; begin < EIGHTS; begin += EIGHTS_AT_ONCE * THREADS) {
    Vec4 v[EIGHTS_AT_ONCE];
#pragma unroll
    for (int r = 0; r < EIGHTS_AT_ONCE; r++) {
      const int i = 8 * (begin + r * THREADS), b = i / STAGED_K;
      if (b < BATCH) v[r] = load_activations(x + b * K, base + i % STAGED_K);
    }
#pragma unroll
    for (int r = 0; r < EIGHTS_AT_ONCE; r++) {
      const int i = 8 * (begin + r * THREADS), b = i / STAGED_K;
      if (b < BATCH) *(Vec4*)(staged + b * STAGE_STRIDE + i % STAGED_K) = spread(v[r]);
    }
  }
}

{%- if combine.is_some() %}
// The weighted mean of what is left of the splits, in their order, for the columns of x from `base` on. Fours of columns lie in one head, or are
// taken one by one. The loads of a few splits of a few runs of columns go out together.
constexpr int RUN = HEAD_DIM % 4 == 0 ? 4 : 1;
constexpr int RUNS = BATCH * STAGED_K / RUN;
constexpr int RUNS_AT_ONCE = RUNS > THREADS ? 2 : 1;
constexpr int TOGETHER = 4 / RUNS_AT_ONCE;

DEVICE void stage_combined(u16* staged, const f16* partial, const float* statistics, const int (&position_of)[BATCH], int base) {
#pragma unroll 1
  for (int begin = threadIdx.x; begin < RUNS; begin += RUNS_AT_ONCE * THREADS) {
    int splits[RUNS_AT_ONCE], most = 0;
    float largest[RUNS_AT_ONCE], total[RUNS_AT_ONCE], sum[RUNS_AT_ONCE][RUN];
#pragma unroll
    for (int r = 0; r < RUNS_AT_ONCE; r++) {
      const int i = RUN * (begin + r * THREADS), b = i / STAGED_K;
      splits[r] = b < BATCH && base + i % STAGED_K < K ? results_left(position_of[b]) : 0;
      if (splits[r] > most) most = splits[r];
      largest[r] = NEGATIVE_INFINITY, total[r] = 0.0f;
#pragma unroll
      for (int j = 0; j < RUN; j++) sum[r][j] = 0.0f;
    }
#pragma unroll 1
    for (int first = 0; first < most; first += TOGETHER) {
      float score[RUNS_AT_ONCE][TOGETHER], weight[RUNS_AT_ONCE][TOGETHER];
      u64 values[RUNS_AT_ONCE][TOGETHER];
#pragma unroll
      for (int r = 0; r < RUNS_AT_ONCE; r++)
#pragma unroll
        for (int s = 0; s < TOGETHER; s++) {
          const int i = RUN * (begin + r * THREADS), b = i / STAGED_K, k = base + i % STAGED_K, at = (first + s) * BATCH + b;
          if (first + s >= splits[r]) continue;
          score[r][s] = statistics[(at * HEADS + k / HEAD_DIM) * 2], weight[r][s] = statistics[(at * HEADS + k / HEAD_DIM) * 2 + 1];
          const f16* from = partial + (u64)at * K + k;
          values[r][s] = RUN == 4 ? *(const u64*)from : from->bits;
        }
#pragma unroll
      for (int r = 0; r < RUNS_AT_ONCE; r++)
#pragma unroll
        for (int s = 0; s < TOGETHER; s++) {
          if (first + s >= splits[r]) continue;
          const float peak = fmaxf(largest[r], score[r][s]), keep = power_of_two(largest[r] - peak), take = power_of_two(score[r][s] - peak) * weight[r][s];
          largest[r] = peak;
          total[r] = total[r] * keep + take;
#pragma unroll
          for (int j = 0; j < RUN; j++) {
            const f16 value = {(u16)(values[r][s] >> 16 * j)};
            sum[r][j] = sum[r][j] * keep + take * load(&value);
          }
        }
    }
#pragma unroll
    for (int r = 0; r < RUNS_AT_ONCE; r++) {
      const int i = RUN * (begin + r * THREADS), b = i / STAGED_K;
      if (b >= BATCH) break;
      Operand* to = (Operand*)staged + b * STAGE_STRIDE + i % STAGED_K;
#pragma unroll
      for (int j = 0; j < RUN; j++) store(to + j, splits[r] > 0 ? sum[r][j] / total[r] * latter_of(i % STAGED_K + j) : 0.0f);
    }
  }
}
{%- endif %}

// Whether a logit takes the place of the largest so far. A NaN does, and keeps it.
DEVICE bool beats(float value, float best) { return value > best || value != value; }

// weights: packed tiles. x: fp32 [BATCH][K] where NORM is not 0, else operands [BATCH][K], or f16 [LEFT][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][rows of the output]: null where absent.
// With SPLIT out0 holds zeros, to which both blocks add. maxima: [BATCH][gridDim.x] value, row. router: packed tiles; router_norm [rows of the output] or null;
// logits: [COPIES][BATCH][ROUTED] zeros, to which all blocks add. rms_before, rms: [BATCH] inverse root mean squares of rows, as powers of two. zeros: `zero_count` floats that are set to zero.
KERNEL void __launch_bounds__(THREADS, BLOCKS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float partial[GROUPS == 1 ? 2 : 1][GROUPS][UNIT][WARPS][WARP_STRIDE];
  SHARED float sums[WARPS][BATCH];
  u16* staged = (u16*)shared_memory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int rank = blockIdx.x % SPLIT, first_unit = blockIdx.x / SPLIT, teams = gridDim.x / SPLIT;

  // 1 Weights in flight: they depend on no launch, so they are loaded while the kernel that computes x runs. Nor do positions depend on one.
  if (!LATE) launch_dependents();
  Held held[DEPTH];
  {
    const Vec4* from = place_in(weights, first_unit, 0, rank, warp, lane);
#pragma unroll
    for (int i = 0; i < DEPTH; i++) load_step(held[i], from, first_unit, 0, i, rank, warp);
  }
  {%- if router.is_some() %}
  SHARED Vec4 slice[SLICE][routing::STEP_WORDS], norm[UNIT * 4];
  SHARED float fresh[BATCH][UNIT * 16];
  copy_router(slice, norm, router, router_norm, first_unit);
  {%- endif %}
  float w[PASSES][8];
  if (NORM != 0) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
      for (int i = 0; i < 8; i++) w[pass][i] = 1.0f;
      if (norm_weight) load_floats<true>(w[pass], norm_weight, 8 * (threadIdx.x % SIDE_THREADS + SIDE_THREADS * pass));
    }
  }
  {%- if combine.is_some() %}
  SHARED int position_of[BATCH];
  if (threadIdx.x < BATCH) position_of[threadIdx.x] = load_early(positions + threadIdx.x);
  block_barrier();
  {%- endif %}
  wait_for_dependencies();
  if (LATE) launch_dependents();

  // 2 x into shared memory.
  const float* range = nullptr;
  float own_range = 1.0f;  // of the row of x that this warp finishes
                           {%- if alike %}
  range = rms_before, own_range = range[warp % BATCH];
  {%- endif %}
  if (NORM == 1 && !RMS_LAST) stage_rms_norm(staged, sums, (const float*)x, w);
  else if (NORM != 0) stage_norm(staged, sums, (const float*)x, w, norm_bias, range);
  {%- if combine.is_some() %}
  stage_combined(staged, (const f16*)x, statistics, position_of, rank * STAGED_K);
  {%- endif %}
  if (STAGED && NORM == 0 && !COMBINE) stage_plain(staged, (const u16*)x, rank * STAGED_K);
  for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < zero_count; i += gridDim.x * THREADS) zeros[i] = 0.0f;
  if (STAGED) block_barrier();
  {%- if self.sums_steps() %}
  // A warp sums up the steps that it multiplies.
  StepSums* const step_sums = (StepSums*)(staged + BATCH * STAGE_STRIDE) + lane;
#pragma unroll 4
  for (int step = warp; step < BLOCK_STEPS; step += WARPS)
    step_sums[32 * step] = sums_of_step([&](int pair) { return load_staged(staged + group % COLUMNS * STAGE_STRIDE, STEP * step + 32 * pair, quad); });
  {%- endif %}
  // What the results are multiplied by: the RMS of the row of x that this warp finishes, too, where it is not in the operands.
  float scale = {% if self.is_halved() %}HALVES_FACTOR{% else %}FACTOR{% endif %};
  if (NORM == 1 && (RMS_LAST || IS_F16)) {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS / SIDES; i++) square += sums[side_of(warp % BATCH) * (WARPS / SIDES) + i][warp % BATCH];
    const float inverse = rsqrtf(square / K + EPS);
    if (RMS_LAST) scale = inverse * FACTOR * inverse_power(own_range);
    {%- if self.leaves_rms() %}
    if (blockIdx.x == 0 && warp < BATCH && lane == 0) rms[warp] = power_below(inverse);
    {%- endif %}
  }

  float best = NEGATIVE_INFINITY;
  int best_row = 0, parity = 0;
#pragma unroll 1
  for (int unit = first_unit; unit < UNITS; unit += teams) {
    // 3 Products.
    float sum[GROUPS][UNIT][2][4] = {};
    Addends add[JOBS];
#pragma unroll
    for (int j = 0; j < JOBS; j++)
      if (AHEAD && rank == 0) add[j] = addends_of(result_of(unit, warp + WARPS * j, lane), bias, residual);
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      // Each step makes room for the one a ring later: of the next chunk, or the next unit.
      const bool same = chunk + 1 < CHUNKS;
      const int next_unit = same ? unit : unit + teams, next_chunk = same ? chunk + 1 : 0;
      const Vec4* from = place_in(weights, next_unit, next_chunk, rank, warp, lane);
#pragma unroll
      for (int turn = 0; turn < DEPTH; turn += UNIT) {
        if (is_step(unit, chunk, turn, rank, warp)) {
          const int step = step_of(chunk, turn, warp), k = STEP * step;
          {%- if self.sums_steps() %}
          const StepSums totals = step_sums[32 * step];
{%- endif %}
#pragma unroll
          for (int round = 0; round < ROUNDS * GROUPS; round++) {
            const int row = group % COLUMNS + round * EIGHT, of = GROUPS == 1 ? 0 : round;
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
              // The row tiles of a turn share them.
              const Vec4 v = STAGED ? load_staged(staged + row * STAGE_STRIDE, k + 32 * pair, quad)
                                    : load_pair((const u16*)x + row * K, rank * STAGED_K + k + 32 * pair, quad);
              {%- if !self.sums_steps() %}
              const Totals totals = totals_of(v);
{%- endif %}
#pragma unroll
              for (int tile = 0; tile < UNIT; tile++)
                if (is_step(unit, chunk, turn + tile, rank, warp))
                  {%- if self.is_halved() %}multiply_halves{% else %}multiply{% endif %}
                  (sum[of][tile], held[turn + tile], pair, v, totals);
            }
          }
        }
#pragma unroll
        for (int tile = 0; tile < UNIT; tile++) load_step(held[turn + tile], from, next_unit, next_chunk, turn + tile, rank, warp);
      }
    }

    // 4 Sums and epilogue.
#pragma unroll
    for (int of = 0; of < GROUPS; of++)
#pragma unroll
      for (int tile = 0; tile < UNIT; tile++) leave_partial(partial[parity][of][tile], sum[of][tile], warp, lane);
    {%- if router.is_some() %}
    await_copies();
    {%- endif %}
    block_barrier();
    // A warp takes a row tile for one row of x: lane i adds up row i % 16 over half of the warps.
#pragma unroll
    for (int j = 0; j < JOBS; j++) {
      const int job = warp + WARPS * j;
      if (job >= UNIT * BATCH) break;
      const Result result = result_of(unit, job, lane);
      if (!AHEAD && rank == 0) add[j] = addends_of(result, bias, residual);
      float y = total_of(partial[parity][job % BATCH / EIGHT][job / BATCH], job % EIGHT, lane);
      const float other = GATED ? shuffle_xor(y, 8) : 0.0f;
      y = activate<ACTIVATION>(y * scale + add[j].bias);
      if (GATED) y *= other * scale + add[j].other_bias;
      y += add[j].residual;
      if (result.exists && SPLIT == 2) accumulate((float*)out0 + result.at, y);
      {%- if tiles.out.is_tiled() %}
      if (result.exists) store(out0 + activation_at(job % BATCH, result.row, BATCH), y);
      {%- else %}
      if (result.exists && SPLIT == 1) store((result.output == 0 ? out0 : result.output == 1 ? out1 : out2) + result.at, y);
      {%- endif %}
      if (ARGMAX && result.exists && beats(y, best)) best = y, best_row = result.row;
      {%- if router.is_some() %}
      const int at = job / BATCH * 16 + lane;
      if (result.exists) fresh[job % BATCH][at] = router_norm ? y * ((const float*)norm)[at] : y;
      {%- endif %}
    }
    {%- if router.is_some() %}
    block_barrier();
    add_logits(logits, slice, fresh, unit, warp, lane);
    if (unit + teams < UNITS) {
      block_barrier();
      copy_router(slice, norm, router, router_norm, unit + teams);
    }
    {%- endif %}
    if (GROUPS == 1) parity ^= 1;
    else block_barrier();
  }

  // 5 The largest result of the block.
  if (ARGMAX) {
    SHARED float best_value[WARPS];
    SHARED int best_rows[WARPS];
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) {
      const float value = shuffle_xor(best, mask);
      const int row = shuffle_xor(best_row, mask);
      if (beats(value, best) || (value == best && row < best_row)) best = value, best_row = row;
    }
    if (lane == 0) best_value[warp] = best, best_rows[warp] = best_row;
    block_barrier();
    if (threadIdx.x < BATCH) {
      for (int i = threadIdx.x; i < WARPS; i += BATCH)
        if (beats(best_value[i], best) || (best_value[i] == best && best_rows[i] < best_row) || i == threadIdx.x) best = best_value[i], best_row = best_rows[i];
      maxima[(threadIdx.x * gridDim.x + blockIdx.x) * 2] = bits_of(best);
      maxima[(threadIdx.x * gridDim.x + blockIdx.x) * 2 + 1] = best_row;
    }
  }
}
