// An fp32 scale per SCALE_COLUMNS: after the codes, for each run of them, 8 bytes per row of eight, the scales of the row and the one eight below.
constexpr bool OFFSETS = false;
constexpr int SCALE_COLUMNS = NATURAL ? 16 : {{ tiles.weights.block().0 }};
constexpr int SCALES = STEP / SCALE_COLUMNS;
constexpr int SCALE_WORDS = 4 * SCALES;

struct Scales {
  u64 of[SCALES];
};
template <bool ONCE>
DEVICE void load(Scales& scales, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < SCALES; i++) scales.of[i] = load_part<ONCE>(row_eight(from, CODE_WORDS + 4 * i));
}
DEVICE float scale_of(const Scales& scales, int pair, int fragment, int eight) {
  return float_of((u32)(scales.of[(32 * pair + 16 * fragment) / SCALE_COLUMNS] >> 32 * eight));
}

DEVICE float scale_at(const Vec4* step, int row, int column) { return ((const float*)(step + CODE_WORDS + column / SCALE_COLUMNS * 4))[row % 8 * 2 + row / 8]; }
