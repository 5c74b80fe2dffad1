// How many blocks share the keys of one head, from the live length. The attention kernel and the projection that combines agree on it.
constexpr int SPLITS = {{ splits.max }};       // blocks per key head at most
constexpr int SPLIT_KEYS = {{ splits.keys }};  // keys per block before one more block is used
constexpr int WINDOW = {{ splits.window }};    // keys that a row sees; 0: all
constexpr int MERGED = {{ splits.merged }};    // blocks of a cluster, which merge what they have
constexpr int LEFT = SPLITS / MERGED;          // results per key head that are left to be combined, at most

DEVICE int first_key(int position) { return WINDOW > 0 && position + 1 > WINDOW ? position + 1 - WINDOW : 0; }
DEVICE int active_splits(int position) {
  int splits = (position + 1 - first_key(position) + SPLIT_KEYS - 1) / SPLIT_KEYS;
  return splits < SPLITS ? splits : SPLITS;
}
DEVICE int results_left(int position) { return (active_splits(position) + MERGED - 1) / MERGED; }
