// Codes of 8 bits: 16 bytes per lane and pair, in a word columns c and c + 1 as [row + 8, c + 1] [row, c + 1] [row + 8, c] [row, c] from the highest byte on.
constexpr int CODE_WORDS = 32 * PAIRS;

struct Codes {
  Vec4 of[PAIRS];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS; i++) codes.of[i] = load_part<ONCE>(from + 32 * i);
}

DEVICE Vec4 fragment_of_bytes(u32 w0, u32 w1) { return {even_bytes(w0), odd_bytes(w0), even_bytes(w1), odd_bytes(w1)}; }
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  return fragment == 0 ? fragment_of_bytes(codes.of[pair].x, codes.of[pair].y) : fragment_of_bytes(codes.of[pair].z, codes.of[pair].w);
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  return (float)(word(step[32 * at.pair + at.lane], 2 * at.fragment + at.number / 2) >> (16 * at.half + 8 * (at.number % 2)) & 0xff);
}
