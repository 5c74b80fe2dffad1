// Rotary position embedding of one head. Needs ROPE_DIM, ROPE_INTERLEAVED, ROPE_MAGNITUDE, and ROPE_FREQUENCIES.
CONSTANT float ROPE_FREQUENCIES[] = { {{ rope.frequencies }} };
constexpr int ROPE_DIM = {{ rope.dim }};                   // values of a head that rotate; 0: none
constexpr bool ROPE_INTERLEAVED = {{ rope.interleaved }};  // pairs (2i, 2i+1), else (i, i + ROPE_DIM/2)
constexpr float ROPE_MAGNITUDE = {{ rope.magnitude }};

// Cosine and sine of `position` times a frequency. The product is rounded to fp32 first, as checkpoints were trained.
DEVICE void rope_rotation(int position, int pair, float& cosine, float& sine) {
  float angle = (float)position * ROPE_FREQUENCIES[pair];
  float turns = rintf(angle * 0.15915494309f);
  float rest = fmaf(-turns, 6.2831854820251465f, angle);
  rest = fmaf(-turns, -1.7484556000744487e-7f, rest);
  cosine = ROPE_MAGNITUDE * cosine_of(rest);
  sine = ROPE_MAGNITUDE * sine_of(rest);
}

// The two elements of a pair.
DEVICE int first_of(int pair) { return ROPE_INTERLEAVED ? 2 * pair : pair; }
DEVICE int second_of(int pair) { return ROPE_INTERLEAVED ? 2 * pair + 1 : pair + ROPE_DIM / 2; }

// Element `i` of the rotated head. `at(i)` reads the head before rotation, `turn(pair, cosine, sine)` gives the rotation of a pair.
template <typename At, typename Turn>
DEVICE float roped(At at, int i, Turn turn) {
  if (i >= ROPE_DIM) return at(i);
  const int half = ROPE_DIM / 2;
  const int pair = ROPE_INTERLEAVED ? i / 2 : i % half;
  const bool second = ROPE_INTERLEAVED ? i % 2 == 1 : i >= half;
  const int partner = ROPE_INTERLEAVED ? i ^ 1 : (second ? i - half : i + half);
  float cosine, sine;
  turn(pair, cosine, sine);
  return second ? at(i) * cosine + at(partner) * sine : at(i) * cosine - at(partner) * sine;
}
