// Codes of 5 bits, as five_bits.cuh has them: 16 bytes per lane and two pairs, two words per pair; then the fifth bits, a word per lane and two pairs.
{% include "weights/five_bits.cuh" %}
constexpr int CODE_WORDS = 20 * PAIRS;

struct Codes {
  Vec4 of[PAIRS / 2];
  u32 fifths[PAIRS / 2];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < PAIRS / 2; i++) {
    codes.of[i] = load_part<ONCE>(from + 32 * i);
    codes.fifths[i] = load_part<ONCE>((const u32*)(from - lane + 16 * PAIRS + 8 * i) + lane);
  }
}

DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  const Vec4 of = codes.of[pair / 2];
  return fragment_of_five_bits(word(of, pair % 2 * 2), word(of, pair % 2 * 2 + 1), codes.fifths[pair / 2], pair, fragment);
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const u32 fifth = fifth_at((const u32*)(step + 16 * PAIRS + column / 64 * 8), row, column % 64);
  return (float)(nibble_at(step + column / 64 * 32, row, column % 64) | fifth << 4);
}
