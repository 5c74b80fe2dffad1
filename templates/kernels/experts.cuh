// The weights of routed experts: packed tiles each, experts one behind the other. A step reads each expert that one of its rows chose once,
// for all of its rows: those that did not choose it have a share of zero.
constexpr int BATCH = {{ batch }};              // rows of x
constexpr int WARPS = {{ warps }};              // they take the pairs of a row tile in turn
constexpr int DEPTH = {{ depth }};              // pairs of weights a warp has in flight
constexpr int THREADS = 32 * WARPS;
constexpr int MOST = BATCH * TOP_K < EXPERTS ? BATCH * TOP_K : EXPERTS;   // experts that a step may need
static_assert(BATCH >= 1 && BATCH <= 8 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");
static_assert(WARPS % 2 == 0 && BATCH <= WARPS, "a warp routes a row of x, and finishes its results: half of it half of the partial sums");
static_assert(OUTPUTS == 1, "each expert has one result");
static_assert(TILES * PAIRS < 1 << 24, "an offset in an expert is an int");

DEVICE const Vec4* expert_pointer(const Vec4* weights, int expert) { return weights + (u64)expert * TILES * PAIRS * 64; }

// The experts of a row, for the other warps.
DEVICE void leave_chosen(u32 (&sets)[BATCH][WORDS], int row, u32 chosen, int lane) {
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    const u32 word = word_of(chosen, w);
    if (lane == 0) sets[row][w] = word;
  }
}

// The experts of all rows in their order, each once, for a whole warp. Returns how many they are.
DEVICE int list_experts(int (&list)[MOST], const u32 (&sets)[BATCH][WORDS], int lane) {
  int count = 0;
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    u32 word = 0;
#pragma unroll
    for (int row = 0; row < BATCH; row++) word |= sets[row][w];
    if (word >> lane & 1) list[count + count_bits(word & ((1u << lane) - 1))] = 32 * w + lane;
    count += count_bits(word);
  }
  warp_barrier();
  return count;
}

// What the warps of a block have of a row tile's 16 rows. Columns repeat every COLUMNS: the first COLUMNS of the eight are written down.
template <int COLUMNS>
DEVICE void leave_partial(float (&partial)[WARPS][16][COLUMNS], const float (&sum)[2][4], int warp, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int column = 2 * (lane % 4) + i;
    if (column < COLUMNS) {
      partial[warp][lane / 4][column] = sum[0][i] + sum[1][i];
      partial[warp][lane / 4 + 8][column] = sum[0][i + 2] + sum[1][i + 2];
    }
  }
}

// Row lane % 16 of the row tile for row b of x, for a whole warp: half of it adds up half of the warps.
template <int COLUMNS>
DEVICE float total_of(const float (&partial)[WARPS][16][COLUMNS], int b, int lane) {
  float y = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS / 2; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c += BATCH) y += partial[lane / 16 * (WARPS / 2) + i][lane % 16][b + c];
  return y + shuffle_xor(y, 16);
}
