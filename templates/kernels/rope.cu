{% include "device.cuh" %}
// {{ self.name() }}: each head of x turned by its row's position.
{% let rope = self.turns() %}{% include "rope.cuh" %}
constexpr int HEADS = {{ heads }}, HEAD_DIM = {{ head_dim }};
constexpr int THREADS = {{ self.threads() }};

// x, out fp32 [rows][HEADS][HEAD_DIM]; positions [rows]. Grid: rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  const int position = positions[blockIdx.x];
  for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += THREADS) {
    const u64 head = ((u64)blockIdx.x * HEADS + i / HEAD_DIM) * HEAD_DIM;
    const auto turn = [&](int pair, float& cosine, float& sine) { rope_rotation(position, pair, cosine, sine); };
    out[head + i % HEAD_DIM] = roped([&](int j) { return x[head + j]; }, i % HEAD_DIM, turn);
  }
}
