// The weights of routed experts: packed tiles, one expert after the other. A decode step reads each expert that one of its rows chose once,
// for all of its rows: those that did not choose it have a share of zero.
constexpr int BATCH = {{ batch }};  // rows of x
constexpr int WARPS = {{ warps }};  // they take the steps of a row tile in turn
constexpr int DEPTH = {{ depth }};  // steps of weights a warp has in flight
// Of logits that router.cuh summed in fixed point, not yet divided by the row's root mean square; 0: logits are fp32.
constexpr int COPIES = {{ self.copies() }};
constexpr bool SUMMED = COPIES > 0;
typedef {% if summed %}u64{% else %}float{% endif %} Logit;
constexpr bool ALONE = BATCH == 1 && TOP_K <= 32;  // each warp chooses for itself, and hidden values are in the order of the choice
constexpr int THREADS = 32 * WARPS;
constexpr int MOST = BATCH * TOP_K < EXPERTS ? BATCH * TOP_K : EXPERTS;  // experts that a step may need
static_assert(BATCH >= 1 && BATCH <= 8 && (BATCH & (BATCH - 1)) == 0, "a column of the product is a row of x, repeated to fill eight");
static_assert(WARPS % 2 == 0 && BATCH <= WARPS, "a warp routes a row of x, and finishes its results: half of it half of the partial sums");
static_assert(!SUMMED || !BIASED, "the choice is by the order of the logits, whatever they are yet to be divided by");
static_assert(OUTPUTS == 1, "each expert has one result");
static_assert(TILES * STEPS < 1 << 24, "an offset in an expert is an int");

DEVICE const Vec4* expert_pointer(const Vec4* weights, int expert) { return weights + (u64)expert * TILES * STEPS * STEP_WORDS; }

// Logits that are sums: what blocks added to each copy.
template <bool EARLY>
DEVICE void load_logits(float (&logit)[WORDS], const u64* sums, int lane) {
  u64 part[WORDS][COPIES + 1];
#pragma unroll
  for (int w = 0; w < WORDS; w++)
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++) {
      const u64* at = sums + copy * BATCH * EXPERTS + 32 * w + lane;
      part[w][copy] = 32 * w + lane >= EXPERTS ? 0 : EARLY ? load_settled(at) : *at;
    }
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    u64 sum = 0;
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++) sum += part[w][copy];
    logit[w] = float_of_fixed(sum);
  }
}

// The experts of a row, for the other warps.
DEVICE void leave_chosen(u32 (&sets)[BATCH][WORDS], int row, u32 chosen, int lane) {
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    const u32 word = word_of(chosen, w);
    if (lane == 0) sets[row][w] = word;
  }
}

// The experts of all rows in their order, each once, for a whole warp. Returns how many they are.
DEVICE int list_experts(int (&list)[MOST], const u32 (&sets)[BATCH][WORDS], int lane) {
  int count = 0;
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    u32 word = 0;
#pragma unroll
    for (int row = 0; row < BATCH; row++) word |= sets[row][w];
    if (word >> lane & 1) list[count + count_bits(word & ((1u << lane) - 1))] = 32 * w + lane;
    count += count_bits(word);
  }
  warp_barrier();
  return count;
}
