{% include "device.cuh" %}
// {{ self.name() }}: the {{ route.top_k }} of {{ route.experts }} experts that each of many rows goes to, and the rows that go to each expert.
{% include "route.cuh" %}
constexpr int WARPS = {{ self.warps() }};  // they route the rows of a block in turn
static_assert(32 % WARPS == 0, "a block has 32 rows: a word of the rows of each expert");

// logits: fp32 [rows][EXPERTS]. For the experts of a row: its share, and which of the row's experts it is, in their order: shares fp32 and
// slots [rows][EXPERTS]. choice_bias: fp32 [EXPERTS]. takers [EXPERTS][gridDim.x]: bit r of word b: row 32 b + r goes to the expert. Grid: rows / 32, rounded up.
KERNEL void __launch_bounds__(32 * WARPS) {{ self.name() }}({{ self.signature() }}) {
  SHARED u32 bits[WARPS][32 * WORDS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  launch_dependents();
  float bias[WORDS] = {};
  {%- if route.biased %}
  load_logits<true>(bias, choice_bias, lane);
  {%- endif %}
  wait_for_dependencies();
  u32 taken[WORDS] = {};
#pragma unroll 1
  for (int r = warp; r < 32; r += WARPS) {
    const int row = 32 * blockIdx.x + r;
    if (row >= (int)rows) break;
    float logit[WORDS], share[WORDS], top;
    load_logits<false>(logit, logits + (u64)row * EXPERTS, lane);
    const u32 chosen = choose(logit, bias, top, lane);
    shares_of(share, logit, chosen, top, lane);
    {%- if route.scaled %}
    scale_shares(share, expert_scale, lane);
    {%- endif %}
    int slot = 0;
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
      const u32 word = word_of(chosen, w);
      if (word >> lane & 1) {
        const u64 at = (u64)row * EXPERTS + 32 * w + lane;
        shares[at] = share[w];
        slots[at] = slot + count_bits(word & ((1u << lane) - 1));
        taken[w] |= 1u << r;
      }
      slot += count_bits(word);
    }
  }
#pragma unroll
  for (int w = 0; w < WORDS; w++) bits[warp][32 * w + lane] = taken[w];
  block_barrier();
  for (int e = threadIdx.x; e < EXPERTS; e += 32 * WARPS) {
    u32 word = 0;
    for (int i = 0; i < WARPS; i++) word |= bits[i][e];
    takers[e * gridDim.x + blockIdx.x] = word;
  }
}
