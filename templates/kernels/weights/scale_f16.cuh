// An f16 scale per 32 columns: after the codes 8 bytes per row of eight, the scales of the row and the one eight below for each pair of a step.
constexpr bool OFFSETS = false;
constexpr int SCALE_WORDS = 4;
static_assert(PAIRS == 2, "the scales of two pairs are eight bytes");

typedef u64 Scales;
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  scales = load_part<ONCE>(row_eight(from, CODE_WORDS));
}
DEVICE float scale_of(Scales scales, int pair, int, int eight) {
  const u32 both = (u32)(scales >> 32 * pair);
  return eight ? f16_high(both) : f16_low(both);
}

DEVICE float scale_at(const Vec4* step, int row, int column) { return scale_of(((const u64*)(step + CODE_WORDS))[row % 8], column / 32, 0, row / 8); }
