{% include "device.cuh" %}
// {{ name }}: the next token of each row: greedy, or drawn after temperature, top-k, top-p and min-p. It is given to the host's ring and
// to the next step. All sums are of integers, so that no order of threads can change them. A row is a cluster's, whose blocks decide alike.
constexpr int VOCABULARY = {{ vocabulary }};
constexpr int MAXIMA = {{ maxima }};            // block maxima the head left; 0: none
constexpr int WARPS = {{ warps }};
constexpr int CLUSTER = {{ cluster }};          // blocks that share a row
constexpr int RING = {{ ring }};                // tokens of a sequence that wait for the host
constexpr int THREADS = 32 * WARPS;
constexpr int ROUNDS = (VOCABULARY + 4 * CLUSTER * THREADS - 1) / (4 * CLUSTER * THREADS);   // fours of logits a thread has
constexpr int TOPS = MAXIMA > 0 ? MAXIMA : CLUSTER * WARPS;    // maxima of parts of the row
constexpr int LIST = 256;                       // logits that are few enough to be compared with each other
constexpr int PIVOTS = 7;
constexpr int MAX_STOPS = 8;
static_assert(WARPS <= 32 && CLUSTER <= 32, "a lane a warp, and a block");

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

struct Shared {
  u64 warp_sums[WARPS][PIVOTS];
  u64 block_sums[2][PIVOTS];                    // in turn: other blocks read those of one exchange while the next begins
  u64 totals[PIVOTS];
  u32 listed[2][LIST], merged[LIST];            // what a block found, and all of them together
  u64 amounts[LIST];
  u32 tops[TOPS], floor, position;
  float best_value[WARPS];
  int best_index[WARPS];
  int drawn;
};

// The row as a thread sees it: its warp has the logits from `begin` on.
struct Row {
  Shared& shared;
  const float* logits;
  int begin, rank, parity;
  float largest, temperature;
};

{% if cluster > 1 %}
DEVICE void cluster_barrier() { cluster_arrive(), cluster_wait(); }
template <typename T>
DEVICE T peer(const T* p, int rank) { return load_peer(p, rank); }
{% else %}
DEVICE void cluster_barrier() { block_barrier(); }
template <typename T>
DEVICE T peer(const T* p, int) { return *p; }
{% endif %}

// Bits of a float in an order that compares as unsigned, and back.
DEVICE u32 ordered_bits(float value) {
  const u32 bits = bits_of(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float of_ordered(u32 bits) { return float_of(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits); }

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

struct Best { float value; int index; };
DEVICE void take(Best& best, float value, int index) {
  if (value > best.value || (value == best.value && index < best.index)) best.value = value, best.index = index;
}
DEVICE Best warp_best(Best best) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const float value = shuffle_xor(best.value, mask);
    take(best, value, shuffle_xor(best.index, mask));
  }
  return best;
}

// Four logits; -inf where there is none, or no number.
DEVICE void load_four(float (&four)[4], const float* logits, int at) {
  Vec4 v = {};
  if (VOCABULARY % 4 == 0 && at < VOCABULARY) v = *(const Vec4*)(logits + at);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    four[j] = at + j >= VOCABULARY ? NEGATIVE_INFINITY : VOCABULARY % 4 == 0 ? float_of(word(v, j)) : logits[at + j];
    if (four[j] != four[j]) four[j] = NEGATIVE_INFINITY;
  }
}

// Gives `use` the bits of each logit of a thread, so many fours at a time.
template <int FOURS = 4, typename Use>
DEVICE void each(const Row& row, Use use) {
#pragma unroll FOURS
  for (int round = 0; round < ROUNDS; round++) {
    float four[4];
    load_four(four, row.logits, row.begin + 128 * round + 4 * (threadIdx.x % 32));
#pragma unroll
    for (int j = 0; j < 4; j++) use(ordered_bits(four[j]));
  }
}

// exp(logit - largest) in units of 2^-40.
DEVICE u64 weight_of(const Row& row, u32 bits) { return (u64)(expf((of_ordered(bits) - row.largest) / row.temperature) * 1099511627776.0f); }

DEVICE u64 warp_total(u64 value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// What the warps in front in the block have of a value that each warp gives, and the block.
DEVICE u64 in_front(const Row& row, u64 of_warp, u64& of_block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) row.shared.warp_sums[warp][0] = of_warp;
  block_barrier();
  const u64 value = lane < WARPS ? row.shared.warp_sums[lane][0] : 0;
  of_block = warp_total(value);
  return warp_total(lane < warp ? value : 0);
}

// What the blocks in front have of a value that each block gives, and all. Lane r is told what block r has.
DEVICE u64 in_front_of_block(Row& row, u64 of_block, u64& of_row, u64& of_lane) {
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) row.shared.block_sums[row.parity][0] = of_block;
  cluster_barrier();
  of_lane = lane < CLUSTER ? peer(&row.shared.block_sums[row.parity][0], lane) : 0;
  row.parity ^= 1;
  of_row = warp_total(of_lane);
  return warp_total(lane < row.rank ? of_lane : 0);
}

// The sums over the row of what each thread gives.
DEVICE void sum_up(Row& row, u64 (&sums)[PIVOTS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < PIVOTS; i++) {
    const u64 sum = warp_total(sums[i]);
    if (lane == 0) row.shared.warp_sums[warp][i] = sum;
  }
  block_barrier();
  for (int i = warp; i < PIVOTS; i += WARPS) {
    const u64 sum = warp_total(lane < WARPS ? row.shared.warp_sums[lane][i] : 0);
    if (lane == 0) row.shared.block_sums[row.parity][i] = sum;
  }
  cluster_barrier();
  for (int i = warp; i < PIVOTS; i += WARPS) {
    const u64 sum = warp_total(lane < CLUSTER ? peer(&row.shared.block_sums[row.parity][i], lane) : 0);
    if (lane == 0) row.shared.totals[i] = sum;
  }
  row.parity ^= 1;
  block_barrier();
#pragma unroll
  for (int i = 0; i < PIVOTS; i++) sums[i] = row.shared.totals[i];
}

// How many logits have bits from `low` to below `high`. If they are no more than LIST, `merged` has them in every block.
DEVICE int list(Row& row, u32 low, u32 high) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 (&listed)[LIST] = row.shared.listed[row.parity];
  u64 mine = 0, of_block, of_row, of_lane;
  each(row, [&](u32 bits) { mine += bits >= low && bits < high; });
  u64 running = mine;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const u64 below = shuffle_up(running, delta);
    if (lane >= delta) running += below;
  }
  u64 place = in_front(row, warp_total(mine), of_block) + running - mine;
  if (mine > 0 && of_block <= LIST)
    each(row, [&](u32 bits) { if (bits >= low && bits < high) listed[place++] = bits; });
  in_front_of_block(row, of_block, of_row, of_lane);
  if (of_row <= LIST) {
    for (int rank = warp; rank < CLUSTER; rank += WARPS) {
      const int before = (int)warp_total(lane < rank ? of_lane : 0), count = (int)warp_total(lane == rank ? of_lane : 0);
      for (int i = lane; i < count; i += 32) row.shared.merged[before + i] = peer(&listed[i], rank);
    }
  }
  block_barrier();
  return of_row <= LIST ? (int)of_row : LIST + 1;
}

// The largest bits `t`, at least `low`, such that the measure of the logits at or above t reaches `wanted`: counts, or weights.
template <bool WEIGHTS>
DEVICE u32 threshold(Row& row, u64 wanted, u32 low) {
  Shared& shared = row.shared;
  const auto measure = [&](u32 bits) { return WEIGHTS ? weight_of(row, bits) : (u64)1; };
  u32 high = ordered_bits(row.largest) + 1;
  u64 above = 0;          // the measure of what is at or above `high`
  for (bool first = true;; first = false) {
    const int count = list(row, low, high);
    if (count <= LIST) {
      if (threadIdx.x == 0) shared.floor = low;
      for (int i = threadIdx.x; i < count; i += THREADS) shared.amounts[i] = measure(shared.merged[i]);
      block_barrier();
      for (int i = threadIdx.x; i < count; i += THREADS) {
        const u32 bits = shared.merged[i];
        u64 sum = above;
#pragma unroll 4
        for (int j = 0; j < count; j++)
          if (shared.merged[j] >= bits) sum += shared.amounts[j];
        if (sum >= wanted) atomic_max_shared(&shared.floor, bits);
      }
      block_barrier();
      return shared.floor;
    }
    if (high - low == 1) return low;
    // Narrower: at first by the distance to the largest, which suits the tail of a softmax, then evenly.
    u32 pivots[PIVOTS];
    u64 sums[PIVOTS] = {};
#pragma unroll
    for (int i = 0; i < PIVOTS; i++) {
      if (first) {
        const u32 bits = ordered_bits(row.largest - row.temperature * (float)(1 << (PIVOTS - 1 - i)) * 0.25f);
        pivots[i] = bits < low ? low : bits < high ? bits : high;
      } else {
        pivots[i] = low + (u32)(((u64)(high - low) * (i + 1) + PIVOTS) / (PIVOTS + 1));
      }
    }
    each<1>(row, [&](u32 bits) {
      if (bits < pivots[0] || bits >= high) return;
      const u64 amount = measure(bits);
#pragma unroll
      for (int i = 0; i < PIVOTS; i++)
        if (bits >= pivots[i]) sums[i] += amount;
    });
    sum_up(row, sums);
    // The last pivot at which it is reached, and the first at which it is not.
    u32 next_low = low, next_high = high;
    u64 beyond = 0;
#pragma unroll
    for (int i = 0; i < PIVOTS; i++) {
      if (above + sums[i] >= wanted) next_low = pivots[i];
      else if (next_high == high) next_high = pivots[i], beyond = sums[i];
    }
    low = next_low, high = next_high, above += beyond;
  }
}

// A token of the logits at or above `floor`, by their weights. For the thread that finds it; -1 for the others.
DEVICE int draw(Row& row, const Parameters& p, u32 floor, int sequence) {
  const int lane = threadIdx.x % 32;
  u64 mine = 0, of_block, of_row, of_lane;
  each(row, [&](u32 bits) { if (bits >= floor) mine += weight_of(row, bits); });
  const u64 of_warp = warp_total(mine);
  u64 before = in_front(row, of_warp, of_block);
  before += in_front_of_block(row, of_block, of_row, of_lane);
  const u32 random = philox(p.seed_low, p.seed_high, peer(&row.shared.position, 0), (u32)sequence);
  const u64 target = (u64)((double)(random >> 8) * (1.0 / 16777216.0) * (double)of_row);
  if (target < before || target >= before + of_warp) return -1;
  // This warp has it: 128 logits after the other.
  int token = -1;
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++) {
    float four[4];
    u64 weights[4], sum = 0;
    const int at = row.begin + 128 * round + 4 * lane;
    load_four(four, row.logits, at);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const u32 bits = ordered_bits(four[j]);
      sum += weights[j] = bits >= floor ? weight_of(row, bits) : 0;
    }
    u64 running = sum;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const u64 below = shuffle_up(running, delta);
      if (lane >= delta) running += below;
    }
    u64 reached = before + running - sum;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (target >= reached && target < reached + weights[j]) token = at + j;
      reached += weights[j];
    }
    before += warp_total(sum);
  }
  return token;
}

// Gives a token to the host and to the next step.
DEVICE void finish(const Parameters& p, int token, int position, int sequence, int* next_tokens, int* next_positions, u32* ring) {
  bool stop = (u32)position + 1 >= p.limit;
  for (u32 i = 0; i < p.stops && i < MAX_STOPS; i++) stop = stop || token == p.stop[i];
  next_tokens[sequence] = token;
  next_positions[sequence] = stop ? -1 : position + 1;
  publish(ring + (u64)sequence * RING + (position + 1) % RING, token);
}

// logits [rows][VOCABULARY]; maxima [rows][MAXIMA] value, row. tokens, positions, sequences [rows]: the rows of this step.
// next_tokens, next_positions [sequences]: the rows of the next decode step. ring [sequences][RING]. Grid: CLUSTER, rows.
KERNEL void {% if cluster > 1 %}CLUSTER_OF(CLUSTER) {% endif %}__launch_bounds__(THREADS, 2) {{ name }}(const float* logits,
    const u32* maxima, const int* positions, const int* sequences, const Parameters* parameters, int* next_tokens, int* next_positions,
    u32* ring) {
  SHARED Shared shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x;
  launch_dependents();
  const int sequence = load_early(sequences + blockIdx.y);
  const Parameters& p = parameters[sequence];
  const float temperature = float_of(load_early((const int*)&p.temperature));
  // Not of a row that is to be skipped: its block decides that.
  const bool warm = temperature > 0.0f;
  wait_for_dependencies();
  if (MAXIMA > 0 && !warm && (rank > 0 || warp > 0)) return;
  const int position = rank == 0 ? positions[blockIdx.y] : -1;
  Row row = {shared, logits + (u64)blockIdx.y * VOCABULARY, (rank * WARPS + warp) * ROUNDS * 128, rank, 0, 0.0f, temperature};

  // The first largest, and the largest of each part.
  Best best = {NEGATIVE_INFINITY, 0x7fffffff};
  if (MAXIMA > 0) {
    for (int i = lane; i < MAXIMA; i += 32) {
      const u32* at = maxima + ((u64)blockIdx.y * MAXIMA + i) * 2;
      take(best, float_of(at[0]), (int)at[1]);
      if (warm && warp == 0) shared.tops[i] = ordered_bits(float_of(at[0]));
    }
    best = warp_best(best);
  } else {
#pragma unroll 4
    for (int round = 0; round < ROUNDS; round++) {
      float four[4];
      const int at = row.begin + 128 * round + 4 * lane;
      load_four(four, row.logits, at);
#pragma unroll
      for (int j = 0; j < 4; j++) take(best, four[j], at + j);
    }
    best = warp_best(best);
    if (lane == 0) shared.best_value[warp] = best.value, shared.best_index[warp] = best.index;
    cluster_barrier();
    best.value = NEGATIVE_INFINITY, best.index = 0x7fffffff;
    for (int i = lane; i < TOPS; i += 32) {
      const float value = peer(&shared.best_value[i % WARPS], i / WARPS);
      take(best, value, peer(&shared.best_index[i % WARPS], i / WARPS));
      if (warp == 0) shared.tops[i] = ordered_bits(value);
    }
    best = warp_best(best);
  }
  int token = best.index < VOCABULARY ? best.index : 0;

  if (warm && best.value - best.value == 0.0f) {
    row.largest = best.value;
    u32 floor = 0;
    if (threadIdx.x == 0) shared.floor = 0, shared.position = (u32)position, shared.drawn = -1;
    block_barrier();
    if (p.top_k > 0 && p.top_k < VOCABULARY) {
      // The top_k-th of the largest of the parts is a bound from below.
      for (int i = threadIdx.x; i < TOPS && p.top_k <= TOPS; i += THREADS) {
        const u32 bits = shared.tops[i];
        u32 before = 0;
#pragma unroll 8
        for (int j = 0; j < TOPS; j++) before += shared.tops[j] > bits || (shared.tops[j] == bits && j < i);
        if (before + 1 == p.top_k) shared.floor = bits;
      }
      block_barrier();
      floor = threshold<false>(row, p.top_k, shared.floor);
    }
    if (p.top_p < 1.0f) {
      u64 mine = 0, of_block, total, of_lane;
      each(row, [&](u32 bits) { if (bits >= floor) mine += weight_of(row, bits); });
      in_front(row, warp_total(mine), of_block);
      in_front_of_block(row, of_block, total, of_lane);
      const u64 wanted = (u64)((double)p.top_p * (double)total);
      floor = threshold<true>(row, wanted > 0 ? wanted : 1, floor);
    }
    if (p.min_p > 0.0f) {
      const u32 least = ordered_bits(row.largest + temperature * logf(p.min_p));
      if (least > floor) floor = least;
    }
    const int drawn = draw(row, p, floor, sequence);
    if (drawn >= 0) shared.drawn = drawn;
    cluster_barrier();
    for (int r = 0; r < CLUSTER && threadIdx.x == 0 && rank == 0; r++) {
      const int other = peer(&shared.drawn, r);
      if (other >= 0) token = other;
    }
  }
  if (rank == 0 && threadIdx.x == 0 && position >= 0) finish(p, token, position, sequence, next_tokens, next_positions, ring);
  // Others may still read what this block has.
  if (warm || MAXIMA == 0) cluster_barrier();
}
