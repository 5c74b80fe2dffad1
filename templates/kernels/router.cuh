// The logits of the router that reads the results of this kernel. A logit is a sum over the columns of the router's weight, and the rows of a row tile here are such
// columns: each row tile adds its part as soon as it has results. The sums are integers, so that any order gives the same bits. Rows are not normalised here: the root
// mean square is one factor of all logits of a row, which keeps their order; the kernel that reads them divides. A sum has 32 fractional and 31 integer bits.
namespace routing {
{% if self.router_weights().operand() == "f16" %}{% include "weights/operand_f16.cuh" %}
{% else %}{% include "weights/operand_bf16.cuh" %}
{% endif %}{% include "weights/whole.cuh" %}
}
constexpr int ROUTED = {{ routed }};                                         // logits per row of x
constexpr int COPIES = {{ crate::ROUTER_COPIES }};                           // of the sums, spread over the blocks; the reader adds them up
constexpr int ROUTER_TILES = (ROUTED + 15) / 16;                             // row tiles of the router's weight
constexpr int ROUTER_STEPS = (ROWS[0] + routing::STEP - 1) / routing::STEP;  // steps of each of them
constexpr int SLICE = UNIT * ROUTER_TILES;                                   // steps that a unit needs
static_assert(routing::STEP == 32, "a row tile of results is half of a step");
static_assert(OUTPUTS == 1 && !GATED && !ARGMAX, "the router reads one result");

static_assert(ROWS[0] % 16 == 0, "row tiles are whole, and the norm's weights come 16 bytes at a time");

// Starts the copies of the steps in which the rows of a unit are columns, and of the norm's weights for those.
DEVICE void copy_router(Vec4 (&slice)[SLICE][routing::STEP_WORDS], Vec4 (&norm)[UNIT * 4], const Vec4* router, const float* router_norm, int unit) {
  const int fours = unit * UNIT * 4 + threadIdx.x;
  if (router_norm && threadIdx.x < UNIT * 4 && fours < TILES * 4) copy_async(&norm[threadIdx.x], (const Vec4*)router_norm + fours);
  for (int i = threadIdx.x; i < SLICE * routing::STEP_WORDS; i += THREADS) {
    const int tile = unit * UNIT + i / routing::STEP_WORDS / ROUTER_TILES;
    if (tile < TILES)
      copy_async(&slice[i / routing::STEP_WORDS][i % routing::STEP_WORDS],
                 router + ((u64)(i / routing::STEP_WORDS % ROUTER_TILES) * ROUTER_STEPS + tile / 2) * routing::STEP_WORDS + i % routing::STEP_WORDS);
  }
}

// Adds the part of each logit that comes from the results of a unit times the norm's weights: a warp takes a row tile of the router. A row tile here is
// half a step of the router's weight, which two of a row's four lanes hold.
DEVICE void add_logits(u64* logits, const Vec4 (&slice)[SLICE][routing::STEP_WORDS], const float (&fresh)[BATCH][UNIT * 16], int unit, int warp, int lane) {
  const int group = lane / 4, quad = lane % 4, copy = blockIdx.x % COPIES;
  for (int i = warp; i < SLICE; i += WARPS) {
    const int tile = i / ROUTER_TILES, half = (unit * UNIT + tile) % 2, logit = i % ROUTER_TILES * 16 + group + quad % 2 * 8;
    if (unit * UNIT + tile >= TILES) break;
    routing::Held held;
    routing::load_again(held, &slice[i][lane]);
    for (int row = 0; row < BATCH; row++) {
      const float* h = &fresh[row][tile * 16 + quad % 2 * 8];
      float low = 0.0f, high = 0.0f;
      routing::dot(low, high, held, h);
      low += shuffle_xor(low, 1), high += shuffle_xor(high, 1);
      if (quad / 2 == half && logit < ROUTED) accumulate(logits + (copy * BATCH + row) * ROUTED + logit, fixed_of(quad % 2 ? high : low));
    }
  }
}
