// Eight consecutive values, zeros beyond K. EARLY: of a weight, before the wait.
template <bool EARLY>
DEVICE void load_floats(float (&v)[8], const float* row, int k) {
  if (K % 4 == 0) {
#pragma unroll
    for (int h = 0; h < 8; h += 4) {
      const Vec4* at = (const Vec4*)(row + k + h);
      Vec4 four = {0, 0, 0, 0};
      if (k + h < K) four = EARLY ? load_stream(at) : *at;
      v[h] = float_of(four.x), v[h + 1] = float_of(four.y), v[h + 2] = float_of(four.z), v[h + 3] = float_of(four.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i >= K ? 0.0f : EARLY ? float_of((u32)load_early((const int*)row + k + i)) : row[k + i];
  }
}
DEVICE Vec4 store_eight(u16* at, const float (&v)[8]) {
  return *(Vec4*)at = {pack_operands(v[0], v[1]), pack_operands(v[2], v[3]), pack_operands(v[4], v[5]), pack_operands(v[6], v[7])};
}

// Eight values, in the unit of operands; as a hi/lo split hi at `at`, lo BATCH rows further on.
DEVICE void store_operands(u16* at, const float (&v)[8]) {
  const Vec4 kept = store_eight(at, v);
  if (X_PARTS == 1) return;
  const float left[8] = {v[0] - bf16_low(kept.x), v[1] - bf16_high(kept.x), v[2] - bf16_low(kept.y), v[3] - bf16_high(kept.y),
                         v[4] - bf16_low(kept.z), v[5] - bf16_high(kept.z), v[6] - bf16_low(kept.w), v[7] - bf16_high(kept.w)};
  store_eight(at + BATCH * STAGE_STRIDE, left);
}

// The power of two at or below a normal number, and the inverse of a power of two.
DEVICE float power_below(float value) { return float_of(bits_of(value) & 0x7f800000u); }
DEVICE float inverse_power(float power) { return float_of(0x7f000000u - bits_of(power)); }
