// The rates of a GPU's pipes that the CUDA kernels depend on: prints JSON, instructions of a warp (of a warpgroup, for
// wgmma) per clock and multiprocessor.
//
//     nvcc -std=c++20 -I csrc -gencode arch=compute_90a,code=sm_90a bench/gpu_rates.cu -o gpu_rates && ./gpu_rates
//
// A block of 1024 threads has chains of one instruction on one multiprocessor. Not yet run.
#include <algorithm>
#include <cstdio>

#include "cuda/ptx.h"

using namespace slt::cuda;

constexpr int CHAINS = 8, UNROLLED = 8, ROUNDS = 256;

struct WideProduct {
    static constexpr const char *NAME = "IMAD.WIDE";
    static __device__ void step(uint32_t &v) {
        asm volatile("{ .reg .u64 p; mul.wide.u32 p, %0, 0xD2511F53; mov.b64 {_, %0}, p; }" : "+r"(v));
    }
};
struct Product {
    static constexpr const char *NAME = "IMAD";
    static __device__ void step(uint32_t &v) { asm volatile("mad.lo.u32 %0, %0, 0xCD9E8D57, %0;" : "+r"(v)); }
};
struct Logic {
    static constexpr const char *NAME = "LOP3";
    static __device__ void step(uint32_t &v) { asm volatile("lop3.b32 %0, %0, 0x5A5A5A5A, %0, 0x6A;" : "+r"(v)); }
};
struct Shift {
    static constexpr const char *NAME = "SHF";
    static __device__ void step(uint32_t &v) { asm volatile("shf.l.wrap.b32 %0, %0, %0, 5;" : "+r"(v)); }
};
struct Permutation {
    static constexpr const char *NAME = "PRMT";
    static __device__ void step(uint32_t &v) { asm volatile("prmt.b32 %0, %0, %0, 0x2103;" : "+r"(v)); }
};
struct Count {
    static constexpr const char *NAME = "POPC";
    static __device__ void step(uint32_t &v) { asm volatile("popc.b32 %0, %0;" : "+r"(v)); }
};
// Alternating: whether two pipes issue side by side.
template <class A, class B>
struct Both {
    static constexpr const char *NAME = nullptr;
    static __device__ void step(uint32_t &v) {
        A::step(v);
        B::step(v);
    }
};

template <class Instruction>
__global__ void chains(uint32_t *out, long long *clocks, uint32_t seed) {
    uint32_t v[CHAINS];
    for (int c = 0; c < CHAINS; ++c) v[c] = seed + threadIdx.x * CHAINS + c;
    __syncthreads();
    const long long start = clock64();
#pragma unroll 1
    for (int round = 0; round < ROUNDS; ++round)
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
#pragma unroll
            for (int c = 0; c < CHAINS; ++c) Instruction::step(v[c]);
    __syncthreads();
    const long long end = clock64();
    if (threadIdx.x == 0) *clocks = end - start;
    for (int c = 0; c < CHAINS; ++c) out[threadIdx.x] ^= v[c];
}

// Products of a warp: of bits, or of bytes.
template <bool BITS>
__global__ void warp_products(uint32_t *out, long long *clocks, uint32_t seed) {
    uint32_t a[4] = {seed, seed + 1, threadIdx.x, seed};
    int d[CHAINS][4] = {};
    __syncthreads();
    const long long start = clock64();
#pragma unroll 1
    for (int round = 0; round < ROUNDS; ++round)
#pragma unroll
        for (int c = 0; c < CHAINS; ++c)
            BITS ? multiply_bits(d[c], a, a[0], a[1]) : multiply_bytes(d[c], a, a[0], a[1]);
    __syncthreads();
    const long long end = clock64();
    if (threadIdx.x == 0) *clocks = end - start;
    for (int c = 0; c < CHAINS; ++c) out[threadIdx.x] ^= d[c][0] ^ d[c][1] ^ d[c][2] ^ d[c][3];
}

// Products of warpgroups with the first operand in registers, by columns. The second operand is never written: it may
// hold anything.
template <int N, bool BITS>
__global__ void __launch_bounds__(512, 1) group_products(uint32_t *out, long long *clocks, uint32_t seed) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t operand[];
    uint32_t a[4] = {seed, seed + 1, threadIdx.x, seed};
    int d[N / 2] = {};
    const uint64_t b = swizzled_descriptor(shared_address(operand));
    __syncthreads();
    const long long start = clock64();
#pragma unroll 1
    for (int round = 0; round < ROUNDS; ++round) {
        begin_products();
#pragma unroll
        for (int c = 0; c < CHAINS; ++c)
            BITS ? multiply_bits_async<N>(d, a, b) : multiply_bytes_async<N>(d, a, b);
        commit_products();
        wait_for_products<0>();
    }
    __syncthreads();
    const long long end = clock64();
    if (threadIdx.x == 0) *clocks = end - start;
    for (int i = 0; i < N / 2; ++i) out[threadIdx.x] ^= d[i];
#endif
}

uint32_t *out;
long long *clocks;
bool first = true;

// `count`: instructions of a warp, or of a warpgroup, in one launch.
template <class Launch>
void measure(const char *name, double count, Launch launch) {
    long long best = 1LL << 62, found;
    for (int i = 0; i < 4; ++i) {
        launch();
        if (cudaMemcpy(&found, clocks, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess) {
            std::fprintf(stderr, "%s: %s\n", name, cudaGetErrorString(cudaGetLastError()));
            std::exit(1);
        }
        best = std::min(best, found);
    }
    std::printf("%s\"%s\": %.4f", first ? "{" : ", ", name, count / double(best));
    first = false;
}

template <class Instruction>
void chains_of(const char *name, int each = 1) {
    measure(name, 32.0 * ROUNDS * UNROLLED * CHAINS * each, [] { chains<Instruction><<<1, 1024>>>(out, clocks, 7); });
}

template <int N, bool BITS>
void group_products_of(const char *name) {
    measure(name, 4.0 * ROUNDS * CHAINS, [] { group_products<N, BITS><<<1, 512, 32768>>>(out, clocks, 7); });
}

int main() {
    cudaMalloc(&out, 4096);
    cudaMalloc(&clocks, 8);
    chains_of<WideProduct>("IMAD.WIDE");
    chains_of<Product>("IMAD");
    chains_of<Logic>("LOP3");
    chains_of<Shift>("SHF");
    chains_of<Permutation>("PRMT");
    chains_of<Count>("POPC");
    chains_of<Both<WideProduct, Logic>>("IMAD.WIDE and LOP3", 2);
    chains_of<Both<Product, Logic>>("IMAD and LOP3", 2);
    measure("BMMA.168256", 32.0 * ROUNDS * CHAINS, [] { warp_products<true><<<1, 1024>>>(out, clocks, 7); });
    measure("IMMA.16832", 32.0 * ROUNDS * CHAINS, [] { warp_products<false><<<1, 1024>>>(out, clocks, 7); });
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (major == 9) {
        group_products_of<8, true>("BGMMA.64x8x256");
        group_products_of<16, true>("BGMMA.64x16x256");
        group_products_of<24, true>("BGMMA.64x24x256");
        group_products_of<32, true>("BGMMA.64x32x256");
        group_products_of<64, true>("BGMMA.64x64x256");
        group_products_of<128, true>("BGMMA.64x128x256");
        group_products_of<8, false>("IGMMA.64x8x32");
        group_products_of<16, false>("IGMMA.64x16x32");
        group_products_of<32, false>("IGMMA.64x32x32");
        group_products_of<64, false>("IGMMA.64x64x32");
        group_products_of<128, false>("IGMMA.64x128x32");
    }
    std::printf("}\n");
}
