// 4-bit integers with a scale and a zero point per 128 columns. A step is 128 columns: codes as those of two steps of q4_0; then 8 bytes per row of eight: words of the row and
// of the one eight below, an fp32 scale with the zero point in its lowest five bits.
constexpr int STEP = 128;
constexpr int PAIRS = 4;
constexpr int STEP_WORDS = 68;
constexpr bool NATURAL = false;
constexpr bool SPREAD = true;

struct Held {
  Vec4 codes[2];
  u64 scales;
  float group[4];  // products of a step so far, where it is taken whole
};
DEVICE void load_once(Held& held, const Vec4* from) {
  held.codes[0] = load_stream(from), held.codes[1] = load_stream(from + 32), held.scales = load_stream(row_eight(from, 64));
}
DEVICE void load_again(Held& held, const Vec4* from) { held.codes[0] = from[0], held.codes[1] = from[32], held.scales = *row_eight(from, 64); }

DEVICE float scale_of(u32 word) { return float_of(word & ~31u); }
DEVICE float zero_of(u32 word) { return (float)(word & 31u); }

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times(1, true, x); }

// The same over a step, for the lane's two columns, where many row tiles share it.
struct StepSums {
  float of[2];
};
template <typename Load>
DEVICE StepSums sums_of_step(Load load) {
  float total[4] = {};
#pragma unroll
  for (int pair = 0; pair < PAIRS; pair++) {
    const Vec4 x = load(pair);
    mma(total, all_halves(1, true), x.x, x.y);
    mma(total, all_halves(16, true), x.z, x.w);
  }
  return {total[0], total[1]};
}

DEVICE void multiply_codes(float (&products)[4], const Held& held, int pair, const Vec4& x) {
  const Vec4 codes = pair < 2 ? held.codes[0] : held.codes[1];
  multiply_nibbles(products, word(codes, pair % 2 * 2), word(codes, pair % 2 * 2 + 1), x);
}

// sum += scale (products + zero total): rows l / 4, and those eight below.
DEVICE void add_products(float (&sum)[4], const Held& held, const float (&products)[4], const float (&total)[4]) {
  const u32 low = (u32)held.scales, high = (u32)(held.scales >> 32);
  float whole[4];
#pragma unroll
  for (int i = 0; i < 4; i++) whole[i] = products[i] + (i < 2 ? zero_of(low) : zero_of(high)) * total[i];
  add_scaled(sum, whole, scale_of(low), scale_of(high));
}

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  float fresh[4] = {};
  multiply_codes(fresh, held, pair, x);
  add_products(sum, held, fresh, totals.of);
}

DEVICE void multiply(float (&sum)[4], Held& held, int pair, const Vec4& x, const StepSums& sums) {
#pragma unroll
  for (int i = 0; pair == 0 && i < 4; i++) held.group[i] = 0.0f;
  multiply_codes(held.group, held, pair, x);
  const float total[4] = {sums.of[0], sums.of[1], sums.of[0], sums.of[1]};
  if (pair == PAIRS - 1) add_products(sum, held, held.group, total);
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const u32 scale = (u32)(((const u64*)(step + 64))[row % 8] >> 32 * (row / 8));
  return ((float)nibble_at(step + column / 64 * 32, row, column % 64) - zero_of(scale)) * scale_of(scale);
}
