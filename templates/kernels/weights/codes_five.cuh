// Codes of 5 bits: 4 of them as in codes_nibbles.cuh, then the fifth ones, a word per lane and two pairs, which has those of a register in the same place of both halves.
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

// Of two pairs the eight registers of each in their order.
DEVICE int place_of_fifth(int pair, int fragment, int number) { return 8 * (pair % 2) + 4 * fragment + number; }
DEVICE u32 with_fifths(u32 nibbles, u32 fifths, int place) {
  return (nibbles & 0x000f000fu) | ((place < 4 ? fifths << (4 - place) : fifths >> (place - 4)) & 0x00100010u);
}
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  const u32 w = word(codes.of[pair / 2], pair % 2 * 2 + fragment), fifths = codes.fifths[pair / 2];
  const int place = place_of_fifth(pair, fragment, 0);
  return {with_fifths(w, fifths, place), with_fifths(w >> 8, fifths, place + 1), with_fifths(w >> 4, fifths, place + 2),
          with_fifths(w >> 12, fifths, place + 3)};
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  const u32 low = word(step[at.pair / 2 * 32 + at.lane], at.pair % 2 * 2 + at.fragment) >> (16 * at.half + 8 * (at.number % 2) + 4 * (at.number / 2)) & 15;
  const u32 fifths = ((const u32*)(step + 16 * PAIRS + at.pair / 2 * 8))[at.lane];
  return (float)(low | (fifths >> (16 * at.half + place_of_fifth(at.pair, at.fragment, at.number)) & 1) << 4);
}
