// 8-bit integers with a scale per 32 columns. A step is 64 columns: 16 bytes per lane and pair, codes plus 128, in a word columns c and c + 1 as [row + 8, c + 1] [row, c + 1]
// [row + 8, c] [row, c] from the highest byte on; then 8 bytes per row of eight: f16 scales of the row and the one eight below, for each pair.
constexpr int STEP = 64;
constexpr int PAIRS = 2;
constexpr int STEP_WORDS = 68;
constexpr bool NATURAL = false;
constexpr bool SPREAD = false;

struct Held {
  Vec4 codes[2];
  u64 scales;
};
DEVICE void load_once(Held& held, const Vec4* from) {
  held.codes[0] = load_stream(from), held.codes[1] = load_stream(from + 32), held.scales = load_stream(row_eight(from, 64));
}
DEVICE void load_again(Held& held, const Vec4* from) { held.codes[0] = from[0], held.codes[1] = from[32], held.scales = *row_eight(from, 64); }

DEVICE Vec4 fragment_of_bytes(u32 w0, u32 w1) { return {even_bytes(w0), odd_bytes(w0), even_bytes(w1), odd_bytes(w1)}; }

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times<SPREAD>(128, true, x); }

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const Vec4 codes = pair == 0 ? held.codes[0] : held.codes[1];
  const u32 scales = (u32)(held.scales >> 32 * pair);
  float fresh[4] = {totals.of[0], totals.of[1], totals.of[2], totals.of[3]};
  mma(fresh, fragment_of_bytes(codes.x, codes.y), x.x, x.y);
  mma(fresh, fragment_of_bytes(codes.z, codes.w), x.z, x.w);
  add_scaled(sum, fresh, f16_low(scales), f16_high(scales));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const int pair = column / 32, lane = row % 8 * 4 + column % 32 / 8;
  const u32 code = word(step[32 * pair + lane], column % 8 / 2) >> (16 * (column % 2) + 8 * (row / 8)) & 0xff;
  const u32 scales = (u32)(((const u64*)(step + 64))[row % 8] >> 32 * pair);
  return (float)((int)code - 128) * (row < 8 ? f16_low(scales) : f16_high(scales));
}
