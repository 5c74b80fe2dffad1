// 4-bit integers with a 6-bit scale and a 6-bit minimum per 32 columns, in units of two f16 per 256. A step is 128 columns: codes as those of two steps of q4_0; then per row
// of eight and the one eight below 8 bytes of units (f16 of scales, f16 of minima), 8 of scales and 8 of minima, a byte per pair.
constexpr int STEP = 128;
constexpr int PAIRS = 4;
constexpr int STEP_WORDS = 76;
constexpr bool NATURAL = false;

struct Held {
  Vec4 codes[2];
  u64 units, scales, minima;
};
DEVICE void load_once(Held& held, const Vec4* from) {
  held.codes[0] = load_stream(from), held.codes[1] = load_stream(from + 32);
  held.units = load_stream(row_eight(from, 64)), held.scales = load_stream(row_eight(from, 68)), held.minima = load_stream(row_eight(from, 72));
}
DEVICE void load_again(Held& held, const Vec4* from) {
  held.codes[0] = from[0], held.codes[1] = from[32];
  held.units = *row_eight(from, 64), held.scales = *row_eight(from, 68), held.minima = *row_eight(from, 72);
}

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x) {
  const Vec4 codes = pair < 2 ? held.codes[0] : held.codes[1];
  const u32 low = (u32)held.units, high = (u32)(held.units >> 32);
  float fresh[4] = {}, whole[4] = {};
  mma(fresh, fragment_of_nibbles(word(codes, pair % 2 * 2)), x.x, x.y);
  mma(fresh, fragment_of_nibbles(word(codes, pair % 2 * 2 + 1)), x.z, x.w);
  sum_activations(whole, x);
  add_scaled(sum, fresh, f16_low(low) * byte_of((u32)held.scales, pair), f16_low(high) * byte_of((u32)(held.scales >> 32), pair));
  add_scaled(sum, whole, -f16_high(low) * byte_of((u32)held.minima, pair), -f16_high(high) * byte_of((u32)(held.minima >> 32), pair));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const int pair = column / 32, shift = 32 * (row / 8);
  const u64* rows = (const u64*)(step + 64) + row % 8;
  const u32 units = (u32)(rows[0] >> shift), scales = (u32)(rows[8] >> shift), minima = (u32)(rows[16] >> shift);
  const float code = (float)nibble_at(step + column / 64 * 32, row, column % 64);
  return f16_low(units) * byte_of(scales, pair) * code - f16_high(units) * byte_of(minima, pair);
}
