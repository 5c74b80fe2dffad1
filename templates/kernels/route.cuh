// Which experts a row goes to, from its logits. A warp routes a row: each of its lanes holds every 32nd logit.
constexpr int EXPERTS = {{ route.experts }};
constexpr int TOP_K = {{ route.top_k }};  // experts per row
constexpr int SOFTMAX = 0, SIGMOID = 1;
constexpr int SCORING = {{ route.scoring_code() }};       // turns logits into shares
constexpr bool BIASED = {{ route.biased }};               // a bias is added to the score for the choice only
constexpr bool NORMALISE = {{ route.normalise }};         // the shares of the chosen are divided by their sum
constexpr float SHARE_SCALE = {{ route.share_scale() }};  // multiplies the shares
constexpr int WORDS = (EXPERTS + 31) / 32;                // logits per lane, and words of a set of experts
static_assert(TOP_K >= 1 && TOP_K <= EXPERTS && WORDS <= 32, "a lane has a bit for each of its logits");

// An integer that is ordered as the logits are, NaNs at the ends; and back.
DEVICE int order_of(float logit) {
  const int bits = (int)bits_of(logit);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
DEVICE float logit_of(int order) { return float_of((u32)(order ^ (order >> 31 & 0x7fffffff))); }
constexpr int LEAST = (int)0x80000000u;  // of them

DEVICE void swap(int& a, int& b) {
  const int other = a;
  a = b, b = other;
}

// EARLY: before the wait. Of a bias, too.
template <bool EARLY>
DEVICE void load_logits(float (&logit)[WORDS], const float* logits, int lane) {
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    const int e = 32 * w + lane;
    logit[w] = e >= EXPERTS ? 0.0f : EARLY ? load_settled(logits + e) : logits[e];
  }
}

// What the choice compares where there is a bias: the softmax or sigmoid of each logit, plus its bias. `top` is the largest logit. Each kernel that chooses
// computes it for itself, and all have to choose alike.
DEVICE void rank(float (&ranks)[WORDS], const float (&logit)[WORDS], const float (&bias)[WORDS], float& top, int lane) {
  float whole = 0.0f;
  int largest = LEAST;
#pragma unroll
  for (int w = 0; w < WORDS; w++)
    if (32 * w + lane < EXPERTS && order_of(logit[w]) > largest) largest = order_of(logit[w]);
  top = logit_of(warp_max(largest));
  if (SCORING == SOFTMAX) {
#pragma unroll
    for (int w = 0; w < WORDS; w++)
      if (32 * w + lane < EXPERTS) whole = plain_sum(whole, expf(logit[w] - top));
    whole = warp_sum(whole);
  }
#pragma unroll
  for (int w = 0; w < WORDS; w++) ranks[w] = plain_sum(SCORING == SOFTMAX ? expf(logit[w] - top) / whole : 1.0f / plain_sum(1.0f, expf(-logit[w])), bias[w]);
}
{%- if route.groups.is_some() %}

constexpr int GROUPS = {{ route.group_count() }};  // of consecutive experts
constexpr int KEPT = {{ route.kept_groups() }};    // groups that are chosen from
constexpr int GROUP_SIZE = EXPERTS / GROUPS;
constexpr int BEST = BIASED ? 2 : 1;  // experts of a group whose sum tells how good it is
static_assert(GROUPS <= 32 && GROUPS * GROUP_SIZE == EXPERTS && GROUP_SIZE >= BEST, "a lane has a group");

// Bit g: group g is one of the KEPT, the first of equal ones first.
DEVICE u32 best_groups(const float (&value)[WORDS], int lane) {
  float own = 0.0f;
#pragma unroll 1
  for (int g = 0; g < GROUPS; g++) {
    float score = 0.0f;
    int taken = EXPERTS;
#pragma unroll
    for (int b = 0; b < BEST; b++) {
      int largest = LEAST, first = EXPERTS;
      const auto counts = [&](int e) { return e < EXPERTS && e / GROUP_SIZE == g && e != taken; };
#pragma unroll
      for (int w = 0; w < WORDS; w++)
        if (counts(32 * w + lane) && order_of(value[w]) > largest) largest = order_of(value[w]), first = 32 * w + lane;
      const int best = warp_max(largest);
      taken = warp_min(largest == best ? first : EXPERTS);
      score = plain_sum(score, logit_of(best));
    }
    if (lane == g) own = score;
  }
  int order = lane < GROUPS ? order_of(own) : LEAST;
  u32 kept = 0;
#pragma unroll 1
  for (int k = 0; k < KEPT; k++) {
    const int best = warp_max(order);
    const int first = warp_min(order == best && lane < GROUPS && !(kept >> lane & 1) ? lane : 31);
    kept |= 1u << first;
    if (lane == first) order = LEAST;
  }
  return kept;
}
{%- endif %}

// Bit w: expert 32 w + lane is one of the TOP_K with the largest logits, or ranks where a bias counts, the first of equal ones first. `top` is
// the largest logit. found(slot, expert): called for each in that order by the whole warp, as soon as it is known.
template <typename Found>
DEVICE u32 choose(const float (&logit)[WORDS], const float (&bias)[WORDS], float& top, int lane, Found found) {
  int order[WORDS], which[WORDS];  // the lane's, in falling order, and their bits
  float ranks[WORDS];
  if (BIASED) rank(ranks, logit, bias, top, lane);
  {%- if route.groups.is_some() %}
  float scores[WORDS];
#pragma unroll
  for (int w = 0; w < WORDS; w++) scores[w] = BIASED ? ranks[w] : logit[w];
  const u32 groups = best_groups(scores, lane);
{%- endif %}
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    order[w] = 32 * w + lane < EXPERTS ? order_of(BIASED ? ranks[w] : logit[w]) : LEAST;
    {%- if route.groups.is_some() %}
    if (!(groups >> ((32 * w + lane) / GROUP_SIZE % 32) & 1)) order[w] = LEAST;
    {%- endif %}
    which[w] = w;
#pragma unroll
    for (int i = w; i > 0; i--)
      if (order[i] > order[i - 1]) swap(order[i], order[i - 1]), swap(which[i], which[i - 1]);
  }
  u32 chosen = 0;
#pragma unroll 1
  for (int slot = 0; slot < TOP_K; slot++) {
    const int largest = warp_max(order[0]);
    bool mine = order[0] == largest;
    const u32 lanes = ballot(mine);
    const int own = 32 * which[0] + lane;
    int expert = shuffle_from(own, 31 - leading_zeros(lanes));
    if (lanes & (lanes - 1)) {
      expert = warp_min(mine ? own : 32 * WORDS);
      mine = own == expert;
    }
    found(slot, expert);
    if (!BIASED && slot == 0) top = logit_of(largest);
    if (mine) {
      chosen |= 1u << which[0];
#pragma unroll
      for (int w = 1; w < WORDS; w++) order[w - 1] = order[w], which[w - 1] = which[w];
      order[WORDS - 1] = LEAST, which[WORDS - 1] = WORDS;
    }
  }
  return chosen;
}

DEVICE u32 choose(const float (&logit)[WORDS], const float (&bias)[WORDS], float& top, int lane) {
  return choose(logit, bias, top, lane, [](int, int) {});
}

// The lane's shares of the row: zero for an expert that is not chosen.
DEVICE void shares_of(float (&share)[WORDS], const float (&logit)[WORDS], u32 chosen, float top, int lane) {
  float whole = 0.0f;
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    share[w] = SCORING == SOFTMAX ? expf(logit[w] - top) : 1.0f / (1.0f + expf(-logit[w]));
    if (NORMALISE ? chosen >> w & 1 : 32 * w + lane < EXPERTS) whole += share[w];
  }
  const float scale = NORMALISE || SCORING == SOFTMAX ? SHARE_SCALE / warp_sum(whole) : SHARE_SCALE;
#pragma unroll
  for (int w = 0; w < WORDS; w++) share[w] = chosen >> w & 1 ? share[w] * scale : 0.0f;
}
{%- if route.scaled %}
// And each times the factor of its expert.
DEVICE void scale_shares(float (&share)[WORDS], const float* expert_scale, int lane) {
#pragma unroll
  for (int w = 0; w < WORDS; w++)
    if (32 * w + lane < EXPERTS) share[w] *= load_settled(expert_scale + 32 * w + lane);
}
{%- endif %}

// The set that lanes hold bits of, a word at a time: the same for the whole warp.
DEVICE u32 word_of(u32 chosen, int w) { return ballot(chosen >> w & 1); }
