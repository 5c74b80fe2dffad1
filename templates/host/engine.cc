// Runs one launch of a kernel on the host: one fiber per thread, one block after the other. Lanes of a warp run until each waits for the
// warp, then the exchange happens; warps run until each waits for the block, and blocks of a cluster until each waits for the cluster.
// Whoever is missing by then has diverged, which is an error.
// So is an access outside registered memory, a race or a read of garbage in shared memory, and global memory touched before the wait. Global
// memory that one block reads and another of the launch writes is a race, and what a step writes is not for load_early and load_stream,
// nor for load_settled unless the launch before the last wrote it, or an earlier one, and all threads of the last launched dependents
// after their wait.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
struct alignas(16) Vec4 { u32 x, y, z, w; };
struct FuseIndex { u32 x, y, z; };
struct FuseAccumulators { float d[4]; };
#define EXPORTED extern "C" __attribute__((visibility("default")))

// What is known of two bytes of global memory: the step and the launch that wrote them last, the launches that read them last, plainly and
// by load_early or load_stream, the blocks that did (all ones: several), and whether they were added to.
struct FuseTouched { u32 step, written, read, early, writer, reader, added; };
// Memory that a launch may touch, sorted by address. touched: null where it is read only.
struct FuseRange { u64 begin, end; FuseTouched* touched; };
// Room for blocks and for the stacks of threads, and the last epoch in it. A launch leaves it to the next, of whichever library.
struct FuseRoom { char* memory; u64 bytes; u32 blocks, stacks; u64 epoch; };
struct FuseLaunch {
  u32 grid[3], threads, shared_bytes, ranges, step, number;
  u32 settled;   // launches of the step up to this number have ended when this one begins
  u32* early;    // set where a thread launched dependents before its wait
  FuseRoom* room;
  const u64* arguments;
  const FuseRange* memory;
  const char* name;
  char* error;
  u64 error_bytes;
};

// Where SHARED variables lie; null where a kernel has none.
extern "C" char __start_fuse_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_fuse_shared[] __attribute__((weak, visibility("hidden")));
// This library's own image: constants.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace {

constexpr u32 MAX_THREADS = 1024, STACK_BYTES = 64 * 1024, GUARD_BYTES = 4096, STACK_ROOM = GUARD_BYTES + STACK_BYTES, MAX_FIXED_SHARED = 48 * 1024, MAX_SHARED = 227 * 1024;
constexpr u32 MAX_CLUSTER = 16, MAX_ARRIVALS = 8, MAX_COPIES = 64, MAX_RINGS = 32, MAX_FILLS = 256, MAX_PRODUCTS = 128, MAX_STORES = 32;
constexpr unsigned char RING = 255;   // the Shadow of bytes that a barrier of a ring announces
constexpr u32 POISON = 0x7fa57fa5;   // NaN as a float and as two bfloat16
enum State { RUNNING, AT_BLOCK_BARRIER, AT_CLUSTER_BARRIER, AT_WARP, AT_RING, AT_GROUP, DONE };
enum Kind { WARP_BARRIER, SHUFFLE_XOR, SHUFFLE_UP, SHUFFLE_FROM, MMA, PRODUCTS };
const char* const KIND_NAMES[] = {"warp_barrier", "shuffle_xor", "shuffle_up", "shuffle_from", "mma", "await_products"};

// What copy_async brings: 16 bytes, and where to.
struct Copy { char* to; char bytes[16]; };

// A product of a warpgroup on its way: what it adds to and reads when it is waited for, and the stage it is of.
struct Product { float* d; const u32* a; const char* b; int columns; u32 stage; bool halves; };

// What store_bulk sends: read when it is waited for.
struct Store { char* to; const char* from; u64 bytes; };

// A barrier of a ring: the phases that are over, and of the one that runs who has yet to arrive and what has yet to come.
struct Ring { const u64* at; u32 arrivals, pending; u64 expected, copied, phases; };

// Bytes that come when a ring's phase is over. Until then garbage is there.
struct Fill { u32 ring; char* to; const char* from; u64 bytes; };

struct Thread {
  jmp_buf jump;
  ucontext_t start;
  char* stack;
  bool begun, waited, launched;
  bool arrived;          // at a cluster barrier that it has not waited for
  bool beginning, joined;   // has said that its block has begun; knows that all of the cluster have
  u32 awaited;           // a bit for each of its block's arrivals
  State state;
  Kind kind;             // of the exchange it waits in
  int parameter;         // mask or delta
  u64 value;             // given, then received
  FuseAccumulators d;
  u32 a[4], b[2];
  u32 copy_count;        // on their way
  Copy copies[MAX_COPIES];
  u32 ring, ring_phase;  // AT_RING: what it waits for
  u64 seen[MAX_RINGS];   // phases of each ring that it knows to be over
  int group;             // AT_GROUP: threads of the barrier
  u64 fenced;            // epoch of its last shared_before_copies
  u32 product_count, stages, store_count;
  Product products[MAX_PRODUCTS];
  Store stores[MAX_STORES];
};

// What is known of two bytes of shared memory. Epochs only grow, so nothing has to be cleared.
struct Shadow {
  u64 written, read;             // block epoch
  u64 written_warp, read_warp;   // epoch of the warp of the last writer, reader
  u64 peer_read, peer_written;   // block epoch in which another block of the cluster did
  u16 writer, reader;            // thread
  bool atomic;                   // written by an atomic
  bool lanes, warps;             // several threads, several warps read in that epoch
  unsigned char copy;            // 1 + the arrival that announces these bytes, or RING; 0: a thread wrote them
  u16 ring;                      // RING: which
  u64 phase;                     // RING: there when that many phases of it are over
};

// What `expect` began: copies into shared memory.
struct Arrival { const u64* at; u64 expected, copied; bool awaited; };

// A block of a cluster. While another runs, its shared memory lies in `dynamic` and `fixed`.
struct Block {
  Thread threads[MAX_THREADS];
  Arrival arrivals[MAX_ARRIVALS];
  u32 arrival_count;
  Ring rings[MAX_RINGS];
  Fill fills[MAX_FILLS];
  u32 ring_count, fill_count;
  u64 peer_read, peer_written;   // block epoch in which another block of the cluster read from it, or wrote
  u64 epoch;                     // in which it came to a cluster barrier
  Shadow dynamic_shadow[MAX_SHARED / 2], fixed_shadow[MAX_FIXED_SHARED / 2];
  char dynamic[MAX_SHARED], fixed[MAX_FIXED_SHARED];
};

Block *blocks, *own;   // of the cluster that runs; the block that does
u32 cluster;           // blocks
Thread* threads;       // of that block
Thread* current;
jmp_buf scheduler;
const FuseLaunch* launch;
void (*body)(const u64*);
FuseIndex block;
bool failed;
bool any_waited;       // some thread of the launch: enough for its end to imply the end of all before it
// Each barrier of a block begins an epoch, which no other block shares.
u64 epoch, last_epoch, block_begin, cluster_epoch, warp_epoch[MAX_THREADS / 32];   // cluster_epoch: began at the last cluster barrier
alignas(1024) char dynamic[MAX_SHARED];
const FuseRange* last_range;

u32 number(const Thread* thread) { return (u32)(thread - threads); }

[[noreturn]] void fail(const char* format, ...) {
  if (!failed) {
    char what[512];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u), thread %u: %s", launch->name, block.x, block.y, block.z,
             number(current), what);
  }
  failed = true;
  _longjmp(scheduler, 1);
}

void yield() {
  if (!_setjmp(current->jump)) _longjmp(scheduler, 1);
}

void fiber() {
  for (;;) {
    body(launch->arguments);
    any_waited |= current->waited;
    if (!current->launched) fail("it ends without launch_dependents");
    if (current->arrived) fail("it ends between cluster_arrive and cluster_wait");
    if (current->beginning) fail("it ends between cluster_begin and cluster_join");
    if (current->copy_count > 0) fail("it ends without await_copies");
    if (current->product_count > 0) fail("it ends without await_products");
    if (current->store_count > 0) fail("it ends without await_stores");
    current->state = DONE;
    yield();
  }
}

__attribute__((noinline)) void resume(Thread* thread) {
  current = thread;
  if (!_setjmp(scheduler)) {
    if (thread->begun) _longjmp(thread->jump, 1);
    thread->begun = true;
    setcontext(&thread->start);
  }
}

void prepare(Thread* thread, char* stack) {
  thread->stack = stack + GUARD_BYTES;
  getcontext(&thread->start);
  thread->start.uc_stack.ss_sp = thread->stack;
  thread->start.uc_stack.ss_size = STACK_BYTES;
  thread->start.uc_link = nullptr;
  makecontext(&thread->start, fiber, 0);
  thread->begun = false;
}

u64 blocks_bytes(u32 count) { return (count * sizeof(Block) + 4095) / 4096 * 4096; }

// Makes a room large enough. Pages that are touched and guards that are set once cost less than the threads of a launch otherwise would.
bool make_room(FuseRoom& room, u32 blocks, u32 stacks) {
  if (blocks <= room.blocks && stacks <= room.stacks) return true;
  if (room.memory) munmap(room.memory, room.bytes);
  if (blocks < room.blocks) blocks = room.blocks;
  if (stacks < room.stacks) stacks = room.stacks;
  const u64 bytes = blocks_bytes(blocks) + stacks * STACK_ROOM;
  char* memory = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    room = {nullptr, 0, 0, 0, room.epoch};
    return false;
  }
  for (u32 i = 0; i < stacks; i++) mprotect(memory + blocks_bytes(blocks) + i * STACK_ROOM, GUARD_BYTES, PROT_NONE);
  room = {memory, bytes, blocks, stacks, room.epoch};
  return true;
}

float bf16(u32 bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
float f16(u32 bits) {
  const u32 sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
  const u32 normal = (rest << 13) + 0x38000000, special = 0x7f800000 | rest << 13;
  float value = (float)rest * 5.9604644775390625e-8f;      // subnormal
  if (rest >= 0x400) memcpy(&value, rest >= 0x7c00 ? &special : &normal, 4);
  return sign ? -value : value;
}
float half_of(u32 pair, u32 odd, bool halves) {
  const u32 bits = odd ? pair >> 16 : pair & 0xffff;
  return halves ? f16(bits) : bf16(bits);
}

// mma.m16n8k16: A[row][k] is in lane row % 8 * 4 + k % 8 / 2, register row / 8 + 2 (k / 8); B[k][n] in lane n * 4 + k % 8 / 2, register
// k / 8; D[row][n] in lane row % 8 * 4 + n / 2, register row / 8 * 2 + n % 2.
void multiply(Thread* lanes, bool halves) {
  for (u32 row = 0; row < 16; row++) {
    for (u32 n = 0; n < 8; n++) {
      float& d = lanes[row % 8 * 4 + n / 2].d.d[row / 8 * 2 + n % 2];
      double sum = d;
      for (u32 k = 0; k < 16; k++) {
        const float a = half_of(lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k % 2, halves);
        const float b = half_of(lanes[n * 4 + k % 8 / 2].b[k / 8], k % 2, halves);
        sum += (double)a * b;
      }
      d = (float)sum;
    }
  }
}

void check_shared(const void* p, u64 bytes);

// The products of a warp's row tile, all stages but the latest: as wgmma has them, with B in rows of 128 bytes under the 128-byte swizzle.
void finish_products(Thread* lanes, u32 latest) {
  current = lanes;
  u32 done = 0;
  for (; done < lanes->product_count && lanes->products[done].stage + latest < lanes->stages; done++) {
    const Product& first = lanes->products[done];
    for (u32 i = 1; i < 32; i++) {
      const Product& other = lanes[i].products[done];
      if (lanes[i].product_count != lanes->product_count || other.b != first.b || other.columns != first.columns || other.stage != first.stage || other.halves != first.halves) {
        snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u): the warp diverged: thread %u and thread %u multiply differently", launch->name,
                 block.x, block.y, block.z, number(lanes), number(lanes + i));
        failed = true;
        return;
      }
    }
    for (int n = 0; n < first.columns; n++) {
      float b[16];
      for (u32 k = 0; k < 16; k++) {
        const u64 line = (u64)first.b + n / 8 * 1024 + n % 8 * 128 + 2 * k, at = line ^ (line >> 7 & 7) << 4;
        if (k % 8 == 0) check_shared((const void*)at, 16);
        u16 bits;
        memcpy(&bits, (const void*)at, 2);
        b[k] = half_of(bits, 0, first.halves);
      }
      for (u32 row = 0; row < 16; row++) {
        float& d = lanes[row % 8 * 4 + n % 8 / 2].products[done].d[n / 8 * 4 + row / 8 * 2 + n % 2];
        double sum = d;
        for (u32 k = 0; k < 16; k++) sum += (double)half_of(lanes[row % 8 * 4 + k % 8 / 2].products[done].a[row / 8 + 2 * (k / 8)], k % 2, first.halves) * b[k];
        d = (float)sum;
      }
    }
  }
  for (u32 i = 0; i < 32; i++) {
    lanes[i].product_count -= done;
    memmove(lanes[i].products, lanes[i].products + done, lanes[i].product_count * sizeof(Product));
  }
}

// All 32 lanes wait: exchange, if they wait for the same.
void exchange(u32 warp) {
  Thread* lanes = threads + 32 * warp;
  for (u32 i = 1; i < 32; i++) {
    if (lanes[i].kind == lanes[0].kind && (lanes[i].parameter == lanes[0].parameter || lanes[0].kind == SHUFFLE_FROM)) continue;
    current = lanes + i;
    if (!failed)
      snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u): the warp diverged: thread %u is at %s(%d), thread %u at %s(%d)",
               launch->name, block.x, block.y, block.z, number(lanes), KIND_NAMES[lanes[0].kind], lanes[0].parameter, number(lanes + i),
               KIND_NAMES[lanes[i].kind], lanes[i].parameter);
    failed = true;
    return;
  }
  u64 values[32];
  for (u32 i = 0; i < 32; i++) values[i] = lanes[i].value;
  const int by = lanes[0].parameter;
  switch (lanes[0].kind) {
    case WARP_BARRIER: warp_epoch[warp]++; break;
    case SHUFFLE_XOR: for (int i = 0; i < 32; i++) lanes[i].value = values[(i ^ by) & 31]; break;
    case SHUFFLE_UP: for (int i = 0; i < 32; i++) lanes[i].value = values[i >= by ? i - by : i]; break;
    case SHUFFLE_FROM: for (int i = 0; i < 32; i++) lanes[i].value = values[lanes[i].parameter & 31]; break;
    case MMA: multiply(lanes, by != 0); break;
    case PRODUCTS:   // which may fail where no thread runs
      if (!_setjmp(scheduler)) finish_products(lanes, (u32)by);
      if (failed) return;
      break;
  }
  for (u32 i = 0; i < 32; i++) lanes[i].state = RUNNING;
}

const char* name_of(const Thread& thread) {
  return thread.state == DONE ? "has ended" : thread.state == AT_RING ? "is at barrier_wait" : thread.state == AT_GROUP ? "is at group_barrier" : thread.state == AT_BLOCK_BARRIER ? "is at block_barrier" :
         thread.state == AT_CLUSTER_BARRIER ? (thread.beginning ? "is at cluster_join" : "is at cluster_wait") : KIND_NAMES[thread.kind];
}

void diverged(const char* whom, u32 a, u32 b) {
  snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u): the %s diverged: thread %u %s%s, thread %u %s%s", launch->name,
           block.x, block.y, block.z, whom, a, threads[a].state == AT_WARP ? "is at " : "", name_of(threads[a]), b,
           threads[b].state == AT_WARP ? "is at " : "", name_of(threads[b]));
  failed = true;
}

// Whether the phase that a thread waits for is over.
bool is_over(const Thread& thread) { return own->rings[thread.ring].phases % 2 != thread.ring_phase; }

// Runs a warp until every lane waits for the block, for a group or for a ring, or has ended. Returns whether it went on at all.
bool run_warp(u32 first, u32 last) {
  for (bool went_on = false;; went_on = true) {
    u32 waiting = 0, held = 0;
    bool ran = false;
    for (u32 i = first; i < last; i++) {
      if (threads[i].state == AT_RING && is_over(threads[i])) threads[i].state = RUNNING;
      if (threads[i].state == RUNNING) ran = true, resume(threads + i);
      if (failed) return true;
      if (threads[i].state == AT_WARP) waiting++;
      if (threads[i].state == AT_RING || threads[i].state == AT_GROUP) held++;
    }
    if (waiting == 0 || held > 0) return went_on || ran;
    if (waiting < last - first || last - first < 32) {
      u32 one = first, other = first;
      while (threads[one].state != AT_WARP) one++;
      while (other < last - 1 && threads[other].state == AT_WARP) other++;
      diverged(last - first < 32 ? "warp is not whole and has" : "warp", one, other);
      return true;
    }
    exchange(first / 32);
    if (failed) return true;
  }
}

// Lets the first threads of the block go on that wait for each other, if all of them do. What each of them did is before what any does next.
bool release_group() {
  if (threads[0].state != AT_GROUP) return false;
  const u32 count = (u32)threads[0].group;
  for (u32 i = 0; i < count; i++)
    if (threads[i].state != AT_GROUP || threads[i].group != threads[0].group) return false;
  for (u32 i = 0; i < count; i++) threads[i].state = RUNNING;
  epoch = ++last_epoch;
  return true;
}

// Runs the warps of a block in turns until each waits for the block or has ended.
void run_warps() {
  for (;;) {
    bool went_on = false;
    for (u32 first = 0; first < launch->threads; first += 32) {
      went_on |= run_warp(first, first + 32 < launch->threads ? first + 32 : launch->threads);
      if (failed) return;
    }
    if (release_group()) continue;
    u32 held = launch->threads, other = 0;
    for (u32 i = launch->threads; i-- > 0;)
      if (threads[i].state == AT_RING || threads[i].state == AT_GROUP) held = i;
    if (held == launch->threads) return;
    if (went_on) continue;
    while (other < launch->threads - 1 && (threads[other].state == AT_RING || threads[other].state == AT_GROUP)) other++;
    return diverged("block waits for what does not come: it", held, other);
  }
}

// Runs a block until it ends or waits for its cluster: that is every thread's state.
void run_block() {
  // cluster_join orders nothing: the epoch is what it was.
  for (bool joins = threads[0].state == AT_CLUSTER_BARRIER && threads[0].beginning;; joins = false) {
    epoch = joins ? own->epoch : ++last_epoch;
    for (u32 i = 0; i < launch->threads; i++) threads[i].state = RUNNING;
    run_warps();
    if (failed) return;
    for (u32 i = 1; i < launch->threads; i++)
      if (threads[i].state != threads[0].state || threads[i].beginning != threads[0].beginning) return diverged("block", 0, i);
    if (threads[0].state == DONE) break;
    if (threads[0].state == AT_CLUSTER_BARRIER) {
      own->epoch = epoch;
      return;
    }
  }
  const char* what = own->peer_read >= cluster_epoch ? "it ends while another block of the cluster may still read its shared memory"
                     : own->peer_written >= cluster_epoch ? "it ends while another block of the cluster may still write its shared memory" : nullptr;
  for (u32 i = 0; i < own->arrival_count; i++)
    if (!own->arrivals[i].awaited) what = "it ends without an await of what copy_bulk brings";
  if (own->fill_count > 0) what = "it ends while copy_bulk brings something";
  if (!what) return;
  snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u): %s", launch->name, block.x, block.y, block.z, what);
  failed = true;
}

// Runs the blocks of a cluster, which begins at block.x, in turns from one cluster barrier to the next.
void run_cluster() {
  const u32 first = block.x;
  const u64 fixed = __stop_fuse_shared - __start_fuse_shared;
  block_begin = cluster_epoch = ++last_epoch;
  for (bool begun = false;; begun = true) {
    for (u32 rank = 0; rank < cluster; rank++) {
      own = blocks + rank, threads = own->threads, block.x = first + rank;
      if (!begun) {
        for (u32 i = 0; i < launch->threads; i++) threads[i].waited = threads[i].launched = threads[i].arrived = threads[i].beginning = threads[i].joined = false, threads[i].awaited = threads[i].copy_count = threads[i].product_count = threads[i].stages = threads[i].store_count = 0, threads[i].fenced = 0, memset(threads[i].seen, 0, sizeof threads[i].seen);
        own->arrival_count = own->ring_count = own->fill_count = 0, own->peer_read = own->peer_written = 0;
        for (char* p = __start_fuse_shared; p + 4 <= __stop_fuse_shared; p += 4) memcpy(p, &POISON, 4);
        for (char* p = dynamic; p < dynamic + launch->shared_bytes; p += 4) memcpy(p, &POISON, 4);
      } else if (cluster > 1) {
        memcpy(__start_fuse_shared, own->fixed, fixed), memcpy(dynamic, own->dynamic, launch->shared_bytes);
      }
      run_block();
      if (failed) return;
      if (cluster > 1) memcpy(own->fixed, __start_fuse_shared, fixed), memcpy(own->dynamic, dynamic, launch->shared_bytes);
    }
    for (u32 rank = 1; rank < cluster; rank++) {
      const Thread &one = blocks[rank].threads[0], &other = blocks[0].threads[0];
      if (one.state == other.state && one.beginning == other.beginning) continue;
      snprintf(launch->error, launch->error_bytes, "kernel %s, block (%u, %u, %u): the cluster diverged: block %u %s, block %u %s", launch->name,
               first, block.y, block.z, 0, name_of(blocks[0].threads[0]), rank, name_of(blocks[rank].threads[0]));
      failed = true;
      return;
    }
    if (threads[0].state == DONE) return;
    if (!threads[0].beginning) cluster_epoch = ++last_epoch;
  }
}

u64 exchange_with(Kind kind, int parameter, u64 value) {
  current->kind = kind;
  current->parameter = parameter;
  current->value = value;
  current->state = AT_WARP;
  yield();
  return current->value;
}

// Whether an access of `thread` to what another accessed at these epochs is in no order with it.
bool unordered(u32 other, u64 at, u64 at_warp) {
  const u32 self = number(current);
  return other != self && at == epoch && (other / 32 != self / 32 || at_warp == warp_epoch[self / 32]);
}

void shared_access(Shadow* shadow, u64 offset, u64 bytes, bool write, bool atomic) {
  const u32 self = number(current);
  if (current->arrived) fail("touches shared memory between cluster_arrive and cluster_wait");
  for (u64 i = offset / 2; i <= (offset + bytes - 1) / 2; i++) {
    Shadow& s = shadow[i];
    const bool known = s.written >= block_begin;
    if (known && s.peer_written >= cluster_epoch) fail("race: touches shared memory that another block wrote, with no cluster barrier between");
    if (known && s.copy == RING && current->seen[s.ring] < s.phase) fail("touches shared memory that copy_bulk fills, without a barrier_wait");
    if (known && s.copy && s.copy != RING && !(current->awaited >> (s.copy - 1) & 1)) fail("touches shared memory that copy_bulk fills, without an await");
    if ((!write || atomic) && !known) fail("reads shared memory that no thread of the block wrote");
    if (known && s.copy != RING && !(atomic && s.atomic) && unordered(s.writer, s.written, s.written_warp))
      fail("race: %s shared memory that thread %u wrote, with no barrier between", write ? "writes" : "reads", s.writer);
    if (write) {
      if (s.read >= block_begin && s.read == epoch && (s.warps || unordered(s.reader, s.read, s.read_warp) ||
          (s.lanes && s.read_warp == warp_epoch[self / 32] && s.reader / 32 == self / 32)))
        fail("race: writes shared memory that thread %u read, with no barrier between", s.reader);
      if (s.peer_read >= cluster_epoch) fail("race: writes shared memory that another block read, with no cluster barrier between");
      s.written = epoch, s.written_warp = warp_epoch[self / 32], s.writer = self, s.atomic = atomic, s.copy = 0;
    } else {
      const bool same = s.read == epoch;
      s.warps = same && (s.warps || s.reader / 32 != self / 32);
      s.lanes = same && s.read_warp == warp_epoch[self / 32] && (s.lanes || s.reader != self);
      s.read = epoch, s.read_warp = warp_epoch[self / 32], s.reader = self;
    }
  }
}

const FuseRange* range_of(u64 at, u64 bytes) {
  if (last_range && at >= last_range->begin && at + bytes <= last_range->end) return last_range;
  u32 low = 0, high = launch->ranges;
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (launch->memory[middle].end < at + bytes) low = middle + 1; else high = middle;
  }
  return low < launch->ranges && launch->memory[low].begin <= at ? last_range = launch->memory + low : nullptr;
}

[[noreturn]] void outside(u64 at, u64 bytes, bool write) {
  const FuseRange* near = nullptr;
  u64 distance = ~0ull;
  for (u32 i = 0; i < launch->ranges; i++) {
    const FuseRange* r = launch->memory + i;
    const u64 d = at < r->begin ? r->begin - at : at >= r->end ? at - r->end : 0;
    if (d < distance) near = r, distance = d;
  }
  const char* verb = write ? "writes" : "reads";
  if (near && distance < 1 << 16)
    fail("%s %llu bytes at offset %lld of a buffer of %llu bytes", verb, bytes, (long long)(at - near->begin), near->end - near->begin);
  fail("%s %llu bytes at %#llx, which no registered buffer holds", verb, bytes, at);
}

enum Access { READ, WRITE, ATOMIC, STREAM, SETTLED, ACCUMULATE };

// Order among blocks and launches. Blocks that write the same bytes do so with the same values (attention's groups share a key head).
void global_access(FuseTouched* touched, u64 offset, u64 bytes, Access how) {
  const u32 now = launch->number, self = block.x + launch->grid[0] * (block.y + launch->grid[1] * block.z), several = ~0u;
  for (FuseTouched* t = touched + offset / 2; t <= touched + (offset + bytes - 1) / 2; t++) {
    if (how == WRITE || how == ACCUMULATE) {
      if (t->early == now) fail("writes what a thread of this launch reads by load_early or load_stream");
      if (t->read == now && t->reader != self) fail("race: writes global memory that another block of the launch read");
      // Blocks may add to the same sum, in any order, but to none that this launch writes.
      if (t->written == now && how != (t->added ? ACCUMULATE : WRITE)) fail("race: writes and adds to the same global memory in one launch");
      t->added = how == ACCUMULATE;
      t->writer = t->written == now && t->writer != self ? several : self;
      t->step = launch->step, t->written = now;
    } else {
      if (how == STREAM && t->step == launch->step) fail("reads by load_early or load_stream what a kernel of this step writes");
      if (how == SETTLED && t->step == launch->step && t->written > launch->settled)
        fail("reads by load_settled what may not be written yet");
      if (t->written == now && (t->writer != self || t->added)) fail("race: reads global memory that another block of the launch wrote");
      t->reader = t->read == now && t->reader != self ? several : self;
      t->read = now;
      if (how == STREAM || how == SETTLED) t->early = now;
    }
  }
}

void access(const void* p, u64 bytes, Access how) {
  if (!current) return;
  const char* at = (const char*)p;
  if (at >= current->stack && at < current->stack + STACK_BYTES) return;
  const bool write = how == WRITE || how == ATOMIC || how == ACCUMULATE;
  if (at >= __start_fuse_shared && at + bytes <= __stop_fuse_shared)
    return shared_access(own->fixed_shadow, at - __start_fuse_shared, bytes, write, how == ATOMIC);
  if (at >= dynamic && at < dynamic + sizeof dynamic) {
    if (at + bytes > dynamic + launch->shared_bytes)
      fail("%s shared memory at byte %lld of %u", write ? "writes" : "reads", (long long)(at - dynamic), launch->shared_bytes);
    return shared_access(own->dynamic_shadow, at - dynamic, bytes, write, how == ATOMIC);
  }
  if (!write && at >= __ehdr_start && at + bytes <= _end) return;
  const FuseRange* range = range_of((u64)at, bytes);
  if (!range) outside((u64)at, bytes, write);
  if (how == ATOMIC) fail("a shared atomic on global memory");
  if (how == ACCUMULATE && (u64)at % bytes) fail("adds to a sum at an address that is no multiple of %llu", bytes);
  if ((how == WRITE || how == ACCUMULATE) && !range->touched)
    fail("writes %llu bytes at offset %llu of an input of %llu bytes", bytes, (u64)at - range->begin, range->end - range->begin);
  if (how != STREAM && how != SETTLED && !current->waited)
    fail("touches global memory before wait_for_dependencies; only load_early, load_stream, load_settled and copies of weights may");
  if (range->touched) global_access(range->touched, (u64)at - range->begin, bytes, how);
}

// A shared address in a block of the cluster: where its bytes lie while another runs, and what is known of them. Null: not shared.
Shadow* shared_place(Block& of, const void* p, u64 bytes, const char** saved) {
  const char* at = (const char*)p;
  const bool fixed = at >= __start_fuse_shared && at + bytes <= __stop_fuse_shared;
  if (!fixed && (at < dynamic || at + bytes > dynamic + launch->shared_bytes)) return nullptr;
  const u64 offset = at - (fixed ? __start_fuse_shared : dynamic);
  if (saved) *saved = (fixed ? of.fixed : of.dynamic) + offset;
  return (fixed ? of.fixed_shadow : of.dynamic_shadow) + offset / 2;
}

// `bytes` (4 or 8) of what block `rank` of the cluster has where this block has `p`.
u64 read_peer(const char* p, u32 bytes, u32 rank) {
  if (rank >= cluster) fail("reads of block %u in a cluster of %u", rank, cluster);
  Block& peer = blocks[rank];
  u64 value = 0;
  if (&peer == own) {
    access(p, bytes, READ);
    memcpy(&value, p, bytes);
    return value;
  }
  const char* saved;
  Shadow* shadow = shared_place(peer, p, bytes, &saved);
  if (!shadow || (u64)p % bytes) fail("load_peer of what is no variable of shared memory");
  if (current->arrived) fail("touches shared memory between cluster_arrive and cluster_wait");
  if (peer.threads[0].state == DONE && shadow->written >= block_begin) fail("reads shared memory of block %u of the cluster, which has ended", rank);
  for (Shadow* s = shadow; s < shadow + bytes / 2; s++) {
    if (s->written >= cluster_epoch) fail("race: reads shared memory that block %u of the cluster wrote, with no cluster barrier between", rank);
    if (s->written < block_begin) fail("reads shared memory that no thread of block %u of the cluster wrote", rank);
    if (s->copy) fail("reads shared memory that copy_bulk fills in block %u of the cluster", rank);
    s->peer_read = epoch;
  }
  peer.peer_read = epoch;
  memcpy(&value, saved, bytes);
  return value;
}

// Writes `bytes` (4 or 8) to what block `rank` of the cluster has where this block has `p`.
void write_peer(const char* p, const char* value, u32 bytes, u32 rank) {
  if (rank >= cluster) fail("writes to block %u in a cluster of %u", rank, cluster);
  Block& peer = blocks[rank];
  if (&peer == own) {
    access(p, bytes, WRITE);
    memcpy((char*)p, value, bytes);
    return;
  }
  const char* saved;
  Shadow* shadow = shared_place(peer, p, bytes, &saved);
  if (!shadow || (u64)p % bytes) fail("store_peer to what is no variable of shared memory");
  if (current->arrived) fail("touches shared memory between cluster_arrive and cluster_wait");
  if (!current->joined) fail("writes shared memory of block %u of the cluster, which may not have begun: cluster_join is to come first", rank);
  if (peer.threads[0].state == DONE) fail("writes shared memory of block %u of the cluster, which has ended", rank);
  for (Shadow* s = shadow; s < shadow + bytes / 2; s++) {
    const bool another = s->writer != number(current) || s->written != epoch;
    if (s->read >= cluster_epoch || (s->written >= cluster_epoch && another) || s->peer_read >= cluster_epoch)
      fail("race: writes shared memory of block %u of the cluster that another thread touched, with no cluster barrier between", rank);
    s->written = s->peer_written = epoch, s->written_warp = warp_epoch[number(current) / 32], s->writer = number(current), s->atomic = false, s->copy = 0;
  }
  peer.peer_written = epoch;
  memcpy((char*)saved, value, bytes);
}

// The bytes are written twice: garbage at once, as they may come at any time, and what they are when the thread waits for them.
void begin_copy(char* to, const char* from) {
  if ((u64)to % 16 || (u64)from % 16) fail("copy_async: both addresses are to be multiples of 16");
  if (!shared_place(*own, to, 16, nullptr)) fail("copy_async to what is not shared memory");
  if (shared_place(*own, from, 1, nullptr)) fail("copy_async from what is not global memory");
  if (current->copy_count == MAX_COPIES) fail("more than %u copies on their way", MAX_COPIES);
  // Before the wait it brings what load_stream may read.
  access(from, 16, current->waited ? READ : STREAM), access(to, 16, WRITE);
  Copy& copy = current->copies[current->copy_count++];
  copy.to = to;
  memcpy(copy.bytes, from, 16);
  for (u32 i = 0; i < 16; i += 4) memcpy(to + i, &POISON, 4);
}

void await_copies() {
  for (const Copy* copy = current->copies; copy < current->copies + current->copy_count; copy++) {
    access(copy->to, 16, WRITE);
    memcpy(copy->to, copy->bytes, 16);
  }
  current->copy_count = 0;
}

Arrival& arrival_of(const u64* at, const char* what) {
  for (u32 i = 0; i < own->arrival_count; i++)
    if (own->arrivals[i].at == at) return own->arrivals[i];
  fail("%s of what no expect began", what);
}

// A barrier that is accessed as ordinary memory: its use has to be ordered after its initialisation.
void begin_arrival(u64* at, u64 bytes) {
  if (!shared_place(*own, at, 8, nullptr) || (u64)at % 8) fail("expect of what is no 64-bit word of shared memory");
  for (u32 i = 0; i < own->arrival_count; i++)
    if (own->arrivals[i].at == at) fail("expect of what another expect began");
  if (own->arrival_count == MAX_ARRIVALS) fail("a block has more than %u arrivals", MAX_ARRIVALS);
  access(at, 8, WRITE);
  own->arrivals[own->arrival_count++] = {at, bytes, 0, false};
}

// The bytes are there at once, but marked: only a thread that awaited may touch them.
void copy(char* to, const char* from, u64 bytes, const u64* at) {
  Arrival& arrival = arrival_of(at, "copy_bulk");
  access(at, 8, READ);
  if (bytes == 0 || bytes % 16 || (u64)to % 16 || (u64)from % 16) fail("copy_bulk of %llu bytes: it and both addresses are to be multiples of 16", bytes);
  Shadow* shadow = shared_place(*own, to, bytes, nullptr);
  if (!shadow) fail("copy_bulk of %llu bytes to what is not shared memory", bytes);
  if (shared_place(*own, from, 1, nullptr)) fail("copy_bulk from what is not global memory");
  access(from, bytes, STREAM);
  for (Shadow* s = shadow; s < shadow + bytes / 2; s++) {
    if (s->written >= block_begin) fail("race: copy_bulk over shared memory that was written before");
    s->written = epoch, s->written_warp = warp_epoch[number(current) / 32], s->writer = number(current), s->atomic = false;
    s->copy = &arrival - own->arrivals + 1;
  }
  arrival.copied += bytes;
  memcpy(to, from, bytes);
}

// A barrier of a ring, or null.
Ring* ring_at(const u64* at) {
  for (u32 i = 0; i < own->ring_count; i++)
    if (own->rings[i].at == at) return own->rings + i;
  return nullptr;
}
Ring& ring_of(const u64* at, const char* what) {
  Ring* ring = ring_at(at);
  if (!ring) fail("%s of what no barrier_begin began", what);
  access(at, 8, READ);
  return *ring;
}

void begin_ring(u64* at, u32 arrivals) {
  if (!shared_place(*own, at, 8, nullptr) || (u64)at % 8) fail("barrier_begin of what is no 64-bit word of shared memory");
  if (ring_at(at)) fail("barrier_begin of what another one began");
  if (own->ring_count == MAX_RINGS) fail("a block has more than %u barriers of rings", MAX_RINGS);
  access(at, 8, WRITE);
  own->rings[own->ring_count++] = {at, arrivals, arrivals, 0, 0, 0};
}

// Ends the phase if nothing is missing: what it brings is there at this moment.
void end_phase(Ring& ring) {
  if (ring.pending > 0 || ring.expected != ring.copied) return;
  const u32 index = &ring - own->rings;
  u32 left = 0;
  for (u32 i = 0; i < own->fill_count; i++) {
    const Fill fill = own->fills[i];
    if (fill.ring == index) memcpy(fill.to, fill.from, fill.bytes);
    else own->fills[left++] = fill;
  }
  own->fill_count = left;
  ring.phases++, ring.pending = ring.arrivals, ring.expected = ring.copied = 0;
}

void arrive(u64* at, u64 bytes) {
  Ring& ring = ring_of(at, bytes ? "barrier_expect" : "barrier_arrive");
  if (ring.pending == 0) fail("more threads arrive at a barrier than barrier_begin said");
  ring.pending--, ring.expected += bytes;
  end_phase(ring);
}

// Garbage comes at once, as the bytes may at any time, and what they are when the phase is over.
void fill(char* to, const char* from, u64 bytes, Ring& ring) {
  access(ring.at, 8, READ);
  if (bytes == 0 || bytes % 16 || (u64)to % 16 || (u64)from % 16) fail("copy_bulk of %llu bytes: it and both addresses are to be multiples of 16", bytes);
  Shadow* shadow = shared_place(*own, to, bytes, nullptr);
  if (!shadow) fail("copy_bulk of %llu bytes to what is not shared memory", bytes);
  if (shared_place(*own, from, 1, nullptr)) fail("copy_bulk from what is not global memory");
  if (own->fill_count == MAX_FILLS) fail("more than %u copies on their way", MAX_FILLS);
  // Before the wait it brings what load_stream may read.
  access(from, bytes, current->waited ? READ : STREAM);
  for (Shadow* s = shadow; s < shadow + bytes / 2; s++) {
    if (s->written >= block_begin && s->copy != RING) fail("race: copy_bulk over shared memory that was written before");
    s->written = epoch, s->written_warp = warp_epoch[number(current) / 32], s->writer = number(current), s->atomic = false;
    s->copy = RING, s->ring = &ring - own->rings, s->phase = ring.phases + 1;
  }
  for (u64 i = 0; i < bytes; i += 4) memcpy(to + i, &POISON, 4);
  own->fills[own->fill_count++] = {(u32)(&ring - own->rings), to, from, bytes};
  ring.copied += bytes;
  end_phase(ring);
}

void wait_for_phase(u64* at, u32 phase) {
  Ring& ring = ring_of(at, "barrier_wait");
  current->ring = &ring - own->rings, current->ring_phase = phase;
  if (!is_over(*current)) {
    current->state = AT_RING;
    yield();
  }
  current->seen[current->ring] = ring.phases;
}

// Of bytes that nobody wrote a product may make garbage, which nobody reads: those of rows beyond the last.
void check_shared(const void* p, u64 bytes) {
  Shadow* shadow = shared_place(*own, p, bytes, nullptr);
  if (!shadow) fail("multiplies by what is not shared memory");
  if (shadow->written >= block_begin) access(p, bytes, READ);
}

void send_stores() {
  for (const Store* store = current->stores; store < current->stores + current->store_count; store++) {
    Shadow* shadow = shared_place(*own, store->from, store->bytes, nullptr);
    for (Shadow* s = shadow; s < shadow + store->bytes / 2; s++)
      if (s->written >= block_begin && threads[s->writer].fenced < s->written) fail("store_bulk of what thread %u wrote, with no shared_before_copies after it", s->writer);
    access(store->from, store->bytes, READ), access(store->to, store->bytes, WRITE);
    memcpy(store->to, store->from, store->bytes);
  }
  current->store_count = 0;
}

void wait_for(const u64* at) {
  Arrival& arrival = arrival_of(at, "await");
  access(at, 8, READ);
  if (arrival.copied != arrival.expected) fail("await of %llu bytes, of which %llu are on their way", arrival.expected, arrival.copied);
  arrival.awaited = true;
  current->awaited |= 1u << (&arrival - own->arrivals);
}

}  // namespace

extern "C" {
FuseIndex fuse_thread_index() { return {number(current), 0, 0}; }
FuseIndex fuse_block_index() { return block; }
FuseIndex fuse_block_size() { return {launch->threads, 1, 1}; }
FuseIndex fuse_grid_size() { return {launch->grid[0], launch->grid[1], launch->grid[2]}; }
char* fuse_shared_memory() { return dynamic; }
void fuse_block_barrier() { current->state = AT_BLOCK_BARRIER; yield(); }
void fuse_cluster_begin() {
  if (current->arrived || current->beginning || current->joined) fail("cluster_begin after a cluster barrier's arrival");
  current->beginning = true;
}
void fuse_cluster_join() {
  if (!current->beginning) fail("cluster_join without cluster_begin");
  current->state = AT_CLUSTER_BARRIER;
  yield();
  current->beginning = false, current->joined = true;
}
void fuse_cluster_arrive() {
  if (current->beginning) fail("cluster_arrive between cluster_begin and cluster_join");
  if (current->arrived) fail("cluster_arrive twice");
  current->arrived = true;
}
void fuse_cluster_wait() {
  if (!current->arrived) fail("cluster_wait without cluster_arrive");
  current->state = AT_CLUSTER_BARRIER;
  yield();
  current->arrived = false, current->joined = true;
}
void fuse_store_peer(const void* p, const void* value, u32 bytes, int rank) { write_peer((const char*)p, (const char*)value, bytes, (u32)rank); }
u64 fuse_load_peer(const void* p, u32 bytes, int rank) { return read_peer((const char*)p, bytes, (u32)rank); }
void fuse_expect(u64* arrived, u32 bytes) { begin_arrival(arrived, bytes); }
void fuse_copy_bulk(void* to, const void* from, u32 bytes, u64* arrived) {
  Ring* ring = ring_at(arrived);
  if (ring) fill((char*)to, (const char*)from, bytes, *ring);
  else copy((char*)to, (const char*)from, bytes, arrived);
}
void fuse_barrier_begin(u64* barrier, u32 arrivals) { begin_ring(barrier, arrivals); }
void fuse_barrier_expect(u64* barrier, u32 bytes) { arrive(barrier, bytes); }
void fuse_barrier_arrive(u64* barrier) { arrive(barrier, 0); }
void fuse_barrier_wait(u64* barrier, u32 phase) { wait_for_phase(barrier, phase); }
void fuse_group_barrier(int count) {
  if (count <= 0 || count % 32 || (u32)count > launch->threads || number(current) >= (u32)count) fail("group_barrier of %d threads", count);
  current->group = count, current->state = AT_GROUP;
  yield();
}
void fuse_shared_before_copies() { current->fenced = epoch; }
void fuse_store_bulk(void* to, const void* from, u32 bytes) {
  if (bytes == 0 || bytes % 16 || (u64)to % 16 || (u64)from % 16) fail("store_bulk of %u bytes: it and both addresses are to be multiples of 16", bytes);
  if (!shared_place(*own, from, bytes, nullptr)) fail("store_bulk from what is not shared memory");
  if (current->store_count == MAX_STORES) fail("more than %u stores on their way", MAX_STORES);
  current->stores[current->store_count++] = {(char*)to, (const char*)from, bytes};
}
void fuse_await_stores() { send_stores(); }
void fuse_multiply(float* d, const u32* a, const char* b, int columns, int halves) {
  if (current->product_count == MAX_PRODUCTS) fail("more than %u products on their way", MAX_PRODUCTS);
  current->products[current->product_count++] = {d, a, b, columns, current->stages, halves != 0};
}
void fuse_products_end() { current->stages++; }
void fuse_await_products(int latest) { exchange_with(PRODUCTS, latest, 0); }
void fuse_await(const u64* arrived) { wait_for(arrived); }
void fuse_copy_async(void* to, const void* from) { begin_copy((char*)to, (const char*)from); }
void fuse_await_copies() { await_copies(); }
void fuse_warp_barrier() { exchange_with(WARP_BARRIER, 0, 0); }
void fuse_launch_dependents() {
  current->launched = true;
  if (!current->waited) *launch->early = 1;
}
void fuse_wait_for_dependencies() { current->waited = true; }
u64 fuse_shuffle_xor(u64 value, int mask) { return exchange_with(SHUFFLE_XOR, mask, value); }
u64 fuse_shuffle_from(u64 value, int lane) { return exchange_with(SHUFFLE_FROM, lane, value); }
u64 fuse_shuffle_up(u64 value, int delta) { return exchange_with(SHUFFLE_UP, delta, value); }
void fuse_stream(const void* p, u64 bytes) {
  if ((u64)p % bytes) fail("load_early or load_stream from an address that is no multiple of %llu", bytes);
  access(p, bytes, STREAM);
}
void fuse_settled(const void* p, u64 bytes) { access(p, bytes, SETTLED); }
FuseAccumulators fuse_mma(FuseAccumulators d, Vec4 a, u32 b0, u32 b1, int halves) {
  current->d = d;
  current->a[0] = a.x, current->a[1] = a.y, current->a[2] = a.z, current->a[3] = a.w, current->b[0] = b0, current->b[1] = b1;
  exchange_with(MMA, halves, 0);
  return current->d;
}
u32 fuse_atomic_add4(u32* p, u32 value) { access(p, 4, ATOMIC); *p += value; return *p - value; }
void fuse_atomic_max4(u32* p, u32 value) { access(p, 4, ATOMIC); *p = *p < value ? value : *p; }
void fuse_accumulate(float* p, float value) { access(p, 4, ACCUMULATE); *p += value; }
void fuse_accumulate8(u64* p, u64 value) { access(p, 8, ACCUMULATE); *p += value; }

// What -fsanitize=thread calls.
#define ACCESS(size)                                                                  \
  void __tsan_read##size(void* p) { access(p, size, READ); }                          \
  void __tsan_write##size(void* p) { access(p, size, WRITE); }                        \
  void __tsan_unaligned_read##size(void* p) { access(p, size, READ); }                \
  void __tsan_unaligned_write##size(void* p) { access(p, size, WRITE); }              \
  void __tsan_volatile_read##size(void* p) { access(p, size, READ); }                 \
  void __tsan_volatile_write##size(void* p) { access(p, size, WRITE); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* p, unsigned long bytes) { access(p, bytes, READ); }
void __tsan_write_range(void* p, unsigned long bytes) { access(p, bytes, WRITE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  access(from, bytes, READ), access(to, bytes, WRITE);
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  access(to, bytes, WRITE);
  return memset(to, value, bytes);
}

// What -fsanitize=bounds,alignment calls.
struct Place { const char* file; u32 line, column; };
void __ubsan_handle_out_of_bounds(Place* place, u64 index) {
  fail("line %u: index %lld is out of the array's bounds", place->line, (long long)index);
}
void __ubsan_handle_type_mismatch_v1(Place* place, u64 address) {
  fail("line %u: address %#llx is null or not aligned for its type", place->line, address);
}
}

// Runs every block of a launch, in clusters of that many. 0, or 1 with a message in launch->error.
extern "C" int fuse_run(const FuseLaunch* what, void (*kernel)(const u64*), int cluster_blocks) {
  launch = what, body = kernel, failed = any_waited = false, last_range = nullptr, cluster = cluster_blocks;
  const u64 fixed = __stop_fuse_shared - __start_fuse_shared;
  if (what->threads == 0 || what->threads > MAX_THREADS || fixed > MAX_FIXED_SHARED || fixed + what->shared_bytes > MAX_SHARED) {
    snprintf(what->error, what->error_bytes, "kernel %s: %u threads, %llu bytes of SHARED and %u of shared_memory() are beyond a block (%u, %u, %u)",
             what->name, what->threads, fixed, what->shared_bytes, MAX_THREADS, MAX_FIXED_SHARED, MAX_SHARED - (u32)fixed);
    return 1;
  }
  if (cluster == 0 || cluster > MAX_CLUSTER || what->grid[0] % cluster) {
    snprintf(what->error, what->error_bytes, "kernel %s: clusters of %u blocks, at most %u, in a grid of %u", what->name, cluster, MAX_CLUSTER, what->grid[0]);
    return 1;
  }
  if (!make_room(*what->room, cluster, cluster * what->threads)) {
    snprintf(what->error, what->error_bytes, "kernel %s: no memory for %u blocks of %u threads", what->name, cluster, what->threads);
    return 1;
  }
  blocks = (Block*)what->room->memory, last_epoch = what->room->epoch;
  for (u32 i = 0; i < cluster * what->threads; i++)
    prepare(blocks[i / what->threads].threads + i % what->threads, what->room->memory + blocks_bytes(what->room->blocks) + i * STACK_ROOM);
  for (block.z = 0; block.z < what->grid[2] && !failed; block.z++)
    for (block.y = 0; block.y < what->grid[1] && !failed; block.y++)
      for (u32 x = 0; x < what->grid[0] && !failed; x += cluster) block.x = x, run_cluster();
  current = nullptr;
  what->room->epoch = last_epoch;
  if (!failed && !any_waited) {
    snprintf(what->error, what->error_bytes, "kernel %s ends without wait_for_dependencies: its end must imply the end of all before it", what->name);
    return 1;
  }
  return failed;
}
