// 4-bit integers with a scale per 32 columns. A step is 64 columns: 16 bytes per lane, two words per pair, one per fragment; then 8 bytes per row of eight: f16 scales of the
// row and the one eight below, for each pair.
constexpr int STEP = 64;
constexpr int PAIRS = 2;
constexpr int STEP_WORDS = 36;
constexpr bool NATURAL = false;
constexpr bool SPREAD = false;

struct Held {
  Vec4 codes;
  u64 scales;
};
DEVICE void load_once(Held& held, const Vec4* from) { held.codes = load_stream(from), held.scales = load_stream(row_eight(from, 32)); }
DEVICE void load_again(Held& held, const Vec4* from) { held.codes = *from, held.scales = *row_eight(from, 32); }

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times<SPREAD>(8, true, x); }

// Of a word, which is of one fragment: of rows l / 4 the lower byte of each half, of those eight below the upper.
DEVICE Vec4 fragment_of_nibbles(u32 w) { return {w & 0x000f000fu, w >> 8 & 0x000f000fu, w >> 4 & 0x000f000fu, w >> 12 & 0x000f000fu}; }

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const u32 scales = (u32)(held.scales >> 32 * pair);
  float fresh[4] = {totals.of[0], totals.of[1], totals.of[2], totals.of[3]};
  mma(fresh, fragment_of_nibbles(word(held.codes, 2 * pair)), x.x, x.y);
  mma(fresh, fragment_of_nibbles(word(held.codes, 2 * pair + 1)), x.z, x.w);
  add_scaled(sum, fresh, f16_low(scales), f16_high(scales));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const u32 scales = (u32)(((const u64*)(step + 32))[row % 8] >> 32 * (column / 32));
  const u32 codes = word(step[row % 8 * 4 + column % 32 / 8], column / 32 * 2 + column % 8 / 4);
  return (float)((int)(codes >> (16 * (column % 2) + 8 * (row / 8) + 4 * (column % 4 / 2)) & 15) - 8) * (row < 8 ? f16_low(scales) : f16_high(scales));
}
