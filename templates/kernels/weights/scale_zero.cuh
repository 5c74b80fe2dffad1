// A scale and a zero point per 32 columns: after the codes, for each pair, 8 bytes per row of eight: words of the row and of the one eight below, an fp32 scale with the zero
// point in its lowest five bits.
constexpr bool OFFSETS = true;
constexpr int SCALE_WORDS = 4 * PAIRS;

struct Scales {
  u64 of[PAIRS];
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS; i++) scales.of[i] = load_part<ONCE>(row_eight(from, CODE_WORDS + 4 * i));
}
DEVICE float scale_in(u32 word) { return float_of(word & ~31u); }
DEVICE float offset_in(u32 word) { return -(float)(word & 31u) * scale_in(word); }
DEVICE float scale_of(const Scales& scales, int pair, int, int eight) { return scale_in((u32)(scales.of[pair] >> 32 * eight)); }
DEVICE float offset_of(const Scales& scales, int pair, int, int eight) { return offset_in((u32)(scales.of[pair] >> 32 * eight)); }

DEVICE u32 scale_word_at(const Vec4* step, int row, int column) { return ((const u32*)(step + CODE_WORDS + column / 32 * 4))[row % 8 * 2 + row / 8]; }
DEVICE float scale_at(const Vec4* step, int row, int column) { return scale_in(scale_word_at(step, row, column)); }
DEVICE float offset_at(const Vec4* step, int row, int column) { return offset_in(scale_word_at(step, row, column)); }
