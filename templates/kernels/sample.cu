{% include "device.cuh" %}
// {{ name }}: the next token of each row: greedy, or drawn after temperature, top-k, top-p and min-p. It is given to the host's ring and
// to the next step. All sums are of integers, so that no order of threads can change them.
constexpr int VOCABULARY = {{ vocabulary }};
constexpr int MAXIMA = {{ maxima }};            // block maxima the head left; 0: none
constexpr int WARPS = {{ warps }};
constexpr int THREADS = 32 * WARPS;
constexpr int RING = {{ ring }};                // tokens of a sequence that wait for the host
constexpr int SHARE = (VOCABULARY + THREADS - 1) / THREADS;
constexpr int MAX_STOPS = 8;

// One a sequence, written by the host between runs.
struct Parameters {
  float temperature;      // 0: greedy
  u32 top_k;              // 0: off
  float top_p;            // 1: off
  float min_p;            // 0: off
  u32 seed_low, seed_high;
  u32 limit;              // no step at or beyond this position
  u32 stops;              // how many of `stop` hold
  int stop[MAX_STOPS];    // tokens that end the sequence
};

// Bits of a float in an order that compares as unsigned.
DEVICE u32 ordered_bits(float value) {
  const u32 bits = bits_of(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// First word of Philox4x32-10.
DEVICE u32 philox(u32 k0, u32 k1, u32 c0, u32 c1) {
  u32 c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const u32 high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c0;
}

// exp(logit - largest) in units of 2^-40.
DEVICE u64 weight_of(float logit, float largest, float temperature) { return (u64)(expf((logit - largest) / temperature) * 1099511627776.0f); }

// The largest bits `t` such that the measure of the logits at or above t reaches `wanted`: counts, or weights. Never below `floor`.
template <bool WEIGHTS>
DEVICE u32 threshold(const float* logits, u32 floor, float largest, float temperature, u64 wanted, u64 (&bins)[256], u64& above_out) {
  u32 prefix = 0;
  u64 above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += THREADS) bins[i] = 0;
    block_barrier();
    for (int i = threadIdx.x; i < VOCABULARY; i += THREADS) {
      const u32 bits = ordered_bits(logits[i]);
      if (bits < floor || (shift < 24 && bits >> (shift + 8) != prefix >> (shift + 8))) continue;
      const u64 amount = WEIGHTS ? weight_of(logits[i], largest, temperature) : 1;
      if (amount) atomic_add_shared(&bins[bits >> shift & 255], amount);
    }
    block_barrier();
    int digit = 255;
    while (digit > 0 && above + bins[digit] < wanted) above += bins[digit--];
    prefix |= (u32)digit << shift;
    block_barrier();
  }
  above_out = above;
  return prefix > floor ? prefix : floor;
}

// logits [rows][VOCABULARY]; maxima [rows][MAXIMA] value, row. tokens, positions, sequences [rows]: the rows of this step.
// next_tokens, next_positions [sequences]: the rows of the next decode step. ring [sequences][RING]. Grid: rows.
KERNEL void __launch_bounds__(THREADS, 1) {{ name }}(const float* logits, const u32* maxima, const int* positions, const int* sequences,
    const Parameters* parameters, int* next_tokens, int* next_positions, u32* ring) {
  SHARED u64 bins[256];
  SHARED float best_value[WARPS];
  SHARED int best_index[WARPS];
  SHARED u64 warp_total[WARPS];
  SHARED int drawn;
  launch_dependents();
  wait_for_dependencies();
  const int position = positions[blockIdx.x];
  if (position < 0) return;
  const int sequence = sequences[blockIdx.x], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Parameters& p = parameters[sequence];
  logits += (u64)blockIdx.x * VOCABULARY;

  // The first largest.
  float value = NEGATIVE_INFINITY;
  int index = 0x7fffffff;
  const int candidates = MAXIMA > 0 ? MAXIMA : VOCABULARY;
  for (int i = threadIdx.x; i < candidates; i += THREADS) {
    const float v = MAXIMA > 0 ? float_of(maxima[((u64)blockIdx.x * MAXIMA + i) * 2]) : logits[i];
    const int at = MAXIMA > 0 ? (int)maxima[((u64)blockIdx.x * MAXIMA + i) * 2 + 1] : i;
    if (v > value || (v == value && at < index)) value = v, index = at;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const float v = shuffle_xor(value, mask);
    const int at = shuffle_xor(index, mask);
    if (v > value || (v == value && at < index)) value = v, index = at;
  }
  if (lane == 0) best_value[warp] = value, best_index[warp] = index;
  block_barrier();
  for (int i = 0; i < WARPS; i++)
    if (best_value[i] > value || (best_value[i] == value && best_index[i] < index)) value = best_value[i], index = best_index[i];
  int token = index < VOCABULARY ? index : 0;

  if (p.temperature > 0.0f) {
    u32 floor = 0;
    u64 above;
    if (p.top_k > 0 && p.top_k < VOCABULARY) floor = threshold<false>(logits, floor, value, p.temperature, p.top_k, bins, above);
    // The weight of all that is left, share by share: thread i has the logits from i SHARE on.
    const int begin = threadIdx.x * SHARE, end = begin + SHARE < VOCABULARY ? begin + SHARE : VOCABULARY;
    u64 total = 0;
    for (int pass = 0; pass < 2; pass++) {
      u64 mine = 0;
      for (int i = begin; i < end; i++) {
        const float logit = logits[i];
        if (ordered_bits(logit) >= floor) mine += weight_of(logit, value, p.temperature);
      }
      u64 running = mine;
#pragma unroll
      for (int delta = 1; delta < 32; delta *= 2) {
        const u64 below = shuffle_up(running, delta);
        if (lane >= delta) running += below;
      }
      block_barrier();
      if (lane == 31) warp_total[warp] = running;
      if (threadIdx.x == 0) drawn = token;
      block_barrier();
      u64 before = running - mine;
      total = 0;
      for (int i = 0; i < WARPS; i++) {
        if (i < warp) before += warp_total[i];
        total += warp_total[i];
      }
      if (pass == 0) {
        if (p.top_p < 1.0f) {
          const u64 wanted = (u64)((double)p.top_p * (double)total);
          floor = threshold<true>(logits, floor, value, p.temperature, wanted > 0 ? wanted : 1, bins, above);
        }
        if (p.min_p > 0.0f) {
          const u32 least = ordered_bits(value + p.temperature * logf(p.min_p));
          if (least > floor) floor = least;
        }
        continue;
      }
      const u32 bits = philox(p.seed_low, p.seed_high, (u32)position, (u32)sequence);
      const u64 target = (u64)((double)(bits >> 8) * (1.0 / 16777216.0) * (double)total);
      if (target >= before && target < before + mine) {
        for (int i = begin; i < end; i++) {
          const float logit = logits[i];
          if (ordered_bits(logit) >= floor) before += weight_of(logit, value, p.temperature);
          if (before > target) {
            drawn = i;
            break;
          }
        }
      }
    }
    block_barrier();
    token = drawn;
  }

  if (threadIdx.x == 0) {
    bool stop = (u32)position + 1 >= p.limit;
    for (u32 i = 0; i < p.stops && i < MAX_STOPS; i++) stop = stop || token == p.stop[i];
    next_tokens[sequence] = token;
    next_positions[sequence] = stop ? -1 : position + 1;
    publish(ring + (u64)sequence * RING + (position + 1) % RING, token);
  }
}
