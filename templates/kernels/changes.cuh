// What a sequence's text and its biases change about its logits, and what its newest token changes about that.

// Changes a block's logits, in memory, by the biases and the marks of their tokens.
DEVICE void change(const Parameters& p, float* logits, int begin, int rank) {
  const int first = rank * WARPS * ROUNDS * 128, end = first + WARPS * ROUNDS * 128;
  if (p.scores != nullptr) {
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int at = begin + 128 * round + 4 * (threadIdx.x % 32) + j;
        if (at < VOCABULARY) p.raw[at] = logits[at];
      }
    }
  }
  if (p.biases > 0) {
    block_barrier();
    for (int i = threadIdx.x; i < (int)p.biases; i += THREADS) {
      const int token = (int)p.bias[i].token;
      if (token >= first && token < end) logits[token] = plain_sum(logits[token], p.bias[i].value);
    }
    block_barrier();
  }
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int at = begin + 128 * round + 4 * (threadIdx.x % 32) + j;
      const u32 mark = at < VOCABULARY ? p.marks[at] : 0, count = mark & (IN_PROMPT - 1);
      if (mark == 0) continue;
      float logit = logits[at];
      logit = mark & SUPPRESSED ? NEGATIVE_INFINITY : logit > 0.0f ? logit / p.repetition : logit * p.repetition;
      if (count > 0) logit = plain_sum(plain_sum(logit, -(p.frequency * (float)count)), -p.presence);
      logits[at] = logit;
    }
  }
}

// Counts a chosen token, by the thread that has its logit: no other reads its mark.
DEVICE void note(const Parameters& p, int token, int begin) {
  const int at = token - begin;
  if (at < 0 || at >= 128 * ROUNDS || at / 4 % 32 != threadIdx.x % 32) return;
  if ((p.marks[token] & (IN_PROMPT - 1)) < IN_PROMPT - 1) p.marks[token]++;
}
