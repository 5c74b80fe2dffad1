{% include "device.cuh" %}
// {{ self.name() }}: per channel the sum of the last TAPS inputs by the channel's weights. The last TAPS - 1 inputs of each sequence are kept.
constexpr int CHANNELS = {{ channels }}, TAPS = {{ taps }};
constexpr bool PROMPT = {{ prompt }};      // rows follow each other in one sequence, idle ones first; otherwise each is of another one
constexpr int WIDTH = {{ self.width() }};  // channels per block
constexpr int LANES = {{ self.lanes() }};  // rows that a block computes at a time
constexpr int KEPT = TAPS - 1;

// x, out fp32 [rows][CHANNELS]; weight [CHANNELS][TAPS], bias [CHANNELS] or null; inputs fp32 [sequence][KEPT][CHANNELS], the oldest first; positions,
// sequences [rows]. A row at position -1 is idle. Grid: CHANNELS / WIDTH, rounded up; 1 of PROMPT, or rows.
KERNEL void __launch_bounds__(WIDTH * LANES) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  const int channel = blockIdx.x * WIDTH + threadIdx.x % WIDTH, lane = threadIdx.x / WIDTH;
  const int c = channel < CHANNELS ? channel : CHANNELS - 1;
  const auto early = [](const float* p) { return float_of((u32)load_early((const int*)p)); };
  float taps[TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; i++) taps[i] = early(weight + c * TAPS + i);
  const float start = bias ? early(bias + c) : 0.0f;
  wait_for_dependencies();
  const int begin = PROMPT ? 0 : blockIdx.y, end = PROMPT ? (int)rows : begin + 1;
  float* const kept = inputs + (u64)sequences[begin] * KEPT * CHANNELS + c;
  const auto is_here = [&](int row) { return row >= begin && positions[row] >= 0; };
  const auto input = [&](int row) { return x[(u64)row * CHANNELS + c]; };

  for (int row = begin + lane; row < end && channel < CHANNELS; row += LANES) {
    const int position = positions[row];
    float sum = 0.0f;
    int before = 0;  // inputs of the sequence that no row of this step has
    if (position >= 0) {
      sum = start;
#pragma unroll
      for (int back = 0; back < TAPS; back++) {
        if (back > position) break;
        if (!is_here(row - back)) before++;
        sum += taps[TAPS - 1 - back] * (before > 0 ? kept[(KEPT - before) * CHANNELS] : input(row - back));
      }
    }
    out[(u64)row * CHANNELS + c] = sum;
  }

  // What is kept moves up by as many inputs as are new.
  if (PROMPT) block_barrier();
  if (lane > 0 || channel >= CHANNELS) return;
  int fresh = 0;
#pragma unroll
  for (int back = 0; back < KEPT; back++) fresh += is_here(end - 1 - back);
#pragma unroll
  for (int i = 0; i < KEPT; i++) {
    kept[i * CHANNELS] = i < KEPT - fresh ? kept[(i + fresh) * CHANNELS] : input(end - KEPT + i);
  }
}
