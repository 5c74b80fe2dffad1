// Codes of 2 bits: 16 bytes per lane and four pairs, a word per pair, which has those of its eight registers from the lowest bits of each half on.
constexpr int CODE_WORDS = 32;
static_assert(PAIRS == 4, "a word per pair");

struct Codes {
  Vec4 of;
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
  codes.of = load_part<ONCE>(from);
}

DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  constexpr u32 TWO = 0x00030003;
  const u32 w = word(codes.of, pair) >> 8 * fragment;
  return {w & TWO, w >> 2 & TWO, w >> 4 & TWO, w >> 6 & TWO};
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  return (float)(word(step[at.lane], at.pair) >> (16 * at.half + 8 * at.fragment + 2 * at.number) & 3);
}
