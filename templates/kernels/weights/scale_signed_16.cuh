// A signed byte per 16 columns in units of an f16 per 256: after the codes 16 bytes per row of eight, the scales of the row and those of the one eight below; then 4 bytes, the
// units of both.
constexpr bool OFFSETS = false;
constexpr int SCALE_WORDS = 10;
static_assert(PAIRS == 4 && NATURAL, "the scales of eight fragments are eight bytes");

struct Scales {
  Vec4 bytes;
  u32 units;
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  const int lane = threadIdx.x % 32;
  const Vec4* at = from - lane + CODE_WORDS;
  scales.bytes = load_part<ONCE>(at + lane / 4), scales.units = load_part<ONCE>((const u32*)(at + 8) + lane / 4);
}
DEVICE float scale_of(const Scales& scales, int pair, int fragment, int eight) {
  return (eight ? f16_high(scales.units) : f16_low(scales.units)) * signed_byte_of(word(scales.bytes, 2 * eight + pair / 2), pair % 2 * 2 + fragment);
}

DEVICE float scale_at(const Vec4* step, int row, int column) {
  const Scales scales = {step[CODE_WORDS + row % 8], ((const u32*)(step + CODE_WORDS + 8))[row % 8]};
  return scale_of(scales, column / 32, column / 16 % 2, row / 8);
}
