// Codes of 4 bits: 16 bytes per lane and two pairs, two words per pair, as multiply_nibbles has them.
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
  const u32 w0 = word(codes.of[pair / 2], pair % 2 * 2), w1 = word(codes.of[pair / 2], pair % 2 * 2 + 1), four = fragment == 0 ? 0x000f000f : 0x00f000f0;
  return {w0 & four, w0 >> 8 & four, w1 & four, w1 >> 8 & four};
}

DEVICE float code_at(const Vec4* step, int row, int column) { return (float)nibble_at(step + column / 64 * 32, row, column % 64); }
