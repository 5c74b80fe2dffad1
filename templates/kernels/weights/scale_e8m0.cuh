// A power of two per 32 columns, by its exponent plus 127: after the codes 4 bytes per row of eight, of the row and the one eight below for each pair of a step.
constexpr bool OFFSETS = false;
constexpr int SCALE_WORDS = 2;
static_assert(PAIRS == 2, "the exponents of two pairs are four bytes");

typedef u32 Scales;
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  const int lane = threadIdx.x % 32;
  scales = load_part<ONCE>((const u32*)(from - lane + CODE_WORDS) + lane / 4);
}
// The smallest, 2^-127, is below the normal numbers, and adds nothing to a sum.
DEVICE float scale_of(Scales scales, int pair, int, int eight) { return float_of((scales >> (16 * pair + 8 * eight) & 0xff) << 23); }

DEVICE float scale_at(const Vec4* step, int row, int column) {
  const u32 exponent = ((const u32*)(step + CODE_WORDS))[row % 8] >> (16 * (column / 32) + 8 * (row / 8)) & 0xff;
  return float_of(exponent == 0 ? 0x00400000 : exponent << 23);
}
