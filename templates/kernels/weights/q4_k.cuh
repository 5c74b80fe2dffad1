{%- let five = tiles.weights == crate::Format::Q5K -%}
// 4-bit integers with a 6-bit scale and a 6-bit minimum per 32 columns, in units of two f16 per 256. A step is 128 columns: codes as those of two steps of q4_0; then per row
// of eight and the one eight below 8 bytes of units (f16 of scales, f16 of minima), 8 of scales and 8 of minima, a byte per pair: of two pairs [row + 8, second]
// [row + 8, first] [row, second] [row, first] from the highest byte on.
{%- if five %}
// Here the integers have 5 bits: behind the codes are their fifth bits, a word per lane and two pairs.
{% include "weights/five_bits.cuh" %}
{%- endif %}
constexpr int STEP = 128;
constexpr int PAIRS = 4;
constexpr int CODE_WORDS = {% if five %}80{% else %}64{% endif %};
constexpr int STEP_WORDS = CODE_WORDS + 12;
constexpr bool NATURAL = false;
constexpr bool SPREAD = true;

struct Held {
  Vec4 codes[2];
  {%- if five %}
  u32 fifths[2];
  {%- endif %}
  u64 units, scales, minima;
  float group[4];  // products of a step so far, times the scales but not their unit
};
{%- if five %}
DEVICE const int* lane_fifths(const Vec4* from) { return (const int*)(from - threadIdx.x % 32 + 64) + threadIdx.x % 32; }
{%- endif %}
DEVICE void load_once(Held& held, const Vec4* from) {
  held.codes[0] = load_stream(from), held.codes[1] = load_stream(from + 32);
  {%- if five %}
  held.fifths[0] = (u32)load_early(lane_fifths(from)), held.fifths[1] = (u32)load_early(lane_fifths(from) + 32);
  {%- endif %}
  held.units = load_stream(row_eight(from, CODE_WORDS)), held.scales = load_stream(row_eight(from, CODE_WORDS + 4)),
  held.minima = load_stream(row_eight(from, CODE_WORDS + 8));
}
DEVICE void load_again(Held& held, const Vec4* from) {
  held.codes[0] = from[0], held.codes[1] = from[32];
  {%- if five %}
  held.fifths[0] = (u32)lane_fifths(from)[0], held.fifths[1] = (u32)lane_fifths(from)[32];
  {%- endif %}
  held.units = *row_eight(from, CODE_WORDS), held.scales = *row_eight(from, CODE_WORDS + 4), held.minima = *row_eight(from, CODE_WORDS + 8);
}

typedef PairTotals Totals;
DEVICE Totals totals_of(const Vec4& x) { return totals_times(1, false, x); }

// The bytes of a pair as subnormal numbers: of the row in the lower half.
DEVICE u32 pair_bytes(u64 bytes, int pair) {
  const u32 both = pair < 2 ? (u32)bytes : (u32)(bytes >> 32);
  return (pair % 2 ? both >> 8 : both) & 0x00ff00ffu;
}

DEVICE void multiply_codes(float (&sum)[4], const Held& held, int pair, const Vec4& x) {
  const Vec4 codes = pair < 2 ? held.codes[0] : held.codes[1];
  const u32 w0 = word(codes, pair % 2 * 2), w1 = word(codes, pair % 2 * 2 + 1);
  {%- if five %}
  const u32 fifths = pair < 2 ? held.fifths[0] : held.fifths[1];
  mma(sum, fragment_of_five_bits(w0, w1, fifths, pair, 0), x.x, x.y);
  mma(sum, fragment_of_five_bits(w0, w1, fifths, pair, 1), x.z, x.w);
  {%- else %}
  multiply_nibbles(sum, w0, w1, x);
  {%- endif %}
}

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const u32 low = (u32)held.units, high = (u32)(held.units >> 32), scales = pair_bytes(held.scales, pair), minima = pair_bytes(held.minima, pair);
  constexpr float UNIT_OF_BYTES = 16777216.0f;
  float fresh[4] = {};
  multiply_codes(fresh, held, pair, x);
  add_scaled(sum, fresh, UNIT_OF_BYTES * f16_low(low) * f16_low(scales), UNIT_OF_BYTES * f16_low(high) * f16_high(scales));
  add_scaled(sum, totals.of, -UNIT_OF_BYTES * f16_high(low) * f16_low(minima), -UNIT_OF_BYTES * f16_high(high) * f16_high(minima));
}

// What the minima of a step are multiplied by, where many row tiles share it: a B fragment that has, for column lane / 4, the sums of x over the four pairs, their
// hi parts as k = 0 to 3 and their lo parts as 4 to 7.
struct StepSums {
  u32 fragment;
};
template <typename Load>
DEVICE StepSums sums_of_step(Load load) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  constexpr u32 ONES = 0x3c003c00, SIXTEENS = 0x4c004c00;
  float of_pair[PAIRS];
#pragma unroll
  for (int pair = 0; pair < PAIRS; pair++) {
    const Vec4 x = load(pair);
    float total[4] = {};
    mma(total, {ONES, ONES, ONES, ONES}, x.x, x.y);
    mma(total, {SIXTEENS, SIXTEENS, SIXTEENS, SIXTEENS}, x.z, x.w);
    // Lane l has columns 2 (l % 4) and the next.
    const int from = 4 * group + group / 2;
    const float even = shuffle_from(total[0], from), odd = shuffle_from(total[1], from);
    of_pair[pair] = group % 2 ? odd : even;
  }
  const float first = quad % 2 ? of_pair[2] : of_pair[0], second = quad % 2 ? of_pair[3] : of_pair[1];
  const u32 hi = pack_f16(first, second);
  return {quad < 2 ? hi : pack_f16(first - f16_low(hi), second - f16_high(hi))};
}

DEVICE void multiply(float (&sum)[4], Held& held, int pair, const Vec4& x, const StepSums& sums) {
  const u32 scales = pair_bytes(held.scales, pair);
  float fresh[4] = {};
  multiply_codes(fresh, held, pair, x);
#pragma unroll
  for (int i = 0; pair == 0 && i < 4; i++) held.group[i] = 0.0f;
  add_scaled(held.group, fresh, f16_low(scales), f16_high(scales));
  if (pair < PAIRS - 1) return;
  const u32 low = (u32)held.units, high = (u32)(held.units >> 32), minima = (u32)(threadIdx.x % 2 ? held.minima >> 32 : held.minima);
  constexpr float UNIT_OF_BYTES = 16777216.0f;
  float least[4] = {};
  mma(least, {(minima & 0xff) | (minima << 8 & 0xff0000), (minima >> 16 & 0xff) | (minima >> 8 & 0xff0000), 0, 0}, sums.fragment, 0);
  add_scaled(sum, held.group, UNIT_OF_BYTES * f16_low(low), UNIT_OF_BYTES * f16_low(high));
  add_scaled(sum, least, -f16_high(low), -f16_high(high));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const int pair = column / 32, shift = 32 * (row / 8), byte = 32 * (pair / 2) + 16 * (row / 8) + 8 * (pair % 2);
  const u64* rows = (const u64*)(step + CODE_WORDS) + row % 8;
  const u32 units = (u32)(rows[0] >> shift), scale = (u32)(rows[8] >> byte) & 0xff, minimum = (u32)(rows[16] >> byte) & 0xff;
  u32 code = nibble_at(step + column / 64 * 32, row, column % 64);
  {%- if five %}
  code |= fifth_at((const u32*)(step + 64 + column / 64 * 8), row, column % 64) << 4;
  {%- endif %}
  return f16_low(units) * (float)scale * (float)code - f16_high(units) * (float)minimum;
}
