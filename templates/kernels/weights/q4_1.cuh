// 4-bit integers with a scale and an addend per 32 columns. A step is 64 columns: codes as those of q4_0; then 16 bytes per row of eight: scale and addend, f16, of the
// row and of the one eight below, for each pair.
constexpr int STEP = 64;
constexpr int PAIRS = 2;
constexpr int STEP_WORDS = 40;
constexpr bool NATURAL = false;
constexpr bool SPREAD = true;

struct Held {
  Vec4 codes, scales;
};
DEVICE const Vec4* row_scales(const Vec4* from) { return from - threadIdx.x % 32 + 32 + threadIdx.x % 32 / 4; }
DEVICE void load_once(Held& held, const Vec4* from) { held.codes = load_stream(from), held.scales = load_stream(row_scales(from)); }
DEVICE void load_again(Held& held, const Vec4* from) { held.codes = *from, held.scales = *row_scales(from); }

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times(1, false, x); }

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const u32 low = word(held.scales, 2 * pair), high = word(held.scales, 2 * pair + 1);
  float fresh[4] = {};
  multiply_nibbles(fresh, word(held.codes, 2 * pair), word(held.codes, 2 * pair + 1), x);
  add_scaled(sum, fresh, f16_low(low), f16_low(high));
  add_scaled(sum, totals.of, f16_high(low), f16_high(high));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const u32 scales = word(step[32 + row % 8], column / 32 * 2 + row / 8);
  return (float)nibble_at(step, row, column) * f16_low(scales) + f16_high(scales);
}
