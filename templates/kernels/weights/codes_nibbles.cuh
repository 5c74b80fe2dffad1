// Codes of 4 bits: 16 bytes per lane and two pairs, a word per fragment. Of rows l / 4 a half has the lower byte, of those eight below the upper; of four columns the first
// two are the lower nibbles.
constexpr int CODE_WORDS = 16 * PAIRS;

struct Codes {
  Vec4 of[PAIRS / 2];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS / 2; i++) codes.of[i] = load_part<ONCE>(from + 32 * i);
}

DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  const u32 w = word(codes.of[pair / 2], pair % 2 * 2 + fragment);
  constexpr u32 FOUR = 0x000f000f;
  return {w & FOUR, w >> 8 & FOUR, w >> 4 & FOUR, w >> 12 & FOUR};
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  return (float)(word(step[at.pair / 2 * 32 + at.lane], at.pair % 2 * 2 + at.fragment) >> (16 * at.half + 8 * (at.number % 2) + 4 * (at.number / 2)) & 15);
}
