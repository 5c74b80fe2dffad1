// Codes of 3 bits, centred on 4: two of them as in codes_two.cuh, then the third ones, 8 bytes per lane, which have those of a pair's registers in eight bits of each half.
constexpr int CODE_WORDS = 48;
static_assert(PAIRS == 4, "a word per pair");

struct Codes {
  Vec4 of;
  u64 thirds;
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
  const int lane = threadIdx.x % 32;
  codes.of = load_part<ONCE>(from), codes.thirds = load_part<ONCE>((const u64*)(from - lane + 32) + lane);
}

DEVICE u32 thirds_of(u64 thirds, int pair) { return (u32)(thirds >> 32 * (pair / 2)) >> 8 * (pair % 2) & 0x00ff00ffu; }
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  constexpr u32 TWO = 0x00030003, THIRD = 0x00040004;
  const u32 w = word(codes.of, pair) >> 8 * fragment, thirds = thirds_of(codes.thirds, pair) << 2 >> 4 * fragment;
  return {(w & TWO) | (thirds & THIRD), (w >> 2 & TWO) | (thirds >> 1 & THIRD), (w >> 4 & TWO) | (thirds >> 2 & THIRD), (w >> 6 & TWO) | (thirds >> 3 & THIRD)};
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  const u32 low = word(step[at.lane], at.pair) >> (16 * at.half + 8 * at.fragment + 2 * at.number) & 3;
  return (float)(low | (thirds_of(((const u64*)(step + 32))[at.lane], at.pair) >> (16 * at.half + 4 * at.fragment + at.number) & 1) << 2);
}
