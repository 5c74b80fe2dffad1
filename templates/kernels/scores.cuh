// How likely the model held the tokens of a row, as the host is told it: of logits as they were before anything changed them.

// The first token from `from` on whose logit has these bits; the largest number: there is none. All blocks are done with what they read of each other.
DEVICE u32 first_with(const Row& row, u32 bits_wanted, u32 from) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 found = 0xffffffffu;
  each(row, [&](u32 bits, int token) {
    if (bits == bits_wanted && (u32)token >= from && (u32)token < found) found = (u32)token;
  });
  found = warp_min(found);
  if (lane == 0) row.shared.warp_sums[warp][0] = found;
  block_barrier();
  found = warp_min(lane < WARPS ? (u32)row.shared.warp_sums[lane][0] : 0xffffffffu);
  if (threadIdx.x == 0) row.shared.block_sums[0] = found;
  cluster_barrier();
  found = warp_min(lane < CLUSTER ? (u32)peer(&row.shared.block_sums[0], lane) : 0xffffffffu);
  cluster_barrier();
  return found;
}

// The scores after a position of a sequence.
DEVICE Scores& scores_at(const Parameters& p, int position) { return p.scores[(position + 1) % SCORES_RING]; }

// Tells the host how likely the model held the row's tokens, all but the chosen one. By the first block, which has the position. At its end all blocks
// are done with what they read of each other.
DEVICE void score(Row row, const Parameters& p, const float (&tops)[TOPS_A_LANE], int position) {
  Shared& shared = row.shared;
  Best best = {NEGATIVE_INFINITY, 0x7fffffff};
#pragma unroll
  for (int i = 0; i < TOPS_A_LANE; i++) take(best, tops[i], 0);
  best = warp_best(best);
  row.largest = best.value + 0.0f;
  row.temperature = 1.0f, row.steepness = 1.4426950408889634f;
  u32 floor = p.scored <= TOPS ? bound_of(tops, p.scored) : 0;
  u64 sums[PIVOTS] = {};
  each(row, [&](u32 bits, int) { sums[0] += (u64)(power_of_two((of_ordered(bits) - row.largest) * row.steepness) * 1099511627776.0f); });
  sum_up(row, sums);
  // The likeliest tokens, as a list of some more.
  const u32 high = ordered_bits(row.largest) + 1;
  int count = list(row, floor, high, false);
  if (count > LIST) {
    // So many are equal to the last of them: those above it, and the first of the equal ones.
    floor = threshold<false>(row, p.scored, floor);
    cluster_barrier();
    if (threadIdx.x == 0) shared.found = 0;
    block_barrier();
    count = list(row, floor + 1, high, false);
    cluster_barrier();
    for (u32 next = 0; count < (int)p.scored; count++) {
      const u32 token = first_with(row, floor, next);
      if (threadIdx.x == 0) shared.merged[count] = (u64)floor << 32 | token;
      next = token + 1;
    }
    block_barrier();
  }
  if (row.rank == 0 && position >= 0) {
    Scores& scores = scores_at(p, position);
    if (threadIdx.x == 0) scores.sum = sums[0], scores.largest = row.largest, scores.count = p.scored;
    const u64 entry = threadIdx.x < count ? shared.merged[threadIdx.x] : 0;
    u32 rank = 0;
#pragma unroll 4
    for (int j = 0; j < count; j++) {
      const u64 other = shared.merged[j];
      if (bits_in(other) > bits_in(entry) || (bits_in(other) == bits_in(entry) && (u32)other < (u32)entry)) rank++;
    }
    if (threadIdx.x < count && rank < p.scored) scores.top[rank].token = (u32)entry, scores.top[rank].logit = of_ordered(bits_in(entry));
  }
  cluster_barrier();
}

// Gives the first block the logit of the chosen token, as it was before it was changed.
DEVICE void give_chosen(const Row& row, const Parameters& p, int token) {
  if (row.rank == 0 && threadIdx.x == 0) row.shared.given = token;
  cluster_barrier();
  const int chosen = peer(&row.shared.given, 0), at = chosen - row.begin;
  if (at >= 0 && at < 128 * ROUNDS && at / 4 % 32 == threadIdx.x % 32) give(&row.shared.chosen, p.marks != nullptr ? p.raw[chosen] : row.logits[chosen], 0);
  cluster_barrier();
}
