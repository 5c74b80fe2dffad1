// After templates/kernels/device.cuh:
// matmul_gated_f16_f16_k2048_n8192_m64: y = W x for many rows of x, from the same packed weights as a matvec. A warp computes 2 row tiles by 8 groups of
// eight rows of x, over its share of the columns of W.
// A packed weight: row tiles of 16 rows, each a run of steps.
// How weights are packed, and what a warp does with a step of them. A pair is 16 rows by 32 columns: two A fragments of mma.m16n8k16. Lane l has rows l / 4 and l / 4 + 8 of
// it. Each format defines the same names:
//   STEP columns of a step, PAIRS of them, STEP_WORDS of 16 bytes; Held, a lane's share, with load_once and load_again, whose `from` is the step's word `lane`;
//   NATURAL: a lane's columns are those of mma in their order, else the eight columns 8 (l % 4) .. + 7, which one load of 16 bytes brings;
//   SPREAD: a fragment's codes of the latter four of those eight count sixteenfold;
//   Totals: what a lane's activations of a pair have to be summed up for, with totals_of;
//   multiply: adds the products of a pair with a lane's activations of it, into two sums, which halves the dependency chain, or into one;
//   value_of: one value of a step.
// Products of half precision.
typedef f16 Operand;
constexpr bool IS_F16 = true;
constexpr int X_PARTS = 1;                 // operands of an fp32 x
constexpr float X_UNIT = 1.0f / F16_UNIT;  // an operand is this much of its value
DEVICE void mma(float (&d)[4], const Vec4& a, u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
DEVICE float low_operand(u32 pair) { return f16_low(pair); }
DEVICE float high_operand(u32 pair) { return f16_high(pair); }
DEVICE u32 pack_operands(float low, float high) { return pack_f16(low, high); }
// 16 bits a weight. A tile is 16 rows by 16 columns, 512 bytes: lane l holds 16 bytes, its own mma.m16n8k16 A fragment. A step is two tiles, 32 columns, ordered
// so that lane l's share of it is columns 8 (l % 4) .. + 7 of rows l / 4 and l / 4 + 8: one 16-byte load of an activation row at column 8 (l % 4) is
// then the B fragment of both tiles. Rows and columns beyond the weight are zeros.
constexpr int STEP = 32;        // columns of a step
constexpr int PAIRS = 1;        // of tiles
constexpr int STEP_WORDS = 64;  // 16-byte words of a row tile's step
constexpr bool NATURAL = false;
constexpr bool SPREAD = false;
constexpr float W_UNIT = IS_F16 ? 256.0f : 1.0f;    // what is held is this much of a weight
constexpr float FACTOR = 1.0f / (X_UNIT * W_UNIT);  // what sums of products are multiplied by

// A lane's share of a step. `from` is the step's word `lane`.
struct Held {
  Vec4 tile[2];
};
DEVICE void load_once(Held& held, const Vec4* from) { held.tile[0] = load_stream(from), held.tile[1] = load_stream(from + 32); }
DEVICE void load_again(Held& held, const Vec4* from) { held.tile[0] = from[0], held.tile[1] = from[32]; }

struct Totals {};
DEVICE Totals totals_of(const Vec4&) { return {}; }

// Parentheses: the mma of this namespace, where the file is included in one.
DEVICE void multiply(float (&sum)[2][4], const Held& held, int, const Vec4& x, const Totals&) {
  (mma)(sum[0], held.tile[0], x.x, x.y);
  (mma)(sum[1], held.tile[1], x.z, x.w);
}
DEVICE void multiply(float (&sum)[4], const Held& held, int, const Vec4& x, const Totals&) {
  (mma)(sum, held.tile[0], x.x, x.y);
  (mma)(sum, held.tile[1], x.z, x.w);
}

// In half precision, whatever the weights are: bfloat16 becomes that on the way, exactly from 2^-17 up, and to 2^-25 below.
constexpr float HALVES_FACTOR = IS_F16 ? FACTOR : F16_UNIT;  // what sums of such products are multiplied by
DEVICE u32 half_of(u32 pair) { return pack_f16(bf16_low(pair), bf16_high(pair)); }
DEVICE Vec4 halves_of(const Vec4& v) { return IS_F16 ? v : Vec4{half_of(v.x), half_of(v.y), half_of(v.z), half_of(v.w)}; }

DEVICE void multiply_halves(float (&sum)[2][4], const Held& held, int, const Vec4& x, const Totals&) {
  mma_f16(sum[0], (halves_of)(held.tile[0]), x.x, x.y);
  mma_f16(sum[1], (halves_of)(held.tile[1]), x.z, x.w);
}

DEVICE float low_weight(u32 pair) { return low_operand(pair) / W_UNIT; }
DEVICE float high_weight(u32 pair) { return high_operand(pair) / W_UNIT; }

// One value of a step.
DEVICE float value_of(const Vec4* step, int row, int column) {
  // Two of the eight columns of a quad fill one register of one tile.
  const int tile = column / 4 % 2, half = column / 2 % 2, odd = column % 2, quad = column / 8;
  const u32 pair = word(step[tile * 32 + row % 8 * 4 + quad], row / 8 + 2 * half);
  return odd ? high_weight(pair) : low_weight(pair);
}

// The products of a lane's eight columns with h, summed: of row lane / 4, and of the row eight below.
DEVICE void dot(float& low, float& high, const Held& held, const float* h) {
  const Vec4 a = held.tile[0], b = held.tile[1];
  const u32 upper[4] = {a.x, a.z, b.x, b.z}, lower[4] = {a.y, a.w, b.y, b.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    low += low_weight(upper[j]) * h[2 * j] + high_weight(upper[j]) * h[2 * j + 1];
    high += low_weight(lower[j]) * h[2 * j] + high_weight(lower[j]) * h[2 * j + 1];
  }
}

template <typename Sum, typename Step>
DEVICE void multiply(Sum& sum, Step& held, int pair, const Vec4& x) {
  multiply(sum, held, pair, x, totals_of(x));
}
static_assert(STEP == 32 && STEP_WORDS * 16 == 1024 && PAIRS * 32 == STEP, "as they are packed");
constexpr int K = 2048;                                                         // columns
constexpr int STEPS = (K + STEP - 1) / STEP;                                             // of a row tile
constexpr int OUTPUTS = 1;                                          // weights packed one after the other, each in its own row tiles
constexpr int ROWS[3] = { 8192, 0, 0 };  // rows of each
constexpr bool GATED = true;                                                // a row tile is 8 rows of the gate above 8 rows of the other
constexpr int TILE_ROWS = GATED ? 8 : 16;                                                // results per row tile
constexpr int TILES0 = (ROWS[0] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES1 = (ROWS[1] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES2 = (ROWS[2] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES = TILES0 + TILES1 + TILES2;  // row tiles in all
typedef f16 Out;                     // storage of the results

DEVICE const Vec4* tile_pointer(const Vec4* weights, int tile, int step) { return weights + ((u64)tile * STEPS + step) * STEP_WORDS; }

// Eight consecutive operands of an activation row, zeros beyond K.
DEVICE Vec4 load_activations(const u16* row, int k) {
  Vec4 v = {0, 0, 0, 0};
  if (K % 8 == 0) {
    if (k < K) v = *(const Vec4*)(row + k);
  } else {
    u32 e[8];
#pragma unroll
    for (int i = 0; i < 8; i++) e[i] = k + i < K ? row[k + i] : 0;
    v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
  }
  return v;
}

// What a lane's activations are multiplied as: the latter four of eight by a sixteenth where their codes count sixteenfold.
constexpr float LATTER = SPREAD ? 1.0f / 16.0f : 1.0f;
DEVICE float latter_of(int column) { return column % 8 < 4 ? 1.0f : LATTER; }
DEVICE Vec4 spread(const Vec4& x) {
  constexpr u32 SIXTEENTHS = 0x2c002c00;
  return SPREAD ? Vec4{x.x, x.y, times_f16(x.z, SIXTEENTHS), times_f16(x.w, SIXTEENTHS)} : x;
}

// A lane's activations of the pair that begins at column k of a row, which reaches to the end of its last step or is padded here.
DEVICE Vec4 load_pair(const u16* row, int k, int quad) {
  if (!NATURAL) return spread(load_activations(row, k + 8 * quad));
  const u32* at = (const u32*)(row + k) + quad;
  return {at[0], at[4], at[8], at[12]};
}
// And of one that is staged, with its padding, and spread by then.
DEVICE Vec4 load_staged(const u16* row, int k, int quad) {
  if (!NATURAL) return *(const Vec4*)(row + k + 8 * quad);
  const u32* at = (const u32*)(row + k) + quad;
  return {at[0], at[4], at[8], at[12]};
}

// Where result `row` of a row tile goes: which output, and which of its rows. A row at or beyond ROWS[output] is padding.
struct Place {
  int output, row;
};
DEVICE Place place_of(int tile, int row) {
  if (OUTPUTS > 2 && tile >= TILES0 + TILES1) return {2, (tile - TILES0 - TILES1) * TILE_ROWS + row};
  if (OUTPUTS > 1 && tile >= TILES0) return {1, (tile - TILES0) * TILE_ROWS + row};
  return {0, tile * TILE_ROWS + row};
}
constexpr int ROW_TILES = 2;  // row tiles per warp
constexpr int COLUMNS = 8;      // groups of eight rows of x per warp
constexpr int ROW_WARPS = 2;  // warps side by side over the row tiles
constexpr int SPLIT = 2;          // warps that take the steps of the same row tiles in turn
constexpr bool PAIRED = false;       // a row of x is a hi/lo split: K hi parts, then K lo parts
constexpr int ACTIVATION = 0;

constexpr int WARPS = ROW_WARPS * SPLIT;
constexpr int X_STRIDE = PAIRED ? 2 * K : K;
constexpr int UNITS = 2 * ROW_TILES * COLUMNS;  // pairs of results per lane: a row, and the one eight below
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
// weights: packed tiles. x: operands [rows][K], or [rows][2][K]. bias in packed row order, residual fp32 [rows][ROWS]: null where absent.
// Grid: row tiles / (ROW_TILES ROW_WARPS), rows / (8 COLUMNS), both rounded up.
KERNEL void __launch_bounds__(32 * WARPS) matmul_gated_f16_f16_k2048_n8192_m64(const Vec4* weights, const u16* x, const float* bias, const float* residual, Out* out0, Out* out1, Out* out2, u64 rows) {
  SHARED float partial[SPLIT > 1 ? SPLIT : 1][ROW_WARPS][SPLIT > 1 ? UNITS : 1][2][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row_warp = warp / SPLIT, part = warp % SPLIT;
  const int first_tile = (blockIdx.x * ROW_WARPS + row_warp) * ROW_TILES, first_row = blockIdx.y * 8 * COLUMNS;
  launch_dependents();
  wait_for_dependencies();

  // 1 Which rows of x.
  int source[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) source[c] = first_row + 8 * c + group < (int)rows ? first_row + 8 * c + group : 0;
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
    low = low * FACTOR + (bias ? bias[tile * 16 + group] : 0.0f);
    high = high * FACTOR + (bias ? bias[tile * 16 + group + 8] : 0.0f);
#pragma unroll
    for (int h = 0; h < (GATED ? 1 : 2); h++) {
      const Place place = place_of(tile, group + 8 * h);
      if (place.row >= ROWS[place.output]) continue;
      const u64 at =(u64)row
          *ROWS[place.output] + place.row;
      float y = activate<ACTIVATION>(h == 0 ? low : high);
      if (GATED) y *= high;
      if (residual) y += residual[at];
      store((place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + at, y);
    }
  }
}