// The partial sums of the WARPS of a block: 16 rows of a row tile times COLUMNS columns, of which as many as there are rows of x, up to eight, are one of them each. The strides from column
// to column and from warp to warp keep lanes that write or read together in different banks.
constexpr int COLUMN_STRIDE = 20;
constexpr int WARP_STRIDE = (COLUMNS * COLUMN_STRIDE + 32 / WARPS - 1) / (64 / WARPS) * (64 / WARPS) + 32 / WARPS;

// Columns repeat every COLUMNS: the first COLUMNS of the eight are stored.
DEVICE void leave_partial(float (&partial)[WARPS][WARP_STRIDE], const float (&sum)[2][4], int warp, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int column = 2 * (lane % 4) + i;
    if (column < COLUMNS) {
      float* at = &partial[warp][column * COLUMN_STRIDE + lane / 4];
      at[0] = sum[0][i] + sum[1][i];
      at[8] = sum[0][i + 2] + sum[1][i + 2];
    }
  }
}

// Row lane % 16 of the row tile for row b of x, by a whole warp: each half of it adds up half of the warps.
DEVICE float total_of(const float (&partial)[WARPS][WARP_STRIDE], int b, int lane) {
  float y = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS / 2; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c += BATCH < 8 ? BATCH : 8) y += partial[lane / 16 * (WARPS / 2) + i][(b + c) * COLUMN_STRIDE + lane % 16];
  return y + shuffle_xor(y, 16);
}
