// The weights of routed experts: packed tiles each, experts one behind the other. A block computes row tiles for one row of x, which is two
// bfloat16 a value, what rounding keeps and what it leaves: columns of the product take the one and the other in turn.
constexpr int EXPERTS = {{ experts }};
constexpr int TOP_K = {{ top_k }};              // experts a row of x
constexpr int WARPS = {{ warps }};              // they take the pairs of a row tile in turn
constexpr int DEPTH = {{ depth }};              // pairs of weights a warp has in flight
constexpr int THREADS = 32 * WARPS;
static_assert(WARPS % 2 == 0 && WARPS <= 16, "half a warp finishes half of the partial sums");
static_assert(OUTPUTS == 1 && TOP_K <= THREADS && TOP_K <= EXPERTS, "a thread an expert of a row");

DEVICE const Vec4* expert_pointer(const Vec4* weights, int expert) { return weights + (u64)expert * TILES * PAIRS * 64; }

// A lane's part of a row tile: rows group and group + 8 of its column of the product.
struct TileSum { float a[4], b[4]; };

// What the warps of a block have of a row tile's 16 rows. Columns repeat every two: the first lane of a quad has both.
DEVICE void leave_partial(float (&partial)[WARPS][16], const TileSum& sum, int warp, int lane) {
  if (lane % 4 != 0) return;
  partial[warp][lane / 4] = (sum.a[0] + sum.b[0]) + (sum.a[1] + sum.b[1]);
  partial[warp][lane / 4 + 8] = (sum.a[2] + sum.b[2]) + (sum.a[3] + sum.b[3]);
}

// Row lane % 16 of the row tile, for a whole warp.
DEVICE float finish(const float (&partial)[WARPS][16], int lane) {
  float y = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS / 2; i++) y += partial[lane / 16 * (WARPS / 2) + i][lane % 16];
  return y + shuffle_xor(y, 16);
}
