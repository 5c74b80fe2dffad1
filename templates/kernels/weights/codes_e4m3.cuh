// Floats of 8 bits (e4m3): 16 bytes per lane and pair, in a word columns c and c + 1 as [row + 8, c + 1] [row + 8, c] [row, c + 1] [row, c] from the highest byte on.
constexpr int CODE_WORDS = 32 * PAIRS;

// The lower or the upper two of a word in half precision, W_UNIT of their values.
#if __CUDA_ARCH__ >= 890
constexpr float W_UNIT = 1.0f;
DEVICE u32 e4m3_low(u32 w) {
  u32 pair;
  asm("{ .reg .b16 low, high; mov.b32 { low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }" : "=r"(pair) : "r"(w));
  return pair;
}
DEVICE u32 e4m3_high(u32 w) {
  u32 pair;
  asm("{ .reg .b16 low, high; mov.b32 { low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, high; }" : "=r"(pair) : "r"(w));
  return pair;
}
#else
// The bits of such a float are those of one in half precision, whose exponents are 8 larger. There is none that is not a number.
constexpr float W_UNIT = 1.0f / 256.0f;
DEVICE u32 e4m3_low(u32 w) {
  const u32 upper = (w << 8 & 0x0000ff00) | (w << 16 & 0xff000000);
  return (upper & 0x80008000) | (upper >> 1 & 0x3f803f80);
}
DEVICE u32 e4m3_high(u32 w) { return e4m3_low(w >> 16); }
#endif
constexpr float FACTOR = 1.0f / (X_UNIT * W_UNIT);  // what sums of products are multiplied by

struct Codes {
  Vec4 of[PAIRS];
};
template <bool ONCE>
DEVICE void load(Codes& codes, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < PAIRS; i++) codes.of[i] = load_part<ONCE>(from + 32 * i);
}

DEVICE Vec4 fragment_of_floats(u32 w0, u32 w1) { return {e4m3_low(w0), e4m3_high(w0), e4m3_low(w1), e4m3_high(w1)}; }
DEVICE Vec4 fragment_of(const Codes& codes, int pair, int fragment) {
  return fragment == 0 ? fragment_of_floats(codes.of[pair].x, codes.of[pair].y) : fragment_of_floats(codes.of[pair].z, codes.of[pair].w);
}

DEVICE float code_at(const Vec4* step, int row, int column) {
  const Spot at = spot_of(row, column);
  const u32 code = word(step[32 * at.pair + at.lane], 2 * at.fragment + at.number / 2) >> (16 * (at.number % 2) + 8 * at.half);
  return f16_low(e4m3_low(code)) / W_UNIT;
}
