{% include "device.cuh" %}
// {{ self.name() }}: y = W x for many rows of x, from the same packed weights as a matvec. A warp computes {{ row_tiles }} row tiles by {{ columns }} groups of
// eight rows of x, over its share of the columns of W.
{% include "tiles.cuh" %}
constexpr int ROW_TILES = {{ row_tiles }};  // row tiles per warp
constexpr int COLUMNS = {{ columns }};      // groups of eight rows of x per warp
constexpr int ROW_WARPS = {{ row_warps }};  // warps side by side over the row tiles
constexpr int SPLIT = {{ split }};          // warps that take the steps of the same row tiles in turn
constexpr bool PAIRED = {{ paired }};       // a row of x is a hi/lo split: K hi parts, then K lo parts
constexpr int ACTIVATION = {{ self.activation_code() }};
{%- if !gating.is_plain() %}
{% include "gating.cuh" %}
{%- endif %}
{% if tiles.out.is_tiled() %}{% include "activations.cuh" %}
{%- endif %}
constexpr int WARPS = ROW_WARPS * SPLIT;
{%- if let Some(heads) = heads %}
constexpr int HEADS = {{ heads }};  // weights one after the other: a block multiplies one by its head of each row
constexpr int X_STRIDE = HEADS * K;
{%- else %}
constexpr int X_STRIDE = PAIRED ? 2 * K : K;
{%- endif %}
constexpr int UNITS = 2 * ROW_TILES * COLUMNS;  // pairs of results per lane: a row, and the one eight below
{%- if let Some(gather) = gather %}
constexpr int EXPERTS = {{ gather.experts }};   // weights one after the other: a block multiplies one by the rows that go to it
constexpr int TOP_K = {{ gather.top_k }};       // experts per row
constexpr bool BY_PAIR = {{ gather.by_pair }};  // x has a row for each expert of a row, multiplied by its share already
{%- endif %}
struct Fragments {
  Held weights[ROW_TILES];
  Vec4 rows[COLUMNS];  // where a step is one pair; those of several are loaded one after the other
};

DEVICE void load_fragments(Fragments& f, const Vec4* weights, const u16* x, const int (&source)[COLUMNS], int first_tile, int step) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  if (step >= STEPS) return;
#pragma unroll
  for (int r = 0; r < ROW_TILES; r++) {
    load_again(f.weights[r], tile_pointer(weights, first_tile + r < TILES ? first_tile + r : TILES - 1, step) + lane);
  }
#pragma unroll
  for (int c = 0; c < COLUMNS && PAIRS == 1; c++) f.rows[c] = load_pair(x + (u64)source[c] * X_STRIDE, STEP * step, quad);
}
{%- if gather.is_some() %}
// A row that goes to the expert: its number among the results of all rows and experts, and its share.
struct Taker {
  int row, pair;
  float share;
};

// The rows that go to an expert, from the `first` of them on as many as there is room for, by a whole warp. Returns how many they are in all.
DEVICE int gather(Taker (&takers)[8 * COLUMNS], const u32* bits, const int* slots, const float* shares, int expert, int first, int rows) {
  const int lane = threadIdx.x % 32, words = (rows + 31) / 32;
  int count = 0;
#pragma unroll 1
  for (int begin = 0; begin < words; begin += 32) {
    u32 word = begin + lane < words ? bits[expert * words + begin + lane] : 0;
    int at = count_bits(word);
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int before = (int)shuffle_up((u64)at, delta);
      if (lane >= delta) at += before;
    }
    const int whole = -warp_min(lane == 31 ? -at : 0);
    at += count - count_bits(word) - first;
    for (; word != 0; word &= word - 1, at++) {
      const int row = 32 * (begin + lane) + count_bits((word & -word) - 1);
      const u64 of = (u64)row * EXPERTS + expert;
      if (at >= 0 && at < 8 * COLUMNS) takers[at] = {row, row * TOP_K + slots[of], shares[of]};
    }
    count += whole;
  }
  return count;
}
{%- endif %}
// weights: packed tiles. x: operands [rows][K], or [rows][2][K]. bias in packed row order, residual fp32 [rows][ROWS]: null where absent.
{%- if gather.is_some() %}
// shares, slots [rows][EXPERTS] and bits [EXPERTS][rows / 32]: what route.cu writes. A result is a row for each expert of a row.
{%- endif %}
// Grid: row tiles / (ROW_TILES ROW_WARPS), rows / (8 COLUMNS), both rounded up{% if gather.is_some() %}, EXPERTS{% endif %}{% if heads.is_some() %}, HEADS{% endif %}.
KERNEL void __launch_bounds__(32 * WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED float partial[SPLIT > 1 ? SPLIT : 1][ROW_WARPS][SPLIT > 1 ? UNITS : 1][2][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row_warp = warp / SPLIT, part = warp % SPLIT;
  const int first_tile = (blockIdx.x * ROW_WARPS + row_warp) * ROW_TILES, first_row = blockIdx.y * 8 * COLUMNS;
  launch_dependents();
  wait_for_dependencies();

  // 1 Which rows of x.
  int source[COLUMNS];
  {%- if gather.is_some() %}
  SHARED Taker takers[8 * COLUMNS];
  SHARED int taken;
  if (warp == 0) {
    const int count = gather(takers, bits, slots, shares, blockIdx.z, first_row, (int)rows);
    if (lane == 0) taken = count;
  }
  block_barrier();
  if (first_row >= taken) return;
  rows = taken;
  weights += (u64)blockIdx.z * TILES * STEPS * STEP_WORDS;
  {%- if self.expert_biases() %}
  bias += (u64)blockIdx.z * TILES * 16;
{%- endif %}
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    const Taker& taker = takers[first_row + 8 * c + group < taken ? 8 * c + group : 0];
    source[c] = BY_PAIR ? taker.pair : taker.row;
  }
{%- else %}
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) source[c] = first_row + 8 * c + group < (int)rows ? first_row + 8 * c + group : 0;
  {%- endif %}
  {%- if heads.is_some() %}
  weights += (u64)blockIdx.z * TILES * STEPS * STEP_WORDS;
  x += (u64)blockIdx.z * K;
  {%- endif %}
  // 2 Products; the next step is loaded while this one is multiplied.
  float sum[ROW_TILES][COLUMNS][4] = {};
  if (first_tile < TILES) {
    Fragments now, next;
    load_fragments(now, weights, x, source, first_tile, part);
    for (int step = part; step < STEPS; step += SPLIT) {
      load_fragments(next, weights, x, source, first_tile, step + SPLIT);
      Vec4 left[COLUMNS];
      if (PAIRED) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) left[c] = load_activations(x + (u64)source[c] * X_STRIDE + K, STEP * step + 8 * quad);
      }
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          const Vec4 v = PAIRS == 1 ? now.rows[c] : load_pair(x + (u64)source[c] * X_STRIDE, STEP * step + 32 * pair, quad);
#pragma unroll
          for (int r = 0; r < ROW_TILES; r++) multiply(sum[r][c], now.weights[r], pair, v);
        }
      }
#pragma unroll
      for (int c = 0; c < COLUMNS && PAIRED; c++) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
          multiply(sum[r][c], now.weights[r], 0, left[c]);
        }
      }
      now = next;
    }
  }

  // 3 Sums and epilogue. Unit u is the results i and i + 2 of a row tile r and column group c. The warps that share a row tile finish its units in turn.
  if (SPLIT > 1) {
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      partial[part][row_warp][u][0][lane] = sum[u / (2 * COLUMNS)][u / 2 % COLUMNS][u % 2];
      partial[part][row_warp][u][1][lane] = sum[u / (2 * COLUMNS)][u / 2 % COLUMNS][u % 2 + 2];
    }
    block_barrier();
  }
#pragma unroll
  for (int u = 0; u < UNITS; u++) {
    if (SPLIT > 1 && u % SPLIT != part) continue;
    const int r = u / (2 * COLUMNS), c = u / 2 % COLUMNS, i = u % 2;
    const int tile = first_tile + r, row = first_row + 8 * c + 2 * quad + i;
    if (tile >= TILES || row >= (int)rows) continue;
    float low = sum[r][c][i], high = sum[r][c][i + 2];
    if (SPLIT > 1) {
      low = high = 0.0f;
#pragma unroll
      for (int s = 0; s < SPLIT; s++) low += partial[s][row_warp][u][0][lane], high += partial[s][row_warp][u][1][lane];
    }
    {%- if self.shared_biases() %}
    const float share = takers[row - first_row].share;
    low = low * FACTOR + share * bias[tile * 16 + group];
    high = high * FACTOR + share * bias[tile * 16 + group + 8];
    {%- else %}
    low = low * FACTOR + (bias ? bias[tile * 16 + group] : 0.0f);
    high = high * FACTOR + (bias ? bias[tile * 16 + group + 8] : 0.0f);
{%- endif %}
#pragma unroll
    for (int h = 0; h < (GATED ? 1 : 2); h++) {
      const Place place = place_of(tile, group + 8 * h);
      if (place.row >= ROWS[place.output]) continue;
      const u64 at =
          {%- if heads.is_some() %}((u64)row * HEADS + blockIdx.z){% else %}(u64){% if gather.is_some() %}takers[row - first_row].pair{% else %}row{% endif %}{% endif %}
          *ROWS[place.output] + place.row;
      {%- if gating.is_plain() %}
      float y = activate<ACTIVATION>(h == 0 ? low : high);
      if (GATED) y *= high;
      {%- else %}
      float y = gated(low, high);
      {%- endif %}
      {%- if gather.is_some() %}
      if (!BY_PAIR) y *= takers[row - first_row].share;
      {%- endif %}
      if (residual) y += residual[at];
      {%- if tiles.out.is_tiled() %}
      store(out0 + activation_at(row, {% if heads.is_some() %}blockIdx.z * ROWS[0] +{% endif %} place.row, rows), y);
      {%- else %}
      store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
      {%- endif %}
    }
  }
}
