{% include "device.cuh" %}
// {{ self.name() }}: the values of each head of a, then those of b.
constexpr int HEADS = {{ heads }};
constexpr int FIRST = {{ first }}, SECOND = {{ second }};  // values per head of a and of b
constexpr int THREADS = {{ self.threads() }};

// a fp32 [rows][HEADS][FIRST], b fp32 [rows][HEADS][SECOND], out fp32 [rows][HEADS][FIRST + SECOND]. Grid: rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  const u64 row = blockIdx.x;
  for (int i = threadIdx.x; i < HEADS * (FIRST + SECOND); i += THREADS) {
    const int head = i / (FIRST + SECOND), at = i % (FIRST + SECOND);
    out[row * HEADS * (FIRST + SECOND) + i] = at < FIRST ? a[(row * HEADS + head) * FIRST + at] : b[(row * HEADS + head) * SECOND + at - FIRST];
  }
}
