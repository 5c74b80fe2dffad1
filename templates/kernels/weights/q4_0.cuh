// 4-bit integers with a scale per 32 columns. A step is 64 columns: 16 bytes per lane, two words per pair, as multiply_nibbles reads them; then 8 bytes per row of eight: f16 scales of the
// row and the one eight below, for each pair.
constexpr int STEP = 64;
constexpr int PAIRS = 2;
constexpr int STEP_WORDS = 36;
constexpr bool NATURAL = false;
constexpr bool SPREAD = true;

struct Held {
  Vec4 codes;
  u64 scales;
};
DEVICE void load_once(Held& held, const Vec4* from) { held.codes = load_stream(from), held.scales = load_stream(row_eight(from, 32)); }
DEVICE void load_again(Held& held, const Vec4* from) { held.codes = *from, held.scales = *row_eight(from, 32); }

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times(8, true, x); }

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const u32 scales = (u32)(held.scales >> 32 * pair);
  float fresh[4] = {totals.of[0], totals.of[1], totals.of[2], totals.of[3]};
  multiply_nibbles(fresh, word(held.codes, 2 * pair), word(held.codes, 2 * pair + 1), x);
  add_scaled(sum, fresh, f16_low(scales), f16_high(scales));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const u32 scales = (u32)(((const u64*)(step + 32))[row % 8] >> 32 * (column / 32));
  return (float)((int)nibble_at(step, row, column) - 8) * (row < 8 ? f16_low(scales) : f16_high(scales));
}
