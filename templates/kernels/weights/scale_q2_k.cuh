// A 4-bit scale and a 4-bit minimum per 16 columns in units of two f16 per 256: after the codes 16 bytes per row of eight, those of the row and of the one eight below, the
// minimum in the upper half of a byte; then 8 bytes, the units of scales and minima of both rows.
constexpr bool OFFSETS = true;
constexpr int SCALE_WORDS = 12;
static_assert(PAIRS == 4 && NATURAL, "the scales of eight fragments are eight bytes");

struct Scales {
  Vec4 bytes;
  u64 units;
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  const int lane = threadIdx.x % 32;
  scales.bytes = load_part<ONCE>(from - lane + CODE_WORDS + lane / 4), scales.units = load_part<ONCE>(row_eight(from, CODE_WORDS + 8));
}
DEVICE u32 byte_of(const Scales& scales, int pair, int fragment, int eight) {
  return word(scales.bytes, 2 * eight + pair / 2) >> 8 * (pair % 2 * 2 + fragment) & 0xff;
}
DEVICE float scale_of(const Scales& scales, int pair, int fragment, int eight) {
  return f16_low((u32)(scales.units >> 32 * eight)) * (float)(byte_of(scales, pair, fragment, eight) & 15);
}
DEVICE float offset_of(const Scales& scales, int pair, int fragment, int eight) {
  return -f16_high((u32)(scales.units >> 32 * eight)) * (float)(byte_of(scales, pair, fragment, eight) >> 4);
}

DEVICE Scales scales_at(const Vec4* step, int row) { return {step[CODE_WORDS + row % 8], ((const u64*)(step + CODE_WORDS + 8))[row % 8]}; }
DEVICE float scale_at(const Vec4* step, int row, int column) { return scale_of(scales_at(step, row), column / 32, column / 16 % 2, row / 8); }
DEVICE float offset_at(const Vec4* step, int row, int column) { return offset_of(scales_at(step, row), column / 32, column / 16 % 2, row / 8); }
