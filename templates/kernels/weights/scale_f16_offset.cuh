// An f16 scale and an f16 addend per 32 columns: after the codes 16 bytes per row of eight, both of the row and of the one eight below, for each pair of a step.
constexpr bool OFFSETS = true;
constexpr int SCALE_WORDS = 8;
static_assert(PAIRS == 2, "the scales of two pairs are sixteen bytes");

typedef Vec4 Scales;
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
  scales = load_part<ONCE>(from - threadIdx.x % 32 + CODE_WORDS + threadIdx.x % 32 / 4);
}
DEVICE float scale_of(const Scales& scales, int pair, int, int eight) { return f16_low(word(scales, 2 * pair + eight)); }
DEVICE float offset_of(const Scales& scales, int pair, int, int eight) { return f16_high(word(scales, 2 * pair + eight)); }

DEVICE float scale_at(const Vec4* step, int row, int column) { return scale_of(step[CODE_WORDS + row % 8], column / 32, 0, row / 8); }
DEVICE float offset_at(const Vec4* step, int row, int column) { return offset_of(step[CODE_WORDS + row % 8], column / 32, 0, row / 8); }
