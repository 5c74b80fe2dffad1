// A 6-bit scale and a 6-bit minimum per 32 columns, in units of two f16 per 256: after the codes per row of eight and the one eight below 8 bytes of units (f16 of scales, f16 of
// minima), 8 of scales and 8 of minima, a byte per pair: of two pairs [row + 8, second] [row + 8, first] [row, second] [row, first] from the highest byte on.
constexpr bool OFFSETS = true;
constexpr int SCALE_WORDS = 12;
static_assert(PAIRS == 4, "the scales of four pairs are eight bytes");

struct Scales {
  u64 units, scales, minima;
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  scales.units = load_part<ONCE>(row_eight(from, CODE_WORDS));
  scales.scales = load_part<ONCE>(row_eight(from, CODE_WORDS + 4)), scales.minima = load_part<ONCE>(row_eight(from, CODE_WORDS + 8));
}
// A byte as a subnormal number of half precision, 2^-24 of it: those of a pair lie in the lower halves of a word.
constexpr float UNIT_OF_BYTES = 16777216.0f;
DEVICE float byte_of(u64 bytes, int pair, int eight) {
  const u32 both = (u32)(bytes >> (32 * (pair / 2) + 8 * (pair % 2))) & 0x00ff00ffu;
  return eight ? f16_high(both) : f16_low(both);
}
DEVICE float scale_of(const Scales& scales, int pair, int, int eight) {
  return UNIT_OF_BYTES * f16_low((u32)(scales.units >> 32 * eight)) * byte_of(scales.scales, pair, eight);
}
DEVICE float offset_of(const Scales& scales, int pair, int, int eight) {
  return -UNIT_OF_BYTES * f16_high((u32)(scales.units >> 32 * eight)) * byte_of(scales.minima, pair, eight);
}

DEVICE Scales scales_at(const Vec4* step, int row) {
  const u64* rows = (const u64*)(step + CODE_WORDS) + row % 8;
  return {rows[0], rows[8], rows[16]};
}
DEVICE float scale_at(const Vec4* step, int row, int column) { return scale_of(scales_at(step, row), column / 32, 0, row / 8); }
DEVICE float offset_at(const Vec4* step, int row, int column) { return offset_of(scales_at(step, row), column / 32, 0, row / 8); }
