{% include "device.cuh" %}
{% include "ring.cuh" %}
// {{ self.name() }}: the next token of each row: greedy, or drawn after temperature, top-k, top-p and min-p. It is written to the host's ring and
// to the next step. All sums are of integers, so that the order of threads cannot change them. A cluster takes a row, and its blocks decide alike.
constexpr int VOCABULARY = {{ vocabulary }};
constexpr int MAXIMA = {{ maxima }};  // block maxima that the head wrote; 0: none
constexpr int WARPS = {{ self.warps() }};
constexpr int CLUSTER = {{ cluster }};   // blocks that share a row
constexpr int RING = {{ self.ring() }};  // tokens of a sequence that wait for the host
constexpr int THREADS = 32 * WARPS;
constexpr int ROUNDS = (VOCABULARY + 4 * CLUSTER * THREADS - 1) / (4 * CLUSTER * THREADS);  // groups of four logits per thread
constexpr int TOPS = MAXIMA > 0 ? MAXIMA : CLUSTER * WARPS;                                  // maxima of parts of the row
constexpr int TOPS_A_LANE = ((TOPS > CLUSTER * WARPS ? TOPS : CLUSTER * WARPS) + 31) / 32;
constexpr int LIST = THREADS < 256 ? THREADS : 256;  // logits that are few enough to be compared with each other
constexpr int BOUND_BITS = 17;                       // of a bound for top-k; at least 8 after those that all tops have in common
constexpr int PIVOTS = 7;
constexpr int MAX_STOPS = 8;
constexpr int MAX_SCORES = 20;
constexpr int SCORES_RING = {{ self.scores_ring() }};  // scores of a sequence that wait for the host
constexpr u32 NOT_FINITE = 0xfffffffeu;                // in the ring instead of a token: a logit is NaN or +inf
constexpr u32 NONE_LEFT = 0xfffffffdu;                 // likewise: all logits are -inf
static_assert(WARPS <= 32 && CLUSTER <= 32, "a lane per warp, and per block");

// Added to the logit of a token.
struct Bias {
  u32 token;
  float value;
};

// How likely the model held a token, in host memory: weights are exp(logit - largest), their sum is in units of 2^-40.
struct Scores {
  u64 sum;
  float largest, chosen;  // logits
  u32 count, unused;
  struct {
    u32 token;
    float logit;
  } top[MAX_SCORES];  // the likeliest first, of equal ones the smaller token
};
static_assert(sizeof(Scores) == 184, "as the host reads it");

// One per sequence, written by the host between steps.
struct Parameters {
  float temperature;  // 0: greedy
  u32 top_k;          // 0: off
  float top_p;        // 1: off
  float min_p;        // 0: off
  u32 seed_low, seed_high;
  u32 limit;            // no step at or beyond this position
  u32 stops;            // how many of `stop` are set
  int stop[MAX_STOPS];  // tokens that end the sequence
  u16* marks;           // one per token of the vocabulary; 0: logits are taken as they are
  float repetition;     // penalty of the tokens that the prompt or the text has
  u32 choice;           // which of several texts after one prompt
  u32 generation;       // tells the ring's tokens of this sequence from those of the ones before it in its place
  float frequency;      // taken from a token's logit for each time that the text has it
  float presence;       // taken from it once
  u32 biases;           // how many of `bias` there are, of different tokens
  const Bias* bias;     // none without marks
  Scores* scores;       // a ring by position; 0: the host is told nothing
  u32 scored;           // how many of the likeliest tokens to tell, at most the vocabulary
  u32 unused;
  float* raw;  // where logits are both changed and told: a row for those as they were
};
constexpr u32 SUPPRESSED = 0x8000, IN_PROMPT = 0x4000;  // marks; the other bits count the text's
static_assert(sizeof(Parameters) == 128, "a word per lane");
constexpr int PARAMETER_WORDS = sizeof(Parameters) / 4;

struct Shared {
  u64 warp_sums[WARPS][PIVOTS];
  u64 block_sums[PIVOTS];
  u64 totals[PIVOTS];
  u64 listed[CLUSTER][LIST], merged[LIST];  // bits and token of what each block found, and of all together
  u32 found, counts[CLUSTER];               // how many this block found, and each block
  u32 amounts[LIST];                        // their weights, or ones
  u32 floor, position;
  u64 weight;
  float chosen;  // the logit of the token that was drawn, as it was
  float best_value[WARPS];
  int best_index[WARPS];
  int drawn, given;  // the latter: to the host, or -1
  Parameters parameters;
};

// The row as a thread sees it: its warp has the logits from `begin` on.
struct Row {
  Shared& shared;
  const float* logits;
  int begin, rank;
  float largest, temperature, steepness;  // the latter: log2(e) / temperature
};

{%- if cluster > 1 %}
DEVICE void begin_cluster() { cluster_begin(); }
DEVICE void join_cluster() { cluster_join(); }
DEVICE void cluster_barrier() { cluster_arrive(), cluster_wait(); }
template <typename T>
DEVICE T peer(const T * p, int rank) {
  return load_peer(p, rank);
}
template <typename T>
DEVICE void give(T * p, T value, int rank) {
  store_peer(p, value, rank);
}
{%- else %}
DEVICE void begin_cluster() {}
DEVICE void join_cluster() {}
DEVICE void cluster_barrier() { block_barrier(); }
template <typename T>
DEVICE T peer(const T * p, int) {
  return *p;
}
template <typename T>
DEVICE void give(T * p, T value, int) {
  *p = value;
}
{%- endif %}

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

struct Best {
  float value;
  int index;
};
// A NaN counts as the largest.
DEVICE void take(Best& best, float value, int index) {
  if (value > best.value || value != value || (value == best.value && index < best.index)) best.value = value, best.index = index;
}
DEVICE Best warp_best(Best best) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const float value = shuffle_xor(best.value, mask);
    take(best, value, shuffle_xor(best.index, mask));
  }
  return best;
}

// Four logits; -inf where there is none.
DEVICE void load_four(float (&four)[4], const float* logits, int at) {
  if (VOCABULARY % 4 == 0) {
    const u32 none = 0xff800000u;
    const Vec4 v = at < VOCABULARY ? *(const Vec4*)(logits + at) : Vec4{none, none, none, none};
#pragma unroll
    for (int j = 0; j < 4; j++) four[j] = float_of(word(v, j));
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) four[j] = at + j < VOCABULARY ? logits[at + j] : NEGATIVE_INFINITY;
  }
}

{% include "changes.cuh" %}

// Loads what a thread will read into L1.
DEVICE void touch(const float* logits, int at) {
  if (at < VOCABULARY) load_and_forget(logits + at);
}

// Gives `use` the bits and the token of each logit of a thread. The loop is not unrolled: instructions come from memory, logits from L1.
template <typename Use>
DEVICE void each(const Row& row, Use use) {
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++) {
    float four[4];
    const int at = row.begin + 128 * round + 4 * (threadIdx.x % 32);
    load_four(four, row.logits, at);
#pragma unroll
    for (int j = 0; j < 4; j++) use(ordered_bits(four[j]), at + j);
  }
}

// exp((logit - largest) / temperature) in units of 2^-31.
DEVICE u32 weight_of(const Row& row, u32 bits) { return (u32)(power_of_two((of_ordered(bits) - row.largest) * row.steepness) * 2147483648.0f); }

DEVICE u64 warp_total(u64 value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sum of a value over the warps before this one in the block, and over the block.
DEVICE u64 in_front(const Row& row, u64 of_warp, u64& of_block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) row.shared.warp_sums[warp][0] = of_warp;
  block_barrier();
  const u64 value = lane < WARPS ? row.shared.warp_sums[lane][0] : 0;
  of_block = warp_total(value);
  return warp_total(lane < warp ? value : 0);
}

// The sum of a value over the blocks before this one, and over all.
DEVICE u64 in_front_of_block(const Row& row, u64 of_block, u64& of_row) {
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) row.shared.block_sums[0] = of_block;
  cluster_barrier();
  const u64 of_lane = lane < CLUSTER ? peer(&row.shared.block_sums[0], lane) : 0;
  of_row = warp_total(of_lane);
  return warp_total(lane < row.rank ? of_lane : 0);
}

// The sums over the row of each thread's values. All blocks are done with the last list: the next one is empty.
DEVICE void sum_up(const Row& row, u64 (&sums)[PIVOTS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < PIVOTS; i++) {
    const u64 sum = warp_total(sums[i]);
    if (lane == 0) row.shared.warp_sums[warp][i] = sum;
  }
  block_barrier();
  for (int i = warp; i < PIVOTS; i += WARPS) {
    const u64 sum = warp_total(lane < WARPS ? row.shared.warp_sums[lane][i] : 0);
    if (lane == 0) row.shared.block_sums[i] = sum;
  }
  cluster_barrier();
  for (int i = warp; i < PIVOTS; i += WARPS) {
    const u64 sum = warp_total(lane < CLUSTER ? peer(&row.shared.block_sums[i], lane) : 0);
    if (lane == 0) row.shared.totals[i] = sum;
  }
  if (threadIdx.x == 0) row.shared.found = 0;
  block_barrier();
#pragma unroll
  for (int i = 0; i < PIVOTS; i++) sums[i] = row.shared.totals[i];
}

// How many logits have bits from `low` to below `high`; LIST + 1: more than LIST. Else `merged` has them, in no order: in every block, or the
// first. No block reads of another, so that those with nothing to do may end.
DEVICE int list(const Row& row, u32 low, u32 high, bool everywhere) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Shared& shared = row.shared;
  each(row, [&](u32 bits, int token) {
    if (bits < low || bits >= high) return;
    const u32 place = atomic_add_shared(&shared.found, 1);
    if (place >= LIST) return;
    for (int rank = 0; rank < (everywhere ? CLUSTER : 1); rank++) give(&shared.listed[row.rank][place], (u64)bits << 32 | (u32)token, rank);
  });
  block_barrier();
  if (threadIdx.x < CLUSTER) give(&shared.counts[row.rank], shared.found, (int)threadIdx.x);
  cluster_barrier();
  const int of_lane = lane < CLUSTER ? (int)shared.counts[lane] : 0, count = warp_sum(of_lane);
  if (count > LIST) return LIST + 1;
  for (int rank = warp; rank < CLUSTER && (everywhere || row.rank == 0); rank += WARPS) {
    const int before = warp_sum(lane < rank ? of_lane : 0), end = before + warp_sum(lane == rank ? of_lane : 0);
    for (int i = before + lane; i < end; i += 32) shared.merged[i] = shared.listed[rank][i - before];
  }
  block_barrier();
  return count;
}
DEVICE u32 bits_in(u64 entry) { return (u32)(entry >> 32); }

// A bound from below of the `count`-th largest of the tops, of which each lane has some: the bits that all have in common, and a few more.
DEVICE u32 bound_of(const float (&tops)[TOPS_A_LANE], u32 count) {
  u32 bits[TOPS_A_LANE], most = 0, least = 0xffffffffu;
#pragma unroll
  for (int i = 0; i < TOPS_A_LANE; i++) {
    const bool is_top = 32 * i + threadIdx.x % 32 < TOPS;
    bits[i] = is_top ? ordered_bits(tops[i]) : 0;
    if (bits[i] > most) most = bits[i];
    if (is_top && bits[i] < least) least = bits[i];
  }
  most = warp_max(most), least = warp_min(least);
  const int first = leading_zeros(most ^ least);
  u32 bound = first == 0 ? 0 : first == 32 ? most : most & ~(0xffffffffu >> first);
#pragma unroll 1
  for (int place = first; place < 32 && (place < BOUND_BITS || place < first + 8); place++) {
    const u32 next = bound | 0x80000000u >> place;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < TOPS_A_LANE; i++) reach += bits[i] >= next;
    if (warp_sum(reach) >= (int)count) bound = next;
  }
  return bound;
}

// The threshold after top-k and top-p, raised by min-p.
DEVICE u32 least_of(const Row& row, const Parameters& p, u32 floor) {
  const u32 least = p.min_p > 0.0f ? ordered_bits(row.largest + row.temperature * logf(p.min_p)) : 0;
  return least > floor ? least : floor;
}

// The largest bits `t`, at least `low`, such that the measure of the logits at or above t reaches `wanted`: counts, or weights, of which
// `wanted` is a fraction of those at or above `low`.
template <bool WEIGHTS>
DEVICE u32 threshold(const Row& row, double wanted, u32 low) {
  Shared& shared = row.shared;
  const auto measure = [&](u32 bits) { return WEIGHTS ? weight_of(row, bits) : 1u; };
  u32 high = ordered_bits(row.largest) + 1;
  u64 above = 0, least = (u64)wanted;  // the measure of what is at or above `high`, and what is to be reached
  for (bool first = true; high - low > 1; first = false) {
    // Pivots of the interval: at first by the distance to the largest, which suits the tail of a softmax, then evenly.
    u32 pivots[PIVOTS];
    u64 sums[PIVOTS] = {};
#pragma unroll
    for (int i = 0; i < PIVOTS; i++) {
      const u32 distant = ordered_bits(row.largest - row.temperature * (float)(1 << (PIVOTS - 1 - i)) * 0.5f);
      const u32 even = low + (u32)(((u64)(high - low) * i + PIVOTS - 1) / PIVOTS);
      pivots[i] = i == 0 ? low : !first ? even : distant < low ? low : distant < high ? distant : high;
    }
    each(row, [&](u32 bits, int) {
      if (bits < low || bits >= high) return;
      const u32 amount = measure(bits);
#pragma unroll
      for (int i = 0; i < PIVOTS; i++)
        if (bits >= pivots[i]) sums[i] += amount;
    });
    sum_up(row, sums);
    if (WEIGHTS && first) least = (u64)(wanted * (double)sums[0]);
    if (least == 0) least = 1;
    // The last pivot at which it is reached, and the first at which it is not.
    u32 next_low = low, next_high = high;
    u64 beyond = 0;
#pragma unroll
    for (int i = 1; i < PIVOTS; i++) {
      if (above + sums[i] >= least) next_low = pivots[i];
      else if (next_high == high) next_high = pivots[i], beyond = sums[i];
    }
    low = next_low, high = next_high, above += beyond;
    const int count = list(row, low, high, true);
    if (count > LIST) continue;
    const u32 bits = threadIdx.x < count ? bits_in(shared.merged[threadIdx.x]) : 0;
    if (threadIdx.x < count) shared.amounts[threadIdx.x] = measure(bits);
    if (threadIdx.x == 0) shared.floor = low;
    block_barrier();
    u64 sum = above;
#pragma unroll 4
    for (int j = 0; j < count; j++)
      if (bits_in(shared.merged[j]) >= bits) sum += shared.amounts[j];
    if (threadIdx.x < count && sum >= least) atomic_max_shared(&shared.floor, bits);
    block_barrier();
    return shared.floor;
  }
  return low;
}

// A number from 0 to below `total`.
DEVICE u64 random_below(const Parameters& p, u32 position, u64 total) {
  return (u64)((double)(philox(p.seed_low, p.seed_high, position, p.choice) >> 8) * (1.0 / 16777216.0) * (double)total);
}

// A token of the list, which has `count` logits, among them all that top-k keeps. By one block, one logit per thread.
DEVICE int draw_of_list(const Row& row, const Parameters& p, int count, u32 position) {
  Shared& shared = row.shared;
  const bool has = threadIdx.x < count;
  const u64 entry = has ? shared.merged[threadIdx.x] : 0;
  const u32 bits = bits_in(entry), amount = has ? weight_of(row, bits) : 0;
  if (has) shared.amounts[threadIdx.x] = amount;
  if (threadIdx.x == 0) shared.floor = 0, shared.weight = 0;
  block_barrier();
  // How many are not less, and what they weigh.
  u32 rank = 0;
  u64 weight = 0;
  bool first = has;  // of equal ones
#pragma unroll 8
  for (int j = 0; j < count; j++) {
    const u32 other = bits_in(shared.merged[j]);
    if (other >= bits) rank++, weight += shared.amounts[j];
    if (other == bits && j < threadIdx.x) first = false;
  }
  if (has && rank >= p.top_k) atomic_max_shared(&shared.floor, bits);
  block_barrier();
  if (p.top_p < 1.0f) {
    if (first && bits == shared.floor) shared.weight = weight;
    block_barrier();
    const u64 wanted = (u64)((double)p.top_p * (double)shared.weight);
    if (has && weight >= (wanted > 0 ? wanted : 1)) atomic_max_shared(&shared.floor, bits);
    block_barrier();
  }
  const u32 floor = least_of(row, p, shared.floor);
  u64 total = 0, reached = 0;
#pragma unroll 8
  for (int j = 0; j < count; j++) {
    const u64 other = shared.merged[j];
    if (bits_in(other) < floor) continue;
    total += shared.amounts[j];
    if ((u32)other < (u32)entry) reached += shared.amounts[j];
  }
  const u64 target = random_below(p, position, total);
  if (bits >= floor && target >= reached && target < reached + amount) shared.drawn = (int)(u32)entry;
  block_barrier();
  return shared.drawn;
}

// The sum of the weights at or above `floor`: over the row, over what is before this warp, and over the warp.
DEVICE u64 weigh(const Row& row, u32 floor, u64& before, u64& of_warp) {
  u64 mine = 0, of_block, of_row;
  each(row, [&](u32 bits, int) {
    if (bits >= floor) mine += weight_of(row, bits);
  });
  of_warp = warp_total(mine);
  before = in_front(row, of_warp, of_block);
  before += in_front_of_block(row, of_block, of_row);
  return of_row;
}

// The token at `target` of the weights at or above `floor`, if this thread's warp has it: for the thread that finds it, else -1.
DEVICE int find(const Row& row, u32 floor, u64 target, u64 before, u64 of_warp) {
  if (target < before || target >= before + of_warp) return -1;
  const int lane = threadIdx.x % 32;
  // First which 128 logits, then which of them.
  int found = 0;
  u64 found_before = before;
#pragma unroll 4
  for (int round = 0; round < ROUNDS; round++) {
    float four[4];
    load_four(four, row.logits, row.begin + 128 * round + 4 * lane);
    u64 sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (ordered_bits(four[j]) >= floor) sum += weight_of(row, ordered_bits(four[j]));
    if (target >= before) found = round, found_before = before;
    before += warp_total(sum);
  }
  float four[4];
  const int at = row.begin + 128 * found + 4 * lane;
  load_four(four, row.logits, at);
  u64 weights[4], sum = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) sum += weights[j] = ordered_bits(four[j]) >= floor ? weight_of(row, ordered_bits(four[j])) : 0;
  u64 reached = sum;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const u64 below = shuffle_up(reached, delta);
    if (lane >= delta) reached += below;
  }
  reached += found_before - sum;
  int token = -1;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (target >= reached && target < reached + weights[j]) token = at + j;
    reached += weights[j];
  }
  return token;
}

// The largest logit of each part of the row, which are the warps' shares, and its token.
DEVICE void search(const Row& row, float (&tops)[TOPS_A_LANE], int (&places)[TOPS_A_LANE]) {
  Shared& shared = row.shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Best own = {NEGATIVE_INFINITY, 0x7fffffff};
#pragma unroll 5
  for (int round = 0; round < ROUNDS; round++) {
    float four[4];
    const int at = row.begin + 128 * round + 4 * lane;
    load_four(four, row.logits, at);
#pragma unroll
    for (int j = 0; j < 4; j++) take(own, four[j], at + j);
  }
  own = warp_best(own);
  if (lane == 0) shared.best_value[warp] = own.value, shared.best_index[warp] = own.index;
  cluster_barrier();
#pragma unroll
  for (int i = 0; i < TOPS_A_LANE; i++) {
    const int top = 32 * i + lane;
    tops[i] = top < CLUSTER * WARPS ? peer(&shared.best_value[top % WARPS], top / WARPS) : NEGATIVE_INFINITY;
    places[i] = top < CLUSTER * WARPS ? peer(&shared.best_index[top % WARPS], top / WARPS) : 0x7fffffff;
  }
}

{% include "scores.cuh" %}

// Writes a token for the host and for the next step. Where the largest logit lets none be chosen the host is told why, and there is no next step.
DEVICE void finish(const Parameters& p, int token, float largest, int position, int sequence, int* next_tokens, int* next_positions, u64* ring) {
  const bool finite = largest - largest == 0.0f;
  bool stop = !finite || (u32)position + 1 >= p.limit;
  for (u32 i = 0; i < p.stops && i < MAX_STOPS; i++) stop = stop || token == p.stop[i];
  next_tokens[sequence] = token;
  next_positions[sequence] = stop ? -1 : position + 1;
  const u32 told = finite ? (u32)token : largest == NEGATIVE_INFINITY ? NONE_LEFT : NOT_FINITE;
  publish(ring + (u64)sequence * RING + (position + 1) % RING, (u64)p.generation << 32 | told);
}

// logits [rows][VOCABULARY]; maxima [rows][MAXIMA] value, row. tokens, positions, sequences [rows]: the rows of this step.
// next_tokens, next_positions [sequences]: the rows of the next decode step. ring [sequences][RING]. Grid: CLUSTER, rows.
KERNEL void {% if cluster > 1 %}CLUSTER_OF(CLUSTER){% endif %} __launch_bounds__(THREADS, 1) {{ self.name() }}({{ self.signature() }}) {
  SHARED Shared shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x;
  launch_dependents();
  const int sequence = load_early(sequences + blockIdx.y);
  const Parameters& p = shared.parameters;
  // 1 Parameters and block maxima. The last warp's dependent loads do not delay the first warp.
  if (warp == WARPS - 1 && lane < PARAMETER_WORDS) ((int*)&shared.parameters)[lane] = load_early((const int*)(parameters + sequence) + lane);
  wait_for_dependencies();
  // Only the first block knows whether the row is skipped: only it writes positions.
  const int position = rank == 0 ? positions[blockIdx.y] : -1;
  float tops[TOPS_A_LANE];  // the largest of each part
  int places[TOPS_A_LANE];
  if (MAXIMA > 0) {
#pragma unroll
    for (int i = 0; i < TOPS_A_LANE; i++) {
      const int top = 32 * i + lane;
      const u32* at = maxima + ((u64)blockIdx.y * MAXIMA + top) * 2;
      tops[i] = top < TOPS ? float_of(at[0]) : NEGATIVE_INFINITY;
      places[i] = top < TOPS ? (int)at[1] : 0x7fffffff;
    }
  }
  block_barrier();
  const bool warm = p.temperature > 0.0f;
  const bool changed = p.marks != 0, scored = p.scores != 0;
  const bool searched = MAXIMA == 0 || changed || scored;  // the head's maxima do not say all that is to be known
  // Greedy sampling from block maxima is one warp's work.
  if (!searched && !warm && (rank > 0 || warp > 0)) return;
  Row row = {shared,
             logits + (u64)blockIdx.y * VOCABULARY,
             (rank * WARPS + warp) * ROUNDS * 128,
             rank,
             0.0f,
             p.temperature,
             fminf(1.4426950408889634f / p.temperature, 3e38f)};
  if (!searched && warm) {
    begin_cluster();
    // The logits are loaded while the threshold is computed.
    for (int round = 0; round < ROUNDS; round++) touch(row.logits, row.begin + 128 * round + 4 * lane);
  }
  // 2 The largest logit, and the largest of each part of the row.
  if (searched) {
    if (scored) {
      search(row, tops, places);
      score(row, p, tops, position);
    }
    if (changed) change(p, logits + (u64)blockIdx.y * VOCABULARY, row.begin, rank);
    if (changed || !scored) search(row, tops, places);
  }
  Best best = {NEGATIVE_INFINITY, 0x7fffffff};  // the first largest
#pragma unroll
  for (int i = 0; i < TOPS_A_LANE; i++) take(best, tops[i], places[i]);
  best = warp_best(best);
  int token = best.index < VOCABULARY ? best.index : 0;
  const bool finite = best.value - best.value == 0.0f;
  if (!searched && warm) join_cluster();

  // 3 The logits that top-k keeps, as a threshold or as a list.
  int count = LIST + 1;  // of the logits that top-k keeps, where they are few
  if (warm && finite) {
    row.largest = best.value + 0.0f;  // not -0
    if (threadIdx.x == 0) shared.found = 0, shared.position = (u32)position, shared.drawn = -1;
    block_barrier();
    u32 floor = 0;
    if (p.top_k > 0 && p.top_k < VOCABULARY) {
      floor = p.top_k <= TOPS ? bound_of(tops, p.top_k) : 0;
      count = list(row, floor, ordered_bits(row.largest) + 1, false);
      if (count > LIST) floor = threshold<false>(row, p.top_k, floor);
    }
    // 4 A draw from the list, or from the row after top-p and min-p.
    if (count <= LIST) {
      const int drawn = rank == 0 ? draw_of_list(row, p, count, (u32)position) : -1;
      if (drawn >= 0) token = drawn;
    } else {
      if (p.top_p < 1.0f) floor = threshold<true>(row, p.top_p, floor);
      floor = least_of(row, p, floor);
      u64 before, of_warp;
      const u64 total = weigh(row, floor, before, of_warp);
      const int found = find(row, floor, random_below(p, peer(&shared.position, 0), total), before, of_warp);
      if (found >= 0) shared.drawn = found;
      cluster_barrier();
      for (int r = 0; r < CLUSTER && threadIdx.x == 0 && rank == 0; r++) {
        const int other = peer(&shared.drawn, r);
        if (other >= 0) token = other;
      }
    }
  }
  // 5 The token to the host and to the next step.
  if (scored) give_chosen(row, p, token);
  if (rank == 0 && threadIdx.x == 0 && position >= 0 && scored) {
    publish((u32*)&scores_at(p, position).chosen, bits_of(shared.chosen));
    settle_for_host();
  }
  if (rank == 0 && threadIdx.x == 0 && position >= 0) finish(p, token, best.value, position, sequence, next_tokens, next_positions, ring);
  if (changed && rank == 0 && threadIdx.x == 0) shared.given = position >= 0 ? token : -1;
  // Other blocks may still read this one's shared memory.
  if (searched || (warm && count > LIST)) cluster_barrier();
  if (changed) {
    note(p, peer(&shared.given, 0), row.begin);
    cluster_barrier();
  }
}
