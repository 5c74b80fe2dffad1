// bfloat16. A tile is 16 rows by 16 columns, 512 bytes: lane l holds 16 bytes, its own mma.m16n8k16 A fragment. A step is two tiles, 32 columns, ordered
// so that lane l's share of it is columns 8 (l % 4) .. + 7 of rows l / 4 and l / 4 + 8: one 16-byte load of an activation row at column 8 (l % 4) is
// then the B fragment of both tiles. Rows and columns beyond the weight are zeros.
constexpr int STEP = 32;                                  // columns of a step
constexpr int STEP_WORDS = 64;                                 // 16-byte words of a row tile's step

// A lane's share of a step. `from` is the step's word `lane`.
struct Held { Vec4 tile[2]; };
DEVICE void load_once(Held& held, const Vec4* from) { held.tile[0] = load_stream(from), held.tile[1] = load_stream(from + 32); }
DEVICE void load_again(Held& held, const Vec4* from) { held.tile[0] = from[0], held.tile[1] = from[32]; }

// Adds the products of a step with eight activations per lane: into two sums, which halves the dependency chain, or into one.
DEVICE void multiply(float (&sum)[2][4], const Held& held, const Vec4& x) {
  mma_bf16(sum[0], held.tile[0], x.x, x.y);
  mma_bf16(sum[1], held.tile[1], x.z, x.w);
}
DEVICE void multiply(float (&sum)[4], const Held& held, const Vec4& x) {
  mma_bf16(sum, held.tile[0], x.x, x.y);
  mma_bf16(sum, held.tile[1], x.z, x.w);
}

// One value of a step.
DEVICE float value_of(const Vec4* step, int row, int column) {
  // Two of the eight columns of a quad fill one register of one tile.
  const int tile = column / 4 % 2, half = column / 2 % 2, odd = column % 2, quad = column / 8;
  const u16* lane = (const u16*)(step + tile * 32 + row % 8 * 4 + quad);
  return load(lane + (row / 8 + 2 * half) * 2 + odd);
}

// The products of a lane's eight columns with h, summed: of row lane / 4, and of the row eight below.
DEVICE void dot(float& low, float& high, const Held& held, const float* h) {
  const Vec4 a = held.tile[0], b = held.tile[1];
  const u32 upper[4] = {a.x, a.z, b.x, b.z}, lower[4] = {a.y, a.w, b.y, b.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    low += bf16_low(upper[j]) * h[2 * j] + bf16_high(upper[j]) * h[2 * j + 1];
    high += bf16_low(lower[j]) * h[2 * j] + bf16_high(lower[j]) * h[2 * j + 1];
  }
}
