// A signed byte per 32 columns in units of an f16 per 256: after the codes 8 bytes per row of eight, of two pairs [row + 8, second] [row + 8, first] [row, second] [row, first]
// from the highest byte on; then 4 bytes, the units of the row and of the one eight below.
constexpr bool OFFSETS = false;
constexpr int SCALE_WORDS = 6;
static_assert(PAIRS == 4, "the scales of four pairs are eight bytes");

struct Scales {
  u64 bytes;
  u32 units;
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  const int lane = threadIdx.x % 32;
  scales.bytes = load_part<ONCE>(row_eight(from, CODE_WORDS)), scales.units = load_part<ONCE>((const u32*)(from - lane + CODE_WORDS + 4) + lane / 4);
}
DEVICE float scale_of(const Scales& scales, int pair, int, int eight) {
  return (eight ? f16_high(scales.units) : f16_low(scales.units)) * signed_byte_of((u32)(scales.bytes >> 32 * (pair / 2)), 2 * eight + pair % 2);
}

DEVICE float scale_at(const Vec4* step, int row, int column) {
  const Scales scales = {((const u64*)(step + CODE_WORDS))[row % 8], ((const u32*)(step + CODE_WORDS + 4))[row % 8]};
  return scale_of(scales, column / 32, 0, row / 8);
}
