// 16 bits a weight. A tile is 16 rows by 16 columns, 512 bytes: lane l holds 16 bytes, its own mma.m16n8k16 A fragment. A step is two tiles, 32 columns, ordered
// so that lane l's share of it is columns 8 (l % 4) .. + 7 of rows l / 4 and l / 4 + 8: one 16-byte load of an activation row at column 8 (l % 4) is
// then the B fragment of both tiles. Rows and columns beyond the weight are zeros.
constexpr int STEP = 32;        // columns of a step
constexpr int PAIRS = 1;        // of tiles
constexpr int STEP_WORDS = 64;  // 16-byte words of a row tile's step
constexpr bool NATURAL = false;
constexpr bool SPREAD = false;
constexpr float W_UNIT = IS_F16 ? 256.0f : 1.0f;    // what is held is this much of a weight
constexpr float FACTOR = 1.0f / (X_UNIT * W_UNIT);  // what sums of products are multiplied by

// A lane's share of a step. `from` is the step's word `lane`.
struct Held {
  Vec4 tile[2];
};
DEVICE void load_once(Held& held, const Vec4* from) { held.tile[0] = load_stream(from), held.tile[1] = load_stream(from + 32); }
DEVICE void load_again(Held& held, const Vec4* from) { held.tile[0] = from[0], held.tile[1] = from[32]; }

struct Totals {};
DEVICE Totals totals_of(const Vec4&) { return {}; }

// Parentheses: the mma of this namespace, where the file is included in one.
DEVICE void multiply(float (&sum)[2][4], const Held& held, int, const Vec4& x, const Totals&) {
  (mma)(sum[0], held.tile[0], x.x, x.y);
  (mma)(sum[1], held.tile[1], x.z, x.w);
}
DEVICE void multiply(float (&sum)[4], const Held& held, int, const Vec4& x, const Totals&) {
  (mma)(sum, held.tile[0], x.x, x.y);
  (mma)(sum, held.tile[1], x.z, x.w);
}

// In half precision, whatever the weights are: bfloat16 becomes that on the way, exactly from 2^-17 up, and to 2^-25 below.
constexpr float HALVES_FACTOR = IS_F16 ? FACTOR : F16_UNIT;  // what sums of such products are multiplied by
DEVICE u32 half_of(u32 pair) { return pack_f16(bf16_low(pair), bf16_high(pair)); }
DEVICE Vec4 halves_of(const Vec4& v) { return IS_F16 ? v : Vec4{half_of(v.x), half_of(v.y), half_of(v.z), half_of(v.w)}; }

DEVICE void multiply_halves(float (&sum)[2][4], const Held& held, int, const Vec4& x, const Totals&) {
  mma_f16(sum[0], (halves_of)(held.tile[0]), x.x, x.y);
  mma_f16(sum[1], (halves_of)(held.tile[1]), x.z, x.w);
}

DEVICE float low_weight(u32 pair) { return low_operand(pair) / W_UNIT; }
DEVICE float high_weight(u32 pair) { return high_operand(pair) / W_UNIT; }

// One value of a step.
DEVICE float value_of(const Vec4* step, int row, int column) {
  // Two of the eight columns of a quad fill one register of one tile.
  const int tile = column / 4 % 2, half = column / 2 % 2, odd = column % 2, quad = column / 8;
  const u32 pair = word(step[tile * 32 + row % 8 * 4 + quad], row / 8 + 2 * half);
  return odd ? high_weight(pair) : low_weight(pair);
}

// The products of a lane's eight columns with h, summed: of row lane / 4, and of the row eight below.
DEVICE void dot(float& low, float& high, const Held& held, const float* h) {
  const Vec4 a = held.tile[0], b = held.tile[1];
  const u32 upper[4] = {a.x, a.z, b.x, b.z}, lower[4] = {a.y, a.w, b.y, b.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    low += low_weight(upper[j]) * h[2 * j] + high_weight(upper[j]) * h[2 * j + 1];
    high += low_weight(lower[j]) * h[2 * j] + high_weight(lower[j]) * h[2 * j + 1];
  }
}
