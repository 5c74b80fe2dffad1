// Products of half precision.
typedef f16 Operand;
constexpr bool IS_F16 = true;
constexpr int X_PARTS = 1;                 // operands of an fp32 x
constexpr float X_UNIT = 1.0f / F16_UNIT;  // an operand is this much of its value
DEVICE void mma(float (&d)[4], const Vec4& a, u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
DEVICE float low_operand(u32 pair) { return f16_low(pair); }
DEVICE float high_operand(u32 pair) { return f16_high(pair); }
DEVICE u32 pack_operands(float low, float high) { return pack_f16(low, high); }
