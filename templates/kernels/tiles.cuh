// A packed weight: row tiles of 16 rows, each a run of steps.
{% include "weights.cuh" %}
constexpr int K = {{ tiles.k }};                                                         // columns
constexpr int STEPS = (K + STEP - 1) / STEP;                                             // of a row tile
constexpr int OUTPUTS = {{ tiles.rows.len() }};                                          // weights packed one after the other, each in its own row tiles
constexpr int ROWS[3] = { {{ tiles.row(0) }}, {{ tiles.row(1) }}, {{ tiles.row(2) }} };  // rows of each
constexpr bool GATED = {{ tiles.gated }};                                                // a row tile is 8 rows of the gate above 8 rows of the other
constexpr int TILE_ROWS = GATED ? 8 : 16;                                                // results per row tile
constexpr int TILES0 = (ROWS[0] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES1 = (ROWS[1] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES2 = (ROWS[2] + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES = TILES0 + TILES1 + TILES2;  // row tiles in all
typedef {{ tiles.out }} Out;                     // storage of the results

DEVICE const Vec4* tile_pointer(const Vec4* weights, int tile, int step) { return weights + ((u64)tile * STEPS + step) * STEP_WORDS; }

// Eight consecutive operands of an activation row, zeros beyond K.
DEVICE Vec4 load_activations(const u16* row, int k) {
  Vec4 v = {0, 0, 0, 0};
  if (K % 8 == 0) {
    if (k < K) v = *(const Vec4*)(row + k);
  } else {
    u32 e[8];
#pragma unroll
    for (int i = 0; i < 8; i++) e[i] = k + i < K ? row[k + i] : 0;
    v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
  }
  return v;
}

// What a lane's activations are multiplied as: the latter four of eight by a sixteenth where their codes count sixteenfold.
constexpr float LATTER = SPREAD ? 1.0f / 16.0f : 1.0f;
DEVICE float latter_of(int column) { return column % 8 < 4 ? 1.0f : LATTER; }
DEVICE Vec4 spread(const Vec4& x) {
  constexpr u32 SIXTEENTHS = 0x2c002c00;
  return SPREAD ? Vec4{x.x, x.y, times_f16(x.z, SIXTEENTHS), times_f16(x.w, SIXTEENTHS)} : x;
}

// A lane's activations of the pair that begins at column k of a row, which reaches to the end of its last step or is padded here.
DEVICE Vec4 load_pair(const u16* row, int k, int quad) {
  if (!NATURAL) return spread(load_activations(row, k + 8 * quad));
  {%- if tiles.weights.is_natural() && tiles.k % tiles.packed().columns != 0 %}
  if (k >= K) return {0, 0, 0, 0};
  {%- endif %}
  const u32* at = (const u32*)(row + k) + quad;
  return {at[0], at[4], at[8], at[12]};
}
// And of one that is staged, with its padding, and spread by then.
DEVICE Vec4 load_staged(const u16* row, int k, int quad) {
  if (!NATURAL) return *(const Vec4*)(row + k + 8 * quad);
  const u32* at = (const u32*)(row + k) + quad;
  return {at[0], at[4], at[8], at[12]};
}

// Where result `row` of a row tile goes: which output, and which of its rows. A row at or beyond ROWS[output] is padding.
struct Place {
  int output, row;
};
DEVICE Place place_of(int tile, int row) {
  if (OUTPUTS > 2 && tile >= TILES0 + TILES1) return {2, (tile - TILES0 - TILES1) * TILE_ROWS + row};
  if (OUTPUTS > 1 && tile >= TILES0) return {1, (tile - TILES0) * TILE_ROWS + row};
  return {0, tile * TILE_ROWS + row};
}
