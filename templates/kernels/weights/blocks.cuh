// Codes times their scales, plus offsets where there are any. A step has the codes of all its pairs, then the scales. Both are defined before:
//   CODE_WORDS and SCALE_WORDS of a step; Codes and Scales, a lane's share, with load; CENTRE, the code that stands for zero;
//   fragment_of: the codes of a fragment of a pair; code_at: one code;
//   scale_of, offset_of: of a fragment's rows l / 4, or of those eight below; scale_at, offset_at: of one code. OFFSETS: whether there are any.
// Where columns are NATURAL a scale may be of 16 columns, which is a fragment, else it is of a pair or more.
static_assert(CODE_WORDS + SCALE_WORDS == STEP_WORDS, "a step is codes and scales");

struct Held {
  Codes codes;
  Scales scales;
};
DEVICE void load_once(Held& held, const Vec4* from) { load<true>(held.codes, from), load<true>(held.scales, from); }
DEVICE void load_again(Held& held, const Vec4* from) { load<false>(held.codes, from), load<false>(held.scales, from); }

// Of a lane's activations, the sums over the columns that share a scale, times what is taken from codes.
struct Totals {
  float of[NATURAL ? 2 : 1][4] = {};
};
DEVICE Totals totals_of(const Vec4& x) {
  Totals totals;
  if (OFFSETS || CENTRE > 0) {
    constexpr int TAKEN = OFFSETS ? 1 : CENTRE;
    mma(totals.of[0], all_halves(TAKEN, !OFFSETS), x.x, x.y);
    mma(totals.of[NATURAL ? 1 : 0], all_halves(SPREAD ? 16 * TAKEN : TAKEN, !OFFSETS), x.z, x.w);
  }
  return totals;
}

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  Totals fresh;
  if (!OFFSETS) fresh = totals;
  mma(fresh.of[0], fragment_of(held.codes, pair, 0), x.x, x.y);
  mma(fresh.of[NATURAL ? 1 : 0], fragment_of(held.codes, pair, 1), x.z, x.w);
#pragma unroll
  for (int i = 0; i < (NATURAL ? 2 : 1); i++) {
    add_scaled(sum, fresh.of[i], scale_of(held.scales, pair, i, 0), scale_of(held.scales, pair, i, 1));
    if (OFFSETS) add_scaled(sum, totals.of[i], offset_of(held.scales, pair, i, 0), offset_of(held.scales, pair, i, 1));
  }
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  return (code_at(step, row, column) - CENTRE) * scale_at(step, row, column) + (OFFSETS ? offset_at(step, row, column) : 0.0f);
}
