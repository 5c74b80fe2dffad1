{% include "device.cuh" %}
// {{ self.name() }}: y = W x for many rows of x by wgmma, from the same packed weights as a matvec. Two warpgroups multiply, the warps of a third keep a ring of
// stages full. A stage is 64 columns of the block's row tiles and of its rows of x.
{% include "tiles.cuh" %}
{% include "activations.cuh" %}
{% let registers = self.registers() %}{% include "wgmma.cuh" %}
constexpr int PIECES = {{ pieces }};    // 64 rows of W per warpgroup
constexpr int COLUMNS = {{ columns }};  // rows of x per block
constexpr int STAGES = {{ self.stages() }};
constexpr int SPLIT = {{ split }};  // blocks of a cluster that share the columns of W, and add in the order of their ranks
constexpr int ACTIVATION = {{ self.activation_code() }};
constexpr bool TILED = {{ tiles.out.is_tiled() }};  // results are in the order of activations.cuh
constexpr int BLOCK_TILES = 8 * PIECES;             // row tiles per block
constexpr int BLOCK_RESULTS = BLOCK_TILES * TILE_ROWS;
constexpr int GROUPS = (TILES + BLOCK_TILES - 1) / BLOCK_TILES;
constexpr int ROUNDS = K / 64 / SPLIT;             // stages of a job
constexpr int TILE_BYTES = 2048, ROW_BYTES = 128;  // of a stage
constexpr int WEIGHT_BYTES = BLOCK_TILES * TILE_BYTES, STAGE_BYTES = WEIGHT_BYTES + COLUMNS * ROW_BYTES;
constexpr int UNITS = BLOCK_TILES * COLUMNS / 8;  // results of a row tile and eight rows of x: four per lane
constexpr int WORKERS = 256;
constexpr int COPIERS = 4;                                // warps that start copies: a single one cannot start them as fast as memory answers
constexpr int BATCH = COLUMNS / 8 < 8 ? COLUMNS / 8 : 8;  // units whose residual is loaded together
constexpr int RUN = UNITS / SPLIT < WORKERS / 32 ? 1 : UNITS / SPLIT / (WORKERS / 32);  // of units, which a warp finishes after a split
constexpr int RUN_BATCH = RUN < 4 ? RUN : 4;
constexpr bool STAGED = TILED && SPLIT == 1;  // results leave by bulk copies
static_assert(STEP == 32, "a lane has a fragment of 16 columns in a 16-byte word");
static_assert(K % (64 * SPLIT) == 0, "a stage is 64 columns");
static_assert(SPLIT == 1 || COLUMNS / 8 % RUN == 0, "a run is of one row tile");
static_assert(SPLIT == 1 || UNITS * 512 <= STAGES * STAGE_BYTES, "sums of a block fit where its stages were");
static_assert(!TILED || (OUTPUTS == 1 && ROWS[0] % 64 == 0), "results in the order of activations are 64 columns and 64 columns");

DEVICE int least(int a, int b) { return a < b ? a : b; }

// Where two rows of a row tile go: bias, rows of x that there are, the distance to the next one's, the first one's place.
struct ResultRows {
  int tile, count[2], stride[2];
  float bias[2];
  u64 from[2];
  Out* out[2];
};

// What a block works on: row tiles from `tile` on and rows of x from `row` on, `count` of them.
struct Job {
  int tile, row, count;
};
DEVICE Job job_of(int unit, int rows) {
  const int row_blocks = (rows + COLUMNS - 1) / COLUMNS, row = unit % row_blocks * COLUMNS;
  return {unit / row_blocks * BLOCK_TILES, row, least(COLUMNS, rows - row)};
}

// weights: packed tiles. x: half precision in the order of activations.cuh, [rows][K]. bias in packed row order, residual fp32
// [rows][ROWS]: null where absent. Grid: as many clusters as there are jobs, which are row tiles / BLOCK_TILES times rows / COLUMNS, both rounded
// up; or fewer without a split, which take them in turn.
KERNEL void {% if split > 1 %}CLUSTER_OF(SPLIT){% endif %} __launch_bounds__(WORKERS + 32 * COPIERS, 1) {{ self.name() }}({{ self.signature() }}) {
  SHARED u64 full[STAGES], empty[STAGES];
  char* const stages = shared_memory() + (0u - shared_offset(shared_memory())) % 1024;
  u16* const staged = (u16*)(stages + STAGES * STAGE_BYTES);  // STAGED: [BLOCK_RESULTS / 64][COLUMNS][64]
  const int rows = (int)row_count, jobs = GROUPS * ((rows + COLUMNS - 1) / COLUMNS);
  const int rank = SPLIT > 1 ? (int)blockIdx.x % SPLIT : 0, first_step = ROUNDS * rank;
  const int first_job = blockIdx.x / SPLIT, turn = gridDim.x / SPLIT;
  launch_dependents();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) barrier_begin(&full[s], 1), barrier_begin(&empty[s], WORKERS / 32);
    barriers_begun();
  }
  block_barrier();

  if (threadIdx.x >= WORKERS) {
    // 1 Stages in flight: those of weights before the wait. A lane copies a row tile, and the lanes of four warps at once.
    give_registers();
    const int lane = threadIdx.x % 32, copier = (threadIdx.x - WORKERS) / 32;
    const auto copy_weights = [&](const Job& job, int step, int slot) {
      if (copier == 0 && lane == 0) barrier_expect(&full[slot], WEIGHT_BYTES + job.count * ROW_BYTES);
      const int tile = lane * COPIERS + copier;
      if (tile < BLOCK_TILES)
        copy_bulk((Vec4*)(stages + slot * STAGE_BYTES + tile * TILE_BYTES),
                  tile_pointer(weights, least(job.tile + tile, TILES - 1), 64 / STEP * (first_step + step)), TILE_BYTES, &full[slot]);
    };
    const auto copy_rows = [&](const Job& job, int step, int slot) {
      if (copier == COPIERS - 1 && lane == 0)
        copy_bulk((Vec4*)(stages + slot * STAGE_BYTES + WEIGHT_BYTES), (const Vec4*)(x + ((u64)(first_step + step) * rows + job.row) * 64),
                  job.count * ROW_BYTES, &full[slot]);
    };
    constexpr int early = STAGES < ROUNDS ? STAGES : ROUNDS;
    Job job = job_of(first_job, rows);
#pragma unroll 1
    for (int s = 0; s < early; s++) copy_weights(job, s, s);
    wait_for_dependencies();
#pragma unroll 1
    for (int s = 0; s < early; s++) copy_rows(job, s, s);
    int slot = early % STAGES, phase = early == STAGES ? 0 : 1;
#pragma unroll 1
    for (int at = first_job; at < jobs; at += turn) {
      job = job_of(at, rows);
#pragma unroll 1
      for (int step = at == first_job ? early : 0; step < ROUNDS; step++) {
        barrier_wait(&empty[slot], phase);
        copy_weights(job, step, slot);
        copy_rows(job, step, slot);
        if (++slot == STAGES) slot = 0, phase ^= 1;
      }
    }
    warp_barrier();
    if (SPLIT > 1) {
      cluster_arrive(), cluster_wait();
      cluster_arrive(), cluster_wait();
    }
    return;
  }

  take_registers();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  int slot = 0, phase = 0;
  wait_for_dependencies();
  for (int at = first_job; at < jobs; at += turn) {
    const Job job = job_of(at, rows);
    // 2 Products. Warp w of a warpgroup has row tile 4 r + w of the warpgroup's. While a stage is multiplied, the weights of the next one become fragments.
    float sum[PIECES][COLUMNS / 2] = {};
    Vec4 fragments[2][PIECES][4];
    const auto tile_of = [&](int piece) { return (warp / 4 * PIECES + piece) * 4 + warp % 4; };
    const auto load_fragments = [&](Vec4(&to)[PIECES][4]) {
      const char* const stage = stages + slot * STAGE_BYTES;
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int k = 0; k < 4; k++) to[piece][k] = halves_of(((const Vec4*)(stage + tile_of(piece) * TILE_BYTES))[32 * k + lane]);
    };
    int before = -1;
    const auto multiply_stage = [&](const Vec4(&now)[PIECES][4], Vec4(&next)[PIECES][4], bool more) {
      const char* const stage = stages + slot * STAGE_BYTES + WEIGHT_BYTES;
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) multiply(sum[piece], now[piece][k], stage + 32 * k);
      products_end();
      await_products<1>();
      // The stage before this one is done with, by all lanes.
      warp_barrier();
      if (before >= 0 && lane == 0) barrier_arrive(&empty[before]);
      before = slot;
      if (++slot == STAGES) slot = 0, phase ^= 1;
      if (more) {
        barrier_wait(&full[slot], phase);
        load_fragments(next);
      }
    };
    barrier_wait(&full[slot], phase);
    load_fragments(fragments[0]);
    int step = 0;
    for (; step + 1 < ROUNDS; step += 2) {
      multiply_stage(fragments[0], fragments[1], true);
      multiply_stage(fragments[1], fragments[0], step + 2 < ROUNDS);
    }
    if (ROUNDS % 2 == 1) multiply_stage(fragments[0], fragments[1], false);
    await_products<0>();
    warp_barrier();
    if (lane == 0) barrier_arrive(&empty[before]);

    // 3 Results: four of a lane in a unit, which are rows group and group + 8 of a row tile for rows 2 quad and 2 quad + 1 of eight of x.
    const auto result_rows = [&](int tile) {
      ResultRows r;
      r.tile = tile;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int at = least(job.tile + tile, TILES - 1) * 16 + group + 8 * h;
        const Place place = place_of(at / 16, group + 8 * h);
        r.bias[h] = bias ? bias[at] : 0.0f;
        r.stride[h] = ROWS[place.output];
        r.count[h] = job.tile + tile < TILES && (!GATED || h == 0) && place.row < ROWS[place.output] ? job.count : 0;
        r.from[h] = (u64)(job.row + 2 * quad) * ROWS[place.output] + place.row;
        r.out[h] = (place.output == 0 ? out0 : place.output == 1 ? out1 : out2) + r.from[h];
      }
      return r;
    };
    const auto load_residual = [&](float (&more)[4], const ResultRows& r, int column) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i / 2, odd = i % 2;
        more[i] = residual && column + 2 * quad + odd < r.count[h] ? residual[r.from[h] + (u64)(column + odd) * r.stride[h]] : 0.0f;
      }
    };
    const auto finish = [&](const ResultRows& r, int column, const float (&v)[4], const float (&more)[4]) {
#pragma unroll
      for (int h = 0; h < (GATED ? 1 : 2); h++) {
        float y[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          y[i] =
              TILED ? activate_rounded<ACTIVATION>(v[2 * h + i] * HALVES_FACTOR + r.bias[h]) : activate<ACTIVATION>(v[2 * h + i] * HALVES_FACTOR + r.bias[h]);
          if (GATED) y[i] *= v[2 + i] * HALVES_FACTOR + r.bias[1];
          y[i] += more[2 * h + i];
          if (!TILED && column + 2 * quad + i < r.count[h]) store(r.out[h] + (u64)(column + i) * r.stride[h], y[i]);
        }
        if (TILED) {
          // Two lanes with neighbouring columns of the result make two words: the lower one that of the first row, the other one that of the second.
          const float given = shuffle_xor(group % 2 == 0 ? y[1] : y[0], 4);
          const u32 both = group % 2 == 0 ? pack_two(Out(), y[0], given) : pack_two(Out(), given, y[1]);
          const int row = column + 2 * quad + group % 2, even = TILE_ROWS * r.tile + 8 * h + group / 2 * 2;
          if (STAGED) *(u32*)(staged + activation_at(row, even, COLUMNS)) = both;
          else if (row < r.count[h]) *(u32*)((u16*)out0 + activation_at(job.row + row, TILE_ROWS * job.tile + even, rows)) = both;
        }
      }
    };
    if (STAGED) {
      if (threadIdx.x == 0) await_stores_read();
      group_barrier(WORKERS);
    }
    if (SPLIT == 1) {
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) {
        const ResultRows r = result_rows(tile_of(piece));
#pragma unroll
        for (int first = 0; first < COLUMNS / 8; first += BATCH) {
          float more[BATCH][4];
#pragma unroll
          for (int c = 0; c < BATCH; c++) load_residual(more[c], r, 8 * (first + c));
#pragma unroll
          for (int c = 0; c < BATCH; c++) {
            const int at = 4 * (first + c);
            const float v[4] = {sum[piece][at], sum[piece][at + 1], sum[piece][at + 2], sum[piece][at + 3]};
            finish(r, 8 * (first + c), v, more[c]);
          }
        }
      }
    } else {
      // Each block has the sums of its columns of W where its stages were, and finishes a share of the units.
      Vec4* const sums = (Vec4*)stages;
      group_barrier(WORKERS);
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int c = 0; c < COLUMNS / 8; c++)
          sums[(tile_of(piece) * (COLUMNS / 8) + c) * 32 + lane] = {bits_of(sum[piece][4 * c]), bits_of(sum[piece][4 * c + 1]), bits_of(sum[piece][4 * c + 2]),
                                                                    bits_of(sum[piece][4 * c + 3])};
      cluster_arrive(), cluster_wait();
      const int begin = (warp * SPLIT + rank) * RUN;
      if (begin < UNITS) {
        const ResultRows r = result_rows(begin / (COLUMNS / 8));
#pragma unroll 1
        for (int unit = begin; unit < begin + RUN; unit += RUN_BATCH) {
          const int column = unit % (COLUMNS / 8) * 8;
          float more[RUN_BATCH][4], v[RUN_BATCH][4] = {};
#pragma unroll
          for (int c = 0; c < RUN_BATCH; c++) load_residual(more[c], r, column + 8 * c);
#pragma unroll
          for (int from = 0; from < SPLIT; from++)
#pragma unroll
            for (int c = 0; c < RUN_BATCH; c++) {
              const Vec4 four = load_peer(sums + (unit + c) * 32 + lane, from);
              v[c][0] += float_of(four.x), v[c][1] += float_of(four.y), v[c][2] += float_of(four.z), v[c][3] += float_of(four.w);
            }
#pragma unroll
          for (int c = 0; c < RUN_BATCH; c++) finish(r, column + 8 * c, v[c], more[c]);
        }
      }
    }
    if (STAGED) {
      shared_before_copies();
      group_barrier(WORKERS);
      if (threadIdx.x == 0) {
        for (int c = 0; c < BLOCK_RESULTS / 64; c++) {
          const int column = TILE_ROWS * job.tile + 64 * c;
          if (column < ROWS[0]) store_bulk((u16*)out0 + activation_at(job.row, column, rows), staged + c * COLUMNS * 64, job.count * ROW_BYTES);
        }
        stores_end();
      }
    }
  }
  if (STAGED && threadIdx.x == 0) await_stores();
  if (SPLIT > 1) cluster_arrive(), cluster_wait();
}
