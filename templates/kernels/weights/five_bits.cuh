// Codes of 5 bits: the words w0 and w1 of a pair as multiply_nibbles has them, and a word of fifth bits for two pairs. It has, in each half, eight bits of a pair: those of the
// registers of its first fragment, then of its second; one shift brings those of a register in both fragments to where their codes go on.
DEVICE u32 shifted(u32 w, int left) { return left > 0 ? w << left : w >> -left; }
DEVICE Vec4 fragment_of_five_bits(u32 w0, u32 w1, u32 fifths, int pair, int fragment) {
  const u32 low = fragment == 0 ? 0x000f000f : 0x00f000f0, fifth = fragment == 0 ? 0x00100010 : 0x01000100;
  const int left = 4 - 8 * (pair % 2);
  return {(w0 & low) | (shifted(fifths, left) & fifth), (w0 >> 8 & low) | (shifted(fifths, left - 1) & fifth), (w1 & low) | (shifted(fifths, left - 2) & fifth),
          (w1 >> 8 & low) | (shifted(fifths, left - 3) & fifth)};
}
// The fifth bit of a code in 64 columns.
DEVICE u32 fifth_at(const u32* fifths, int row, int column) {
  const int lane = row % 8 * 4 + column % 32 / 8, number = row / 8 + column % 4 / 2 * 2;
  return fifths[lane] >> (16 * (column % 2) + 8 * (column / 32) + 4 * (column % 8 / 4) + number) & 1;
}
