// Integer codes and their scales: fresh sums of codes times x are multiplied by the scales of their rows in fp32, so that nothing is rounded but x.

{%- if !tiles.weights.is_of_floats() %}
constexpr float W_UNIT = 1.0f / 16777216.0f;        // an integer code is a subnormal number, exact up to 1023
constexpr float FACTOR = 1.0f / (X_UNIT * W_UNIT);  // what sums of products are multiplied by
{%- endif %}

// The same integer in all halves of a fragment, times the sign.
DEVICE Vec4 all_halves(int n, bool negative) {
  const u32 both = (u32)n * 0x00010001u | (negative ? 0x80008000u : 0);
  return {both, both, both, both};
}

// sum += fresh, rows l / 4 times `low`, those eight below times `high`.
DEVICE void add_scaled(float (&sum)[4], const float (&fresh)[4], float low, float high) {
  sum[0] += low * fresh[0], sum[1] += low * fresh[1];
  sum[2] += high * fresh[2], sum[3] += high * fresh[3];
}

DEVICE float signed_byte_of(u32 bytes, int i) { return (float)(signed char)(bytes >> 8 * i & 0xff); }

// The sums of a lane's activations over a pair, multiplied by an integer, in the unit of codes.
struct PairTotals {
  float of[4] = {};
};
template <bool SPREAD = true>
DEVICE PairTotals totals_times(int n, bool negative, const Vec4& x) {
  PairTotals totals;
  mma(totals.of, all_halves(n, negative), x.x, x.y);
  mma(totals.of, all_halves(SPREAD ? 16 * n : n, negative), x.z, x.w);
  return totals;
}

// Eight bytes behind the first `words` of a step for each row l / 4 of it.
DEVICE const u64* row_eight(const Vec4* from, int words) {
  const int lane = threadIdx.x % 32;
  return (const u64*)(from - lane + words) + lane / 4;
}

// Fresh sums are a chain of their own: the second sum stays zero, and takes no registers.
template <typename Held, typename Totals>
DEVICE void multiply(float (&sum)[2][4], Held& held, int pair, const Vec4& x, const Totals& totals) {
  multiply(sum[0], held, pair, x, totals);
}

// sum += 4-bit codes of a pair times x. In a byte of a word, of row l / 4 in the first and third, of that eight below in the others, the lower code is of the first
// fragment and the upper, which stays where it is and counts sixteenfold, of the second.
DEVICE void multiply_nibbles(float (&sum)[4], u32 w0, u32 w1, const Vec4& x) {
  constexpr u32 LOWER = 0x000f000f, UPPER = 0x00f000f0;
  const u32 below0 = w0 >> 8, below1 = w1 >> 8;
  mma(sum, {w0 & LOWER, below0 & LOWER, w1 & LOWER, below1 & LOWER}, x.x, x.y);
  mma(sum, {w0 & UPPER, below0 & UPPER, w1 & UPPER, below1 & UPPER}, x.z, x.w);
}
// Where a code of a row tile's 16 rows lies in 64 columns of them.
DEVICE u32 nibble_at(const Vec4* codes, int row, int column) {
  const int lane = row % 8 * 4 + column % 32 / 8, word_of = column / 32 * 2 + column % 4 / 2, half = column % 2, second = column % 8 / 4;
  return word(codes[lane], word_of) >> (16 * half + 8 * (row / 8) + 4 * second) & 15;
}
