// After templates/kernels/device.cuh:
// norm_matvec_f32_f16_k2048_n2048_512_512_b1: y = W f(x) for 1 rows of x, the warps of a block sharing the columns of a row tile. Reads W once.
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
constexpr int OUTPUTS = 3;                                          // weights packed one after the other, each in its own row tiles
constexpr int ROWS[3] = { 2048, 512, 512 };  // rows of each
constexpr bool GATED = false;                                                // a row tile is 8 rows of the gate above 8 rows of the other
constexpr int TILE_ROWS = GATED ? 8 : 16;                                                // results per row tile
constexpr int TILES0 = (ROWS[0] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES1 = (ROWS[1] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES2 = (ROWS[2] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES = TILES0 + TILES1 + TILES2;  // row tiles in all
typedef float Out;                     // storage of the results

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

constexpr int BATCH = 1;            // rows of x
constexpr int WARPS = 8;            // they take the steps of a row tile in turn
constexpr int DEPTH = 8;            // steps of weights a warp has in flight
constexpr int UNIT = 1;              // row tiles that are finished together
constexpr int SPLIT = 1;            // blocks that share the columns of a row tile: two add to a sum in memory
constexpr int NORM = 1;  // 0 none, 1 rms_norm, 2 layer_norm of x; 3 none, x is fp32
constexpr float EPS = 1e-5f;
constexpr bool ALIKE = false;                                          // the norm before saw rows of nearly the same root mean square
constexpr bool COMBINE = false;                            // x is the partial results of a split attention
constexpr bool STAGED = true;                                        // x goes through shared memory as operands
constexpr int HEADS = 1, HEAD_DIM = 1;  // of that attention
constexpr int ACTIVATION = 5;
constexpr bool LATE = false;      // triggers dependents after griddepcontrol.wait, not at the start
constexpr bool AHEAD = false;    // loads bias and residual before the products, not in the epilogue
constexpr bool ARGMAX = false;  // also writes each block's largest result and its row
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

// Eight consecutive values, zeros beyond K. EARLY: of a weight, before the wait.
template <bool EARLY>
DEVICE void load_floats(float (&v)[8], const float* row, int k) {
  if (K % 4 == 0) {
#pragma unroll
    for (int h = 0; h < 8; h += 4) {
      const Vec4* at = (const Vec4*)(row + k + h);
      Vec4 four = {0, 0, 0, 0};
      if (k + h < K) four = EARLY ? load_stream(at) : *at;
      v[h] = float_of(four.x), v[h + 1] = float_of(four.y), v[h + 2] = float_of(four.z), v[h + 3] = float_of(four.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i >= K ? 0.0f : EARLY ? float_of((u32)load_early((const int*)row + k + i)) : row[k + i];
  }
}
DEVICE Vec4 store_eight(u16* at, const float (&v)[8]) {
  return *(Vec4*)at = {pack_operands(v[0], v[1]), pack_operands(v[2], v[3]), pack_operands(v[4], v[5]), pack_operands(v[6], v[7])};
}

// Eight values, in the unit of operands; as a hi/lo split hi at `at`, lo BATCH rows further on.
DEVICE void store_operands(u16* at, const float (&v)[8]) {
  const Vec4 kept = store_eight(at, v);
  if (X_PARTS == 1) return;
  const float left[8] = {v[0] - bf16_low(kept.x), v[1] - bf16_high(kept.x), v[2] - bf16_low(kept.y), v[3] - bf16_high(kept.y),
                         v[4] - bf16_low(kept.z), v[5] - bf16_high(kept.z), v[6] - bf16_low(kept.w), v[7] - bf16_high(kept.w)};
  store_eight(at + BATCH * STAGE_STRIDE, left);
}

// The power of two at or below a normal number, and the inverse of a power of two.
DEVICE float power_below(float value) { return float_of(bits_of(value) & 0x7f800000u); }
DEVICE float inverse_power(float power) { return float_of(0x7f000000u - bits_of(power)); }
// The partial sums of the WARPS of a block: 16 rows of a row tile times COLUMNS columns, of which as many as there are rows of x, up to eight, are one of them each. The strides from column
// to column and from warp to warp keep lanes that write or read together in different banks.
constexpr int COLUMN_STRIDE = 20;
constexpr int WARP_STRIDE = (COLUMNS * COLUMN_STRIDE + 32 / WARPS - 1) / (64 / WARPS) * (64 / WARPS) + 32 / WARPS;

// Columns repeat every COLUMNS: the first COLUMNS of the eight are stored.
DEVICE void leave_partial(float (&partial)[WARPS][WARP_STRIDE], const float (&sum)[2][4], int warp, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int column = 2 * (lane % 4) + i;
    if (column < COLUMNS) {
      float* at = &partial[warp][column * COLUMN_STRIDE + lane / 4];
      at[0] = sum[0][i] + sum[1][i];
      at[8] = sum[0][i + 2] + sum[1][i + 2];
    }
  }
}

// Row lane % 16 of the row tile for row b of x, by a whole warp: each half of it adds up half of the warps.
DEVICE float total_of(const float (&partial)[WARPS][WARP_STRIDE], int b, int lane) {
  float y = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS / 2; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c += BATCH < 8 ? BATCH : 8) y += partial[lane / 16 * (WARPS / 2) + i][(b + c) * COLUMN_STRIDE + lane % 16];
  return y + shuffle_xor(y, 16);
}

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

// Whether a logit takes the place of the largest so far. A NaN does, and keeps it.
DEVICE bool beats(float value, float best) { return value > best || value != value; }

// weights: packed tiles. x: fp32 [BATCH][K] where NORM is not 0, else operands [BATCH][K], or f16 [LEFT][BATCH][K] under COMBINE.
// norm_weight, norm_bias, bias (in packed row order), residual [BATCH][rows of the output]: null where absent.
// With SPLIT out0 holds zeros, to which both blocks add. maxima: [BATCH][gridDim.x] value, row. router: packed tiles; router_norm [rows of the output] or null;
// logits: [COPIES][BATCH][ROUTED] zeros, to which all blocks add. rms_before, rms: [BATCH] inverse root mean squares of rows, as powers of two. zeros: `zero_count` floats that are set to zero.
KERNEL void __launch_bounds__(THREADS, BLOCKS) norm_matvec_f32_f16_k2048_n2048_512_512_b1(const Vec4* weights, const void* x, const float* norm_weight, const float* norm_bias, const float* bias, const float* residual, Out* out0, Out* out1, Out* out2, const float* statistics, const int* positions, u32* maxima, float* rms, float* zeros, u64 zero_count) {
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
  float w[PASSES][8];
  if (NORM != 0) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
      for (int i = 0; i < 8; i++) w[pass][i] = 1.0f;
      if (norm_weight) load_floats<true>(w[pass], norm_weight, 8 * (threadIdx.x % SIDE_THREADS + SIDE_THREADS * pass));
    }
  }
  wait_for_dependencies();
  if (LATE) launch_dependents();

  // 2 x into shared memory.
  const float* range = nullptr;
  float own_range = 1.0f;  // of the row of x that this warp finishes
  if (NORM == 1 && !RMS_LAST) stage_rms_norm(staged, sums, (const float*)x, w);
  else if (NORM != 0) stage_norm(staged, sums, (const float*)x, w, norm_bias, range);
  if (STAGED && NORM == 0 && !COMBINE) stage_plain(staged, (const u16*)x, rank * STAGED_K);
  for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < zero_count; i += gridDim.x * THREADS) zeros[i] = 0.0f;
  if (STAGED) block_barrier();
  // What the results are multiplied by: the RMS of the row of x that this warp finishes, too, where it is not in the operands.
  float scale = FACTOR;
  if (NORM == 1 && (RMS_LAST || IS_F16)) {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS / SIDES; i++) square += sums[side_of(warp % BATCH) * (WARPS / SIDES) + i][warp % BATCH];
    const float inverse = rsqrtf(square / K + EPS);
    if (RMS_LAST) scale = inverse * FACTOR * inverse_power(own_range);
    if (blockIdx.x == 0 && warp < BATCH && lane == 0) rms[warp] = power_below(inverse);
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
#pragma unroll
          for (int round = 0; round < ROUNDS * GROUPS; round++) {
            const int row = group % COLUMNS + round * EIGHT, of = GROUPS == 1 ? 0 : round;
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
              // The row tiles of a turn share them.
              const Vec4 v = STAGED ? load_staged(staged + row * STAGE_STRIDE, k + 32 * pair, quad)
                                    : load_pair((const u16*)x + row * K, rank * STAGED_K + k + 32 * pair, quad);
              const Totals totals = totals_of(v);
#pragma unroll
              for (int tile = 0; tile < UNIT; tile++)
                if (is_step(unit, chunk, turn + tile, rank, warp))multiply
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
      if (result.exists && SPLIT == 1) store((result.output == 0 ? out0 : result.output == 1 ? out1 : out2) + result.at, y);
      if (ARGMAX && result.exists && beats(y, best)) best = y, best_row = result.row;
    }
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