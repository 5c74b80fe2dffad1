// Kernels for device_smoke.rs. Every parameter is 8 bytes wide.

__device__ __forceinline__ void wait_for_dependencies() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// y = 2 x
extern "C" __global__ void double_it(const float* x, float* y, unsigned long long count) {
    launch_dependents();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    float value = i < count ? x[i] : 0.0f;
    wait_for_dependencies();  // the kernels of the run before read y
    if (i < count) y[i] = 2.0f * value;
}

// y = y + 1
extern "C" __global__ void add_one(float* y, unsigned long long count) {
    launch_dependents();
    wait_for_dependencies();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] += 1.0f;
}

// ring[position] = y[position]; position += 1
extern "C" __global__ void append(const float* y, unsigned* position, volatile unsigned* ring) {
    launch_dependents();
    wait_for_dependencies();
    if (threadIdx.x == 0) {
        unsigned at = *position;
        ring[at] = (unsigned)y[at];
        __threadfence_system();
        *position = at + 1;
    }
}

// y[i] = i + 0.5, carried through the far end of the dynamic shared memory
extern "C" __global__ void through_shared(float* y, unsigned long long shared_bytes) {
    extern __shared__ float tile[];
    float* far = tile + shared_bytes / 4 - blockDim.x;
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    far[blockDim.x - 1 - threadIdx.x] = i + 0.5f;
    __syncthreads();
    y[i] = far[blockDim.x - 1 - threadIdx.x];
}

// Reads everything once, 16 bytes a load; the sum only keeps the loads alive.
extern "C" __global__ void read_all(const uint4* data, unsigned long long count, unsigned* sink) {
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned sum = 0;
    #pragma unroll 8
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        uint4 v = data[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345678u) *sink = sum;
}
