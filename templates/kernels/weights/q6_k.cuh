// 6-bit integers with an 8-bit scale per 16 columns, in units of an f16 per 256. A step is 128 columns: 48 bytes per lane, three words per pair, for the eight registers of
// its two fragments; then 16 bytes per row of eight, the scales of the row and those of the one eight below, a byte per 16 columns; then their two units.
// In each half of the words w0, w1, w2 of a pair, bits 0 to 5 and 6 to 11 are the codes of registers 0 to 5; register 6 has bits 12 to 15 of w0 below 12 and 13 of w1,
// register 7 bits 14 and 15 of w1 below 12 to 15 of w2.
constexpr int STEP = 128;
constexpr int PAIRS = 4;
constexpr int STEP_WORDS = 106;
constexpr bool NATURAL = true;
constexpr bool SPREAD = false;

struct Held {
  Vec4 codes[3], scales;
  u32 units;
};
DEVICE const Vec4* row_scales(const Vec4* from) { return from - threadIdx.x % 32 + 96 + threadIdx.x % 32 / 4; }
DEVICE const int* row_units(const Vec4* from) { return (const int*)(from - threadIdx.x % 32 + 104) + threadIdx.x % 32 / 4; }
DEVICE void load_once(Held& held, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < 3; i++) held.codes[i] = load_stream(from + 32 * i);
  held.scales = load_stream(row_scales(from)), held.units = (u32)load_early(row_units(from));
}
DEVICE void load_again(Held& held, const Vec4* from) {
#pragma unroll
  for (int i = 0; i < 3; i++) held.codes[i] = from[32 * i];
  held.scales = *row_scales(from), held.units = (u32)*row_units(from);
}

// Word i of a lane's twelve.
DEVICE u32 code_word(const Vec4 (&codes)[3], int i) { return word(codes[i / 4], i % 4); }

// Of a lane's activations, the sums over the 16 columns of each half of a pair times -32.
struct Totals {
  float of[2][4] = {};
};
DEVICE Totals totals_of(const Vec4& x) {
  Totals totals;
  mma(totals.of[0], all_halves(32, true), x.x, x.y);
  mma(totals.of[1], all_halves(32, true), x.z, x.w);
  return totals;
}

DEVICE void multiply(float (&sum)[4], const Held& held, int pair, const Vec4& x, const Totals& totals) {
  const u32 w0 = code_word(held.codes, 3 * pair), w1 = code_word(held.codes, 3 * pair + 1), w2 = code_word(held.codes, 3 * pair + 2);
  constexpr u32 SIX = 0x003f003f;
  const Vec4 first = {w0 & SIX, w0 >> 6 & SIX, w1 & SIX, w1 >> 6 & SIX};
  const Vec4 second = {w2 & SIX, w2 >> 6 & SIX, (w0 >> 12 & 0x000f000f) | (w1 >> 8 & 0x00300030), (w1 >> 14 & 0x00030003) | (w2 >> 10 & 0x003c003c)};
  const u32 low = pair < 2 ? held.scales.x : held.scales.y, high = pair < 2 ? held.scales.z : held.scales.w;
  const float low_unit = f16_low(held.units), high_unit = f16_high(held.units);
  Totals fresh = totals;
  mma(fresh.of[0], first, x.x, x.y);
  mma(fresh.of[1], second, x.z, x.w);
#pragma unroll
  for (int i = 0; i < 2; i++)
    add_scaled(sum, fresh.of[i], low_unit * signed_byte_of(low, pair % 2 * 2 + i), high_unit * signed_byte_of(high, pair % 2 * 2 + i));
}

DEVICE float value_of(const Vec4* step, int row, int column) {
  const int pair = column / 32, part = column / 16 % 2, lane = row % 8 * 4 + column % 8 / 2, shift = 16 * (column % 2);
  const int number = 4 * part + row / 8 + 2 * (column % 16 / 8);
  u32 words[3];
#pragma unroll
  for (int i = 0; i < 3; i++) words[i] = word(step[32 * ((3 * pair + i) / 4) + lane], (3 * pair + i) % 4) >> shift;
  const u32 code = number < 6    ? words[number / 2] >> (number % 2 * 6) & 63
                   : number == 6 ? (words[0] >> 12 & 15) | (words[1] >> 8 & 48)
                                 : (words[1] >> 14 & 3) | (words[2] >> 10 & 60);
  const u32 scales = word(step[96 + row % 8], row / 8 * 2 + column / 64), units = ((const u32*)(step + 104))[row % 8];
  return (row < 8 ? f16_low(units) : f16_high(units)) * signed_byte_of(scales, column / 16 % 4) * (float)((int)code - 32);
}
