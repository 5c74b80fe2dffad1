// What is made of a gate and the other product of an expert: f(SLOPE gate) / SLOPE (up + OFFSET), the gate at most LIMIT, the other within it either way.
constexpr bool LIMITED = {{ gating.limit.is_some() }};
constexpr float LIMIT = {{ gating.bound() }};
constexpr float SLOPE = {{ gating.steepness() }};
constexpr float OFFSET = {{ gating.addend() }};

DEVICE float gated(float gate, float up) {
  if (LIMITED) {
    gate = gate > LIMIT ? LIMIT : gate;
    up = up > LIMIT ? LIMIT : up < -LIMIT ? -LIMIT : up;
  }
  return activate<ACTIVATION>(SLOPE * gate) / SLOPE * (up + OFFSET);
}
