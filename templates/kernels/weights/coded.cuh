// Codes in one file and scales in another, which blocks.cuh multiplies with.

constexpr int STEP = {{ tiles.packed().columns }};
constexpr int PAIRS = STEP / 32;
constexpr int STEP_WORDS = {{ tiles.packed().bytes }} / 16;
constexpr bool NATURAL = {{ tiles.weights.is_natural() }};
constexpr bool SPREAD = {{ tiles.weights.is_spread() }};
constexpr int CENTRE = {{ tiles.weights.centre() }};  // the code of zero

// Where a step has the code of a row and a column: which lane of a pair, fragment, register of that and half of the register.
struct Spot {
  int pair, lane, fragment, number, half;
};
DEVICE Spot spot_of(int row, int column) {
  const int pair = column / 32, c = column % 32;
  if (NATURAL) return {pair, row % 8 * 4 + c % 8 / 2, c / 16, row / 8 + c % 16 / 8 * 2, c % 2};
  return {pair, row % 8 * 4 + c / 8, c % 8 / 4, row / 8 + c % 4 / 2 * 2, c % 2};
}

// A share of a step: in a ring, before the wait, or where it is used.
template <bool ONCE>
DEVICE Vec4 load_part(const Vec4* from) {
  return ONCE ? load_stream(from) : *from;
}
template <bool ONCE>
DEVICE u64 load_part(const u64* from) {
  return ONCE ? load_stream(from) : *from;
}
template <bool ONCE>
DEVICE u32 load_part(const u32* from) {
  return ONCE ? (u32)load_early((const int*)from) : *from;
}

// What codes are added to, times a scale: nothing, where scales have no offsets.
template <typename Scales>
DEVICE float offset_of(const Scales&, int, int, int) {
  return 0.0f;
}
template <typename Step>
DEVICE float offset_at(const Step*, int, int) {
  return 0.0f;
}
