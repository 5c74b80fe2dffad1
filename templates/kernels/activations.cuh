// The order of activations that products of many rows read: [columns / 64][row][64], so 64 columns of consecutive rows are contiguous.
// In each 32 columns the 4 by 4 words of two values are transposed, as the columns of packed weights are; then chunk c of a row's eight 16-byte
// chunks lies at c xor (row % 8): the 128-byte swizzle, in which eight rows fall into different banks.
DEVICE u64 activation_at(int row, int column, u64 rows) {
  const int word_row = column / 8 % 4, word = column / 2 % 4, chunk = column / 32 % 2 * 4 + word;
  return ((u64)(column / 64) * rows + row) * 64 + (chunk ^ row % 8) * 8 + word_row * 2 + column % 2;
}
