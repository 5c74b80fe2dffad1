// Products of bfloat16: an fp32 x is a hi/lo split.
typedef u16 Operand;
constexpr bool IS_F16 = false;
constexpr int X_PARTS = 2;      // operands of an fp32 x
constexpr float X_UNIT = 1.0f;  // an operand is this much of its value
DEVICE void mma(float (&d)[4], const Vec4& a, u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); }
DEVICE float low_operand(u32 pair) { return bf16_low(pair); }
DEVICE float high_operand(u32 pair) { return bf16_high(pair); }
DEVICE u32 pack_operands(float low, float high) { return pack_bf16(low, high); }
