{% include "device.cuh" %}
// {{ name }}: y = W x for many rows of x, from the same packed weights as a matvec. A warp computes {{ row_tiles }} row tiles by {{ columns }} groups of
// eight rows of x, over its share of the columns of W.
{% include "tiles.cuh" %}
constexpr int ROW_TILES = {{ row_tiles }};      // row tiles a warp
constexpr int COLUMNS = {{ columns }};          // groups of eight rows of x a warp
constexpr int ROW_WARPS = {{ row_warps }};      // warps side by side over the row tiles
constexpr int SPLIT = {{ split }};              // warps that take the pairs of the same row tiles in turn
constexpr bool PAIRED = {{ paired }};           // a row of x is K rounded values, then K times what rounding left
constexpr int ACTIVATION = {{ activation }};
constexpr int WARPS = ROW_WARPS * SPLIT;
constexpr int X_STRIDE = PAIRED ? 2 * K : K;
constexpr int UNITS = 2 * ROW_TILES * COLUMNS;  // results a lane holds in pairs: a row, and the one eight below

struct Fragments {
  Vec4 weights[ROW_TILES][2], rows[COLUMNS];
};

DEVICE void load_fragments(Fragments& f, const Vec4* weights, const u16* x, int first_tile, int first_row, int rows, int pair) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  if (pair >= PAIRS) return;
#pragma unroll
  for (int r = 0; r < ROW_TILES; r++) {
    const Vec4* tile = tile_pointer(weights, first_tile + r < TILES ? first_tile + r : TILES - 1, pair);
    f.weights[r][0] = tile[lane];
    f.weights[r][1] = tile[32 + lane];
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    const int row = first_row + 8 * c + group;
    f.rows[c] = load_activations(x + (u64)(row < rows ? row : 0) * X_STRIDE, 32 * pair + 8 * quad);
  }
}

// weights: packed tiles. x: bfloat16 [rows][K], or [rows][2][K]. bias in packed row order, residual fp32 [rows][ROWS]: null where absent.
// Grid: row tiles / (ROW_TILES ROW_WARPS), rows / (8 COLUMNS), both rounded up.
KERNEL void __launch_bounds__(32 * WARPS) {{ name }}(const Vec4* weights, const u16* x, const float* bias, const float* residual,
    Out* out0, Out* out1, Out* out2, u64 rows) {
  SHARED float partial[SPLIT > 1 ? SPLIT : 1][ROW_WARPS][SPLIT > 1 ? UNITS : 1][2][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row_warp = warp / SPLIT, part = warp % SPLIT;
  const int first_tile = (blockIdx.x * ROW_WARPS + row_warp) * ROW_TILES, first_row = blockIdx.y * 8 * COLUMNS;
  launch_dependents();
  wait_for_dependencies();

  float sum[ROW_TILES][COLUMNS][4] = {};
  if (first_tile < TILES) {
    Fragments now, next;
    load_fragments(now, weights, x, first_tile, first_row, (int)rows, part);
    for (int pair = part; pair < PAIRS; pair += SPLIT) {
      load_fragments(next, weights, x, first_tile, first_row, (int)rows, pair + SPLIT);
      Vec4 left[COLUMNS];
      if (PAIRED) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          const int row = first_row + 8 * c + group;
          left[c] = load_activations(x + (u64)(row < (int)rows ? row : 0) * X_STRIDE + K, 32 * pair + 8 * quad);
        }
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
          mma_bf16(sum[r][c], now.weights[r][0], now.rows[c].x, now.rows[c].y);
          mma_bf16(sum[r][c], now.weights[r][1], now.rows[c].z, now.rows[c].w);
        }
      }
#pragma unroll
      for (int c = 0; c < COLUMNS && PAIRED; c++) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
          mma_bf16(sum[r][c], now.weights[r][0], left[c].x, left[c].y);
          mma_bf16(sum[r][c], now.weights[r][1], left[c].z, left[c].w);
        }
      }
      now = next;
    }
  }

  // Unit u is the results i and i + 2 of a row tile r and column group c. The warps that share a row tile finish its units in turn.
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
    low += bias ? bias[tile * 16 + group] : 0.0f;
    high += bias ? bias[tile * 16 + group + 8] : 0.0f;
#pragma unroll
    for (int h = 0; h < (GATED ? 1 : 2); h++) {
      const Place place = place_of(tile, group + 8 * h);
      if (place.row >= ROWS[place.output]) continue;
      const u64 at = (u64)row * ROWS[place.output] + place.row;
      float y = activate<ACTIVATION>(h == 0 ? low : high);
      if (GATED) y *= high;
      if (residual) y += residual[at];
      store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
    }
  }
}
