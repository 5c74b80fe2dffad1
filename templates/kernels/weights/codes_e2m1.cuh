// Floats of 4 bits (e2m1): 16 bytes per lane and two pairs, a word per fragment. Each half has, from the highest bit on, the signs of registers 0, 2, 3 and 1 and the sizes of
// 0, 1, 2 and 3, so that one or two shifts bring a sign to bit 15 and a size to bits 9 to 11: half precision, 2^-14 of the value.
constexpr int CODE_WORDS = 16 * PAIRS;
constexpr float W_UNIT = 1.0f / 16384.0f;           // what is held is this much of a code
constexpr float FACTOR = 1.0f / (X_UNIT * W_UNIT);  // what sums of products are multiplied by

struct Codes {
  Vec4 of[PAIRS / 2];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS / 2; i++) codes.of[i] = load_part<ONCE>(from + 32 * i);
}

DEVICE Vec4 fragment_of_floats(u32 w) {
  constexpr u32 SIGNS = 0x80008000, SIZES = 0x0e000e00, BOTH = SIGNS | SIZES;
  return {w & BOTH, w << 3 & BOTH, (w << 1 & SIGNS) | (w << 6 & SIZES), (w << 2 & SIGNS) | (w << 9 & SIZES)};
}
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) { return fragment_of_floats(word(codes.of[pair / 2], pair % 2 * 2 + fragment)); }

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  const u32 both = word(fragment_of_floats(word(step[at.pair / 2 * 32 + at.lane], at.pair % 2 * 2 + at.fragment)), at.number);
  return (at.half ? f16_high(both) : f16_low(both)) / W_UNIT;
}
