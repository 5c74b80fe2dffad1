{% include "device.cuh" %}
// {{ name }}: y = W x for many rows of x, from the same packed weights as a matvec. A warp computes {{ row_tiles }} row tiles by {{ columns }} columns.
{% include "tiles.cuh" %}
constexpr int ROW_TILES = {{ row_tiles }};      // row tiles a warp
constexpr int COLUMNS = {{ columns }};          // groups of eight rows of x a warp
constexpr int WARPS = {{ warps }};              // they take neighbouring row tiles
constexpr int ACTIVATION = {{ activation }};

// weights: packed tiles. x: bfloat16 [rows][K]. bias in packed row order, residual fp32 [rows][ROWS]: null where absent.
// Grid: row tiles / (ROW_TILES WARPS), rows / (8 COLUMNS), both rounded up.
KERNEL void __launch_bounds__(32 * WARPS) {{ name }}(const Vec4* weights, const u16* x, const float* bias, const float* residual,
    Out* out0, Out* out1, Out* out2, u64 rows) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int first_tile = (blockIdx.x * WARPS + warp) * ROW_TILES, first_row = blockIdx.y * 8 * COLUMNS;
  launch_dependents();
  wait_for_dependencies();
  if (first_tile >= TILES) return;

  float sum[ROW_TILES][COLUMNS][4] = {};
#pragma unroll 2
  for (int pair = 0; pair < PAIRS; pair++) {
    Vec4 held[ROW_TILES][2];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
      const Vec4* tile = tile_pointer(weights, first_tile + r < TILES ? first_tile + r : TILES - 1, pair);
      held[r][0] = tile[lane];
      held[r][1] = tile[32 + lane];
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int row = first_row + 8 * c + group;
      const Vec4 v = load_activations(x + (u64)(row < (int)rows ? row : 0) * K, 32 * pair + 8 * quad);
#pragma unroll
      for (int r = 0; r < ROW_TILES; r++) {
        mma_bf16(sum[r][c], held[r][0], v.x, v.y);
        mma_bf16(sum[r][c], held[r][1], v.z, v.w);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < ROW_TILES; r++) {
    const int tile = first_tile + r;
    if (tile >= TILES) break;
    const float bias_low = bias ? bias[tile * 16 + group] : 0.0f, bias_high = bias ? bias[tile * 16 + group + 8] : 0.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (GATED && i >= 2) continue;
        const int row = first_row + 8 * c + 2 * quad + i % 2;
        const Place place = place_of(tile, group + (i < 2 ? 0 : 8));
        if (row >= (int)rows || place.row >= ROWS[place.output]) continue;
        const u64 at = (u64)row * ROWS[place.output] + place.row;
        float y = activate<ACTIVATION>(sum[r][c][i] + (i < 2 ? bias_low : bias_high));
        if (GATED) y *= sum[r][c][i % 2 + 2] + bias_high;
        if (residual) y += residual[at];
        store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
      }
    }
  }
}
