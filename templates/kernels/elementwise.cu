{% include "device.cuh" %}
// {{ self.name() }}: one expression of one or two operands, element by element.
constexpr int ADD = 0, MUL = 1, SCALE = 2, SOFTCAP = 3, ACTIVATE = 4, CLAMP = 5, GLU = 6, GLU_ROW = 7, SUM = 8;
constexpr int KIND = {{ kind.code() }};
constexpr int ACTIVATION = {{ kind.activation() }};
constexpr float FACTOR = {{ kind.factor() }};  // of SCALE, the cap of SOFTCAP, the limit of CLAMP
constexpr int COUNT = {{ kind.count() }};      // rows of a that SUM adds up
constexpr int SIZE = {{ size }};               // values per row
constexpr int THREADS = {{ self.threads() }};
typedef {{ out }} Out;
{%- if kind.is_applied() %}
constexpr int SIGMOID = 9, SOFTPLUS = 10, EXP = 11;
{%- endif %}
{%- if let Some((each, weight)) = kind.spread() %}
constexpr int ADD_EACH = 12, MUL_EACH = 13, GLU_EACH = 14, DECAY = 15;
constexpr int EACH = {{ each }};       // values of a row of a for one of b
constexpr bool WEIGHT = {{ weight }};  // b is the same for all rows
{%- endif %}
{% if out.is_tiled() %}{% include "activations.cuh" %}
{%- endif %}
{%- if out.is_tiled() %}
// Results are in the order of activations.cuh.
{%- endif %}
// a, b (null for one operand, [rows] of GLU_ROW) fp32 [rows][SIZE], out [rows][SIZE]; a of SUM [rows][COUNT][SIZE], b or null. Grid: rows.
KERNEL void __launch_bounds__(THREADS) {{ self.name() }}({{ self.signature() }}) {
  launch_dependents();
  wait_for_dependencies();
  for (int i = threadIdx.x; i < SIZE; i += THREADS) {
    const u64 at = (u64)blockIdx.x * SIZE + i;
    float y = a[KIND == SUM ? (u64)blockIdx.x * COUNT * SIZE + i : at];
    if (KIND == ADD) y += b[at];
    for (int part = 1; KIND == SUM && part < COUNT; part++) y += a[((u64)blockIdx.x * COUNT + part) * SIZE + i];
    if (KIND == SUM && b) y += b[at];
    if (KIND == MUL) y *= b[at];
    if (KIND == SCALE) y *= FACTOR;
    if (KIND == SOFTCAP) y = FACTOR * tanhf(y / FACTOR);
    if (KIND == CLAMP) y = y > FACTOR ? FACTOR : y < -FACTOR ? -FACTOR : y;
    if (KIND == GLU) y /= 1.0f + expf(-b[at]);
    if (KIND == GLU_ROW) y /= 1.0f + expf(-b[blockIdx.x]);
    if (KIND == ACTIVATE) y = activate<ACTIVATION>(y);
    {%- if kind.is_applied() %}
    const float power = expf(KIND == SOFTPLUS ? y > 0.0f ? -y : y : KIND == SIGMOID ? -y : y), whole = 1.0f + power;
    if (KIND == SIGMOID) y = 1.0f / whole;
    // What rounds away in 1 + power is in the ratio.
    if (KIND == SOFTPLUS) y = (y > 0.0f ? y : 0.0f) + (whole > 1.0f ? logf(whole) * (power / (whole - 1.0f)) : power);
    if (KIND == EXP) y = power;
    {%- endif %}
    {%- if kind.spread().is_some() %}
    const float other = b[(WEIGHT ? 0 : (u64)blockIdx.x * (SIZE / EACH)) + i / EACH];
    if (KIND == ADD_EACH) y += other;
    if (KIND == MUL_EACH) y *= other;
    if (KIND == GLU_EACH) y /= 1.0f + expf(-other);
    if (KIND == DECAY) y *= -expf(other);
    {%- endif %}
    store(out + {% if out.is_tiled() %}activation_at(blockIdx.x, i, gridDim.x){% else %}at{% endif %}, y);
  }
}
