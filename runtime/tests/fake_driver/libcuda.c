// A libcuda.so.1 without a GPU: memory is the host's, copies happen at once, kernels do not run. Every launch, graph and end of life is a
// line in the file FAKE_CUDA_TRACE, and misuse (a launch with no current context, a double free) is a line that starts with "MISUSE".
// A program that gives it hooks (fake_cuda_hooks) has kernels run by these. Where FAKE_CUDA_LATE is set, what goes into a stream happens on a thread of its
// own, later by up to that many microseconds.
//
// Kernels are what their name says (those of the compiler are any): "k3" takes three 8-byte parameters; "narrow" takes a 4-byte one; "absent" is not there.
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900 };

static void trace(const char* format, ...) {
    const char* path = getenv("FAKE_CUDA_TRACE");
    FILE* file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
}

static _Thread_local void* current;
static int context, live_streams, live_events, live_modules, live_graphs, live_buffers, live_pinned;

static int in_context(const char* call) {
    if (current != &context) trace("MISUSE: %s with no current context", call);
    return current == &context;
}

// ---- errors, device, context

Result cuGetErrorName(Result error, const char** name) {
    *name = error == OUT_OF_MEMORY   ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
            : error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
                                     : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}
Result cuGetErrorString(Result error, const char** text) {
    *text = error == OUT_OF_MEMORY   ? "out of memory"
            : error == NOT_FOUND     ? "named symbol not found"
            : error == LAUNCH_FAILED ? "unspecified launch failure"
                                     : "invalid argument";
    return SUCCESS;
}
Result cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
Result cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
Result cuDeviceGetName(char* name, int length, int device) { (void)device; return snprintf(name, length, "Fake 9000"), SUCCESS; }
// FAKE_CUDA_MAJOR: of the compute capability, where it is to be another one than 9.0.
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)device;
    const char* major = getenv("FAKE_CUDA_MAJOR");
    switch (attribute) {
        case 75: *value = major ? atoi(major) : 9; break; // compute capability, major
        case 76: *value = 0; break;                       // and minor
        case 16: *value = 132; break;      // multiprocessors
        case 38: *value = 50 << 20; break; // L2
        case 97: *value = 232448; break;   // shared memory a block may opt in to
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void** out, int device) { (void)device; return *out = &context, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    trace("context released, alive: %d streams, %d events, %d modules, %d graphs, %d buffers, %d pinned", live_streams, live_events,
          live_modules, live_graphs, live_buffers, live_pinned);
    return SUCCESS;
}
Result cuCtxSetCurrent(void* handle) { return current = handle, SUCCESS; }

// ---- what happens in a stream

enum { MOST_ARGUMENTS = 64 };
// A launch. first: of a step.
typedef struct { char name[160]; unsigned grid[3], threads, shared, first, count; uint64_t arguments[MOST_ARGUMENTS]; } Run;
typedef struct Work { enum { COPY, FILL, WORD, RUN, MARK } kind; void* to; const void* from; size_t size; int value; struct Work* next; Run run; } Work;

static struct { uint64_t (*allocate)(size_t); void (*release)(uint64_t); int (*run)(const Run*); } hooks;
void fake_cuda_hooks(uint64_t (*allocate)(size_t), void (*release)(uint64_t), int (*run)(const Run*)) {
    hooks.allocate = allocate, hooks.release = release, hooks.run = run;
}

// All streams are one queue, whose first is being done.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Work *first, *last;
static Result fault;

static void perform(const Work* work) {
    if (work->kind == COPY) memcpy(work->to, work->from, work->size);
    if (work->kind == FILL) memset(work->to, work->value, work->size);
    if (work->kind == WORD) *(int*)work->to = work->value;
    if (work->kind == RUN && hooks.run && !fault && hooks.run(&work->run)) fault = LAUNCH_FAILED;
    if (work->kind == MARK) __atomic_store_n((int*)work->to, 1, __ATOMIC_RELEASE);
}
static void* worker(void* most) {
    unsigned seed = 1;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!first) pthread_cond_wait(&changed, &lock);
        Work* work = first;
        pthread_mutex_unlock(&lock);
        if (work->kind != RUN || work->run.first) usleep(rand_r(&seed) % (unsigned)(size_t)most);
        perform(work);
        pthread_mutex_lock(&lock);
        first = work->next;
        if (!first) last = NULL;
        free(work);
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}
static void submit(Work work) {
    const char* late = getenv("FAKE_CUDA_LATE");
    if (!late) return perform(&work);
    static int started;
    Work* kept = malloc(sizeof(Work));
    *kept = work, kept->next = NULL;
    pthread_mutex_lock(&lock);
    if (last) last->next = kept;
    else first = kept;
    last = kept;
    pthread_t thread;
    if (!started++) pthread_create(&thread, NULL, worker, (void*)(size_t)(1 + atoi(late))), pthread_detach(thread);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}
static Result drain(void) {
    pthread_mutex_lock(&lock);
    while (first) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return fault;
}
static int busy(void) {
    pthread_mutex_lock(&lock);
    const int is = first != NULL;
    pthread_mutex_unlock(&lock);
    return is;
}

Result cuCtxSynchronize(void) { return in_context("cuCtxSynchronize") ? drain() : INVALID_VALUE; }

// ---- memory

// FAKE_CUDA_FREE: bytes of free memory, where they are to be few.
Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    const char* few = getenv("FAKE_CUDA_FREE");
    return *free_bytes = few ? (size_t)atoll(few) : 3u << 30, *total = 4ull << 30, SUCCESS;
}
Result cuMemAlloc_v2(uint64_t* pointer, size_t size) {
    if (!in_context("cuMemAlloc") || !size) return INVALID_VALUE;
    if (size > (3u << 30)) return OUT_OF_MEMORY;
    *pointer = hooks.allocate ? hooks.allocate(size) : (uint64_t)malloc(size);
    return memset((void*)*pointer, 0xcd, size), live_buffers++, SUCCESS;
}
static void release(uint64_t pointer) {
    drain();
    if (hooks.release) hooks.release(pointer);
    else free((void*)pointer);
}
Result cuMemFree_v2(uint64_t pointer) { return release(pointer), live_buffers--, SUCCESS; }
Result cuMemHostAlloc(void** pointer, size_t size, unsigned flags) {
    if (flags != 3) trace("MISUSE: pinned memory with flags %u", flags);
    *pointer = hooks.allocate ? (void*)hooks.allocate(size) : aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    return memset(*pointer, 0xcd, size), live_pinned++, SUCCESS;
}
Result cuMemFreeHost(void* pointer) { return release((uint64_t)pointer), live_pinned--, SUCCESS; }
Result cuMemHostGetDevicePointer_v2(uint64_t* device, void* host, unsigned flags) { return *device = (uint64_t)host, flags ? INVALID_VALUE : SUCCESS; }

typedef struct Stream { struct Graph* capture; } Stream;
static Result on_stream(Stream* stream, const char* call) {
    if (!stream) trace("MISUSE: %s on the default stream", call);
    return stream && in_context(call) ? SUCCESS : INVALID_VALUE;
}
static Result copy(void* to, const void* from, size_t size, Stream* s, const char* call) {
    return submit((Work){.kind = COPY, .to = to, .from = from, .size = size}), on_stream(s, call);
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, Stream* s) { return copy((void*)to, from, size, s, "cuMemcpyHtoDAsync"); }
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, Stream* s) { return copy(to, (void*)from, size, s, "cuMemcpyDtoHAsync"); }
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, Stream* s) { return copy((void*)to, (void*)from, size, s, "cuMemcpyDtoDAsync"); }
Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, Stream* s) {
    trace("fill %zu bytes with %d", size, value);
    return submit((Work){.kind = FILL, .to = (void*)to, .value = value, .size = size}), on_stream(s, "cuMemsetD8Async");
}
Result cuMemsetD32Async(uint64_t to, unsigned value, size_t count, Stream* s) {
    if (count != 1 || to % 4) trace("MISUSE: %zu words at %llu", count, (unsigned long long)to);
    return submit((Work){.kind = WORD, .to = (void*)to, .value = (int)value}), on_stream(s, "cuMemsetD32Async");
}

// ---- modules and kernels

typedef struct { char name[160]; int shared_limit; } Function;
typedef struct { Function functions[16]; int count; } Module;

Result cuModuleLoadData(Module** module, const void* image) {
    if (!in_context("cuModuleLoadData") || memcmp(image, "\x7f" "ELF", 4)) return INVALID_VALUE;
    return *module = calloc(1, sizeof(Module)), live_modules++, SUCCESS;
}
Result cuModuleUnload(Module* module) { return free(module), live_modules--, SUCCESS; }
Result cuModuleGetFunction(Function** function, Module* module, const char* name) {
    if (!strcmp(name, "absent")) return NOT_FOUND;
    for (int i = 0; i < module->count; i++) {
        *function = &module->functions[i];
        if (!strcmp((*function)->name, name)) return SUCCESS;
    }
    *function = &module->functions[module->count++];
    (*function)->shared_limit = 49152;
    return snprintf((*function)->name, sizeof (*function)->name, "%s", name), SUCCESS;
}
Result cuFuncLoad(Function* function) { return function ? SUCCESS : INVALID_VALUE; }
// The arguments that are traced. Of a kernel of the compiler's, which has another name, every parameter that is asked for is there.
static int own(const Function* function) { return function->name[0] == 'k' && atoi(function->name + 1) > 0; }
static size_t parameters(const Function* function) { return own(function) ? (size_t)atoi(function->name + 1) : !strcmp(function->name, "narrow"); }
Result cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* size) {
    if (index >= parameters(function) && (own(function) || parameters(function))) return trace("MISUSE: parameter %zu of %s", index, function->name), INVALID_VALUE;
    return *offset = index * 8, *size = strcmp(function->name, "narrow") ? 8 : 4, SUCCESS;
}
Result cuFuncGetAttribute(int* value, int attribute, Function* function) { return *value = attribute == 8 ? function->shared_limit : attribute, SUCCESS; }
Result cuFuncSetAttribute(Function* function, int attribute, int value) {
    trace("%s: attribute %d = %d", function->name, attribute, value);
    if (attribute == 8 && value > 232448) return INVALID_VALUE;
    if (attribute == 8) function->shared_limit = value;
    return SUCCESS;
}

// ---- streams, events, launches, graphs

typedef struct Graph { int nodes, kernels; unsigned char programmatic[64]; char lines[64][400]; Run runs[64]; } Graph;
typedef struct { uint32_t id; char pad[4]; union { char pad[64]; uint32_t words[16]; } value; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; Stream* stream; Attribute* attributes; unsigned count; } Launch;
typedef struct { unsigned char from_port, to_port, type, reserved[5]; } EdgeData;

Result cuStreamCreate(Stream** stream, unsigned flags) {
    if (flags != 1) trace("MISUSE: a stream that waits for the default one");
    return *stream = calloc(1, sizeof(Stream)), live_streams++, SUCCESS;
}
Result cuStreamDestroy_v2(Stream* stream) { return drain(), free(stream), live_streams--, SUCCESS; }
Result cuStreamSynchronize(Stream* stream) {
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    const Result done = drain();
    return done ? done : on_stream(stream, "cuStreamSynchronize");
}
Result cuStreamQuery(Stream* stream) { return busy() ? NOT_READY : fault ? fault : on_stream(stream, "cuStreamQuery"); }
Result cuStreamWaitEvent(Stream* stream, void* event, unsigned flags) { (void)event; return flags ? INVALID_VALUE : on_stream(stream, "cuStreamWaitEvent"); }
Result cuEventCreate(void** event, unsigned flags) { return *event = malloc(sizeof(int)), *(int*)*event = 1, live_events++, flags ? INVALID_VALUE : SUCCESS; }
Result cuEventDestroy_v2(void* event) { return drain(), free(event), live_events--, SUCCESS; }
Result cuEventRecord(void* event, Stream* stream) {
    __atomic_store_n((int*)event, 0, __ATOMIC_RELEASE);
    return submit((Work){.kind = MARK, .to = event}), on_stream(stream, "cuEventRecord");
}
Result cuEventQuery(void* event) { return __atomic_load_n((int*)event, __ATOMIC_ACQUIRE) ? fault : NOT_READY; }
Result cuEventSynchronize(void* event) {
    while (cuEventQuery(event) == NOT_READY) usleep(20);
    return fault;
}
Result cuEventElapsedTime_v2(float* ms, void* from, void* to) { return *ms = 1.5f, cuEventQuery(from) || cuEventQuery(to); }

Result cuLaunchKernelEx(const Launch* launch, Function* function, void** arguments, void** extra) {
    if (extra || on_stream(launch->stream, "cuLaunchKernelEx")) return INVALID_VALUE;
    Run run = {.grid = {launch->grid[0], launch->grid[1], launch->grid[2]}, .threads = launch->block[0], .shared = launch->shared};
    snprintf(run.name, sizeof run.name, "%s", function->name);
    for (; run.count < MOST_ARGUMENTS && arguments[run.count]; run.count++) run.arguments[run.count] = *(uint64_t*)arguments[run.count];
    char line[400];
    int at = snprintf(line, sizeof line, "%s grid %u,%u,%u block %u,%u,%u shared %u args", function->name, launch->grid[0], launch->grid[1],
                      launch->grid[2], launch->block[0], launch->block[1], launch->block[2], launch->shared);
    for (size_t i = 0; i < parameters(function); i++) at += snprintf(line + at, sizeof line - at, " %llu", *(unsigned long long*)arguments[i]);
    int programmatic = 0;
    for (unsigned i = 0; i < launch->count; i++) {
        const Attribute* attribute = &launch->attributes[i];
        const uint32_t* value = attribute->value.words;
        programmatic |= attribute->id == 6 && value[0];
        if (attribute->id == 6) at += snprintf(line + at, sizeof line - at, " programmatic %u", value[0]);
        if (attribute->id == 4) at += snprintf(line + at, sizeof line - at, " cluster %u,%u,%u", value[0], value[1], value[2]);
        if (attribute->id == 2) at += snprintf(line + at, sizeof line - at, " cooperative %u", value[0]);
    }
    Graph* graph = launch->stream->capture;
    run.first = !graph || !graph->nodes;
    if (!graph) return trace("run %s", line), submit((Work){.kind = RUN, .run = run}), SUCCESS;
    graph->programmatic[graph->nodes] = programmatic, graph->runs[graph->nodes] = run;
    return snprintf(graph->lines[graph->nodes++], sizeof graph->lines[0], "%s", line), SUCCESS;
}
Result cuStreamBeginCapture_v2(Stream* stream, int mode) {
    if (mode != 1) trace("MISUSE: capture mode %d", mode);
    return stream->capture = calloc(1, sizeof(Graph)), live_graphs++, SUCCESS;
}
Result cuStreamEndCapture(Stream* stream, Graph** graph) { return *graph = stream->capture, stream->capture = NULL, *graph ? SUCCESS : INVALID_VALUE; }
Result cuGraphDestroy(Graph* graph) { return free(graph), live_graphs--, SUCCESS; }
Result cuGraphGetNodes(Graph* graph, void** nodes, size_t* count) {
    for (int i = 0; nodes && i < graph->nodes; i++) nodes[i] = graph->lines[i];
    return *count = graph->nodes, SUCCESS;
}
Result cuGraphNodeGetType(void* node, int* type) { return *type = 0, node ? SUCCESS : INVALID_VALUE; }
Result cuGraphGetEdges_v2(Graph* graph, void** from, void** to, EdgeData* data, size_t* count) {
    *count = graph->nodes ? graph->nodes - 1 : 0;
    for (size_t i = 0; data && i < *count; i++) from[i] = graph->lines[i], to[i] = graph->lines[i + 1], data[i].type = graph->programmatic[i + 1];
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long flags) {
    *exec = malloc(sizeof(Graph));
    return **exec = *graph, live_graphs++, flags ? INVALID_VALUE : SUCCESS;
}
Result cuGraphUpload(Graph* exec, Stream* stream) { return exec ? on_stream(stream, "cuGraphUpload") : INVALID_VALUE; }
Result cuGraphExecDestroy(Graph* exec) { return drain(), free(exec), live_graphs--, SUCCESS; }
Result cuGraphLaunch(Graph* exec, Stream* stream) {
    if (!live_modules) trace("MISUSE: a graph whose module is unloaded");
    for (int i = 0; i < exec->nodes; i++) trace("replay %s", exec->lines[i]), submit((Work){.kind = RUN, .run = exec->runs[i]});
    return on_stream(stream, "cuGraphLaunch");
}
