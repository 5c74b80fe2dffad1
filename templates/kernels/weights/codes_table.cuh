// Codes of 4 bits that choose one of 16 integers: 16 bytes per lane and two pairs, a word per fragment; its halves are two columns each, with nibbles in the order of
// codes_bytes.cuh. The integers are centred on 128.
constexpr int CODE_WORDS = 16 * PAIRS;

struct Codes {
  Vec4 of[PAIRS / 2];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS / 2; i++) codes.of[i] = load_part<ONCE>(from + 32 * i);
}

#ifndef FUSE_HOST
// Byte i of the result is that one of the eight bytes of a and b that nibble i of the selector numbers.
DEVICE u32 choose_bytes(u32 a, u32 b, u32 selector) {
  u32 chosen;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(chosen) : "r"(a), "r"(b), "r"(selector));
  return chosen;
}
#endif
// The integers that the lower four nibbles of a word choose.
DEVICE u32 chosen_bytes(u32 w) {
  // 1, 24, 45, 63, 79, 93, 106, 118; 129, 141, 153, 166, 181, 197, 217, 241.
  const u32 low = choose_bytes(0x3f2d1801, 0x766a5d4f, w & 0x7777), high = choose_bytes(0xa6998d81, 0xf1d9c5b5, w & 0x7777);
  return choose_bytes(low, high, (w >> 1 & 0x4444) | 0x3210);
}
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  const u32 w = word(codes.of[pair / 2], pair % 2 * 2 + fragment), first = chosen_bytes(w & 0xffff), second = chosen_bytes(w >> 16);
  return {even_bytes(first), odd_bytes(first), even_bytes(second), odd_bytes(second)};
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  const u32 w = word(step[at.pair / 2 * 32 + at.lane], at.pair % 2 * 2 + at.fragment);
  return (float)(chosen_bytes(w >> (16 * (at.number / 2) + 8 * at.half + 4 * (at.number % 2)) & 15) & 0xff);
}
