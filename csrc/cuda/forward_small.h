// Linear's forward for few vectors: y = x W^T, where making the weights takes most of the time.
//
// A block has GROUPS groups of four warps. It converts its part of k of x to the second operand in shared memory, and its
// groups make the weights of `tiles` times 64 rows in registers and multiply: each group a tile, and its share of the
// steps of k where there are more groups than tiles. The blocks of a cluster share k, and each converts its part of x.
// The groups' sums, exact integers, are added through the shared memory of the cluster.
#pragma once

#include "cuda/kept.h"
#include "cuda/planes.h"

namespace slt::cuda {

constexpr int GROUP_THREADS = 128, GROUP_ROWS = 64;
constexpr int MOST_VECTORS = 64;

// The beginning of shared memory; the second operand follows.
struct Shared {
    uint32_t largest[MOST_VECTORS];  // the largest magnitude in the block's part of each vector, as bits
    float2 up[MOST_VECTORS];         // of FixedPoint
    double power[MOST_VECTORS];
    NormalTable table;
};

__device__ __forceinline__ void block_barrier(int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return cluster_barrier();
#endif
    __syncthreads();
}

// A variable of shared memory in block `rank` of the cluster.
__device__ __forceinline__ uint32_t read_block(const uint32_t &variable, int rank, int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return load_cluster_u32(address_in_block(shared_address(&variable), rank));
#endif
    return variable;
}

__device__ __forceinline__ int64_t read_block(const int64_t &variable, int rank, int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return load_cluster_s64(address_in_block(shared_address(&variable), rank));
#endif
    return variable;
}

// Registers that are computed before products that read them, or after products that wrote them.
template <int N>
__device__ __forceinline__ void pin(uint32_t (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(int (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

__device__ __forceinline__ int64_t add_over_row(int64_t sum) {
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
    return sum + __shfl_xor_sync(0xFFFFFFFF, sum, 2);
}

// Signed weights by bit planes: K and its negative weights are first operands as they are, and
// S = sum over planes of 2^b (popcount(K & X_b) - 2 popcount(negative & X_b)), the top plane negative.
template <int TILES, int VECTORS>
class SignBits {
  public:
    static constexpr int ALL_TILES = TILES * VECTORS, LEAD = 128 * ALL_TILES;
    typedef PlaneOrder<TILES, LEAD> Order;

    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &, const ThreadRows &rows, int call,
                                        const KeptWords &words, uint32_t operand) {
        uint32_t k[8], s[8];
        const Words4 signs[2] = {call_words(a.generator.weight, call_index(a, rows, 0, call)),
                                 call_words(a.generator.weight, call_index(a, rows, 1, call))};
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();  // the last products may read the registers that are written next
#endif
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            k[i] = both_after(words[i % 2][i / 2], 0xFFFFFFFF);
            s[i] = both_after(signs[i % 2].word[i / 2], words[i % 2][i / 2]);
        }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        begin_products();
        const uint64_t first = operand_descriptor(operand, LEAD), second = first + (2 * LEAD >> 4);
        multiply_bits_async<8 * ALL_TILES>(kept, k, first);
        multiply_bits_async<8 * ALL_TILES>(kept, k + 4, second);
        multiply_bits_async<8 * ALL_TILES>(negative, s, first);
        multiply_bits_async<8 * ALL_TILES>(negative, s + 4, second);
        commit_products();
#else
        const int lane = threadIdx.x % 32;
        operand += lane / 8 * LEAD + lane % 8 * 16;
#pragma unroll
        for (int tile = 0; tile < ALL_TILES; ++tile) {
            uint32_t b[4];
            load_matrices(b, operand + tile * 128);
            multiply_bits(kept + 4 * tile, k, b[0], b[1]);
            multiply_bits(negative + 4 * tile, s, b[0], b[1]);
            multiply_bits(kept + 4 * tile, k + 4, b[2], b[3]);
            multiply_bits(negative + 4 * tile, s + 4, b[2], b[3]);
        }
#endif
    }

    static __device__ __forceinline__ void prepare(const ForwardSmall &, Shared &) {}

    // Calls write(row of the group, vector, sum) for each sum, in one thread.
    template <class Write>
    __device__ __forceinline__ void finish(const ForwardSmall &a, Write write) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();
        pin(kept);
        pin(negative);
#endif
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int64_t sum = 0;
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    const int at = 4 * (v * TILES + tile) + 2 * r;
                    const int64_t low = kept[at] - 2 * negative[at];
                    const int64_t high = 4 * int64_t(kept[at + 1] - 2 * negative[at + 1]);
                    const bool top = tile == TILES - 1 && t == 3;
                    sum += (top ? low - high : low + high) << plane_shift(tile, t);
                }
                sum = add_over_row(sum);
                if (t == 0 && v < a.batch) write(row + 8 * r, v, sum);
            }
        }
    }

  private:
    int kept[4 * ALL_TILES] = {}, negative[4 * ALL_TILES] = {};
};

// Products of bytes with the digits of x.
template <int COLUMNS, bool BYTES>
class DigitSums {
  public:
    static constexpr int LEAD = 16 * COLUMNS + 16;  // not a multiple of 128, so that a warp's stores meet no bank twice
    typedef DigitOrder<BYTES, LEAD> Order;

    // Adds 128 products a row: of the quads of one word in each of four calls.
    __device__ __forceinline__ void multiply(uint32_t (&quads)[16], uint32_t operand) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        pin(quads);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j)
            multiply_bytes_async<COLUMNS>(sums, quads + 4 * j, operand_descriptor(operand + 2 * j * LEAD, LEAD));
        commit_products();
        if constexpr (!BYTES) wait_for_products<1>();
#else
        const int lane = threadIdx.x % 32;
        operand += lane / 8 * LEAD + lane % 8 * 16;
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
#pragma unroll
            for (int tile = 0; tile < COLUMNS / 8; ++tile) {
                uint32_t b[4];
                load_matrices(b, operand + 2 * j * LEAD + tile * 128);
                multiply_bytes(sums + 4 * tile, quads + 4 * j, b[0], b[1]);
                multiply_bytes(sums + 4 * tile, quads + 4 * j + 4, b[2], b[3]);
            }
        }
#endif
    }

    template <class Write>
    __device__ __forceinline__ void finish(const ForwardSmall &a, Write write) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();
        pin(sums);
#endif
        constexpr int factor = BYTES ? 0 : 6;  // of coded weights: 2^6
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
        for (int tile = 0; tile < COLUMNS / 8; ++tile) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int64_t low = sums[4 * tile + 2 * r], high = int64_t(sums[4 * tile + 2 * r + 1]) * 256;
                if (a.digits == 2) {
                    const int v = tile * 4 + t;
                    if (v < a.batch) write(row + 8 * r, v, (low + high) >> factor);
                } else {
                    const int v = tile * 2 + t / 2;
                    int64_t sum = t % 2 ? low << 16 : low + high;
                    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
                    if (t % 2 == 0 && v < a.batch) write(row + 8 * r, v, sum >> factor);
                }
            }
        }
    }

  private:
    int sums[COLUMNS / 2] = {};
};

// Signed weights as bytes of 64 v, cut from fields of two bits, sign above kept: of even bits and of odd ones.
template <int COLUMNS>
class SignDigits : public DigitSums<COLUMNS, false> {
  public:
    static __device__ __forceinline__ void prepare(const ForwardSmall &, Shared &) {}

    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &, const ThreadRows &rows, int call,
                                        const KeptWords &words, uint32_t operand) {
        constexpr int CHOOSE = (0xF0 & 0xAA) | (0xCC & ~0xAA & 0xFF);  // a where c, else b
        constexpr uint32_t UPPER = 0xAAAAAAAA, FIELDS = 0xC0C0C0C0;
        const Words4 signs[2] = {call_words(a.generator.weight, call_index(a, rows, 0, call)),
                                 call_words(a.generator.weight, call_index(a, rows, 1, call))};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            uint32_t quads[16];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t k = words[r][w], s = k & signs[r].word[w];
                const uint32_t even = logic<CHOOSE>(s << 1, k, UPPER), odd = logic<CHOOSE>(s, k >> 1, UPPER);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    quads[4 * j + r] = even << (6 - 2 * j) & FIELDS;
                    quads[4 * j + 2 + r] = odd << (6 - 2 * j) & FIELDS;
                }
            }
            this->multiply(quads, operand + w * 8 * this->LEAD);
        }
    }
};

// Weights that are bytes of VALUE, or of the table of NORMAL.
template <int COLUMNS>
class ByteDigits : public DigitSums<COLUMNS, true> {
  public:
    static __device__ __forceinline__ void prepare(const ForwardSmall &a, Shared &shared) {
        shared.table.fill(a.generator);
    }

    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &shared, const ThreadRows &rows, int call,
                                        const KeptWords &words, uint32_t operand) {
#pragma unroll 1
        for (int w = 0; w < 4; ++w) {
            uint32_t quads[16];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint64_t index = 8 * call_index(a, rows, r, call) + 2 * w;
                const Words4 values[2] = {call_words(a.generator.weight, index), call_words(a.generator.weight, index + 1)};
#pragma unroll
                for (int m = 0; m < 8; ++m) {
                    const uint32_t bytes = values[m / 4].word[m % 4];
                    quads[place(m, r)] = four_values(a.generator.source.weight, bytes, shared.table);
                }
            }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
            wait_for_products<0>();  // the last products may read the registers that are written next
            pin(quads);
#endif
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t k = w == 0 ? words[r][0] : w == 1 ? words[r][1] : w == 2 ? words[r][2] : words[r][3];
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // bits 2 m, 16 + 2 m, 2 m + 1 and 17 + 2 m are those of the bytes of quad m
                    const uint32_t first = k << (7 - 2 * i), second = k << (6 - 2 * i);
                    quads[place(i, r)] &= bytes_of(first, second, 0xECA8);
                    quads[place(i + 4, r)] &= bytes_of(first, second, 0xFDB9);
                }
            }
            this->multiply(quads, operand + w * 8 * this->LEAD);
        }
    }

  private:
    // Quad m of row g + 8 r among the registers of four products.
    static __device__ __forceinline__ constexpr int place(int m, int r) { return 4 * (m / 2) + m % 2 * 2 + r; }
};

__device__ __forceinline__ void store_output(const ForwardSmall &a, int64_t at, float y) {
    if (a.element == FLOAT32) {
        static_cast<float *>(a.y)[at] = y;
    } else {
        uint16_t bits;
        if (a.element == BFLOAT16)
            asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(y));
        else
            asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(y));
        static_cast<uint16_t *>(a.y)[at] = bits;
    }
}

template <class Weights, class Kept, int GROUPS>
__device__ __forceinline__ void forward_small(const ForwardSmall &a) {
    constexpr int THREADS = GROUPS * GROUP_THREADS, WARPS = THREADS / 32;
    extern __shared__ __align__(128) char memory[];
    typedef typename Weights::Order Order;
    Shared &shared = *reinterpret_cast<Shared *>(memory);
    const uint32_t operand = shared_address(memory + sizeof(Shared));
    const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);  // so that it is known to be the same in all lanes
    const int lane = threadIdx.x % 32, group = warp / 4, parts = GROUPS / a.tiles;
    const int rank = blockIdx.x % a.cluster;
    const uint32_t block_row = blockIdx.x / a.cluster * a.tiles * GROUP_ROWS;
    const int first_step = min(rank * a.block_steps, a.steps), last_step = min(first_step + a.block_steps, a.steps);

    // The first words of the mask are on their way while x is converted.
    const ThreadRows rows(a.generator, block_row + group % a.tiles * GROUP_ROWS + warp % 4 * 16 + lane / 4);
    Kept kept;
    int step = first_step + group / a.tiles;
    kept.read(a, rows, step * STEP_CALLS + lane % 4);

    if (threadIdx.x < MOST_VECTORS) shared.largest[threadIdx.x] = 0;
    Weights::prepare(a, shared);
    __syncthreads();
#pragma unroll 1
    for (int task = warp; task < (last_step - first_step) * a.batch; task += WARPS) {
        const int vector = task % a.batch;
        float values[STEP_CALLS][4];
        load_step(values, a, vector, first_step + task / a.batch, lane);
        const uint32_t largest = largest_of(values);
        if (lane == 0) atomicMax(&shared.largest[vector], largest);
    }
    block_barrier(a.cluster);
    if (threadIdx.x < a.batch) {
        uint32_t largest = 0;
#pragma unroll 1
        for (int i = 0; i < a.cluster; ++i)
            largest = max(largest, read_block(shared.largest[threadIdx.x], i, a.cluster));
        const FixedPoint fixed = fixed_point(largest, a.digits);
        shared.up[threadIdx.x] = make_float2(fixed.up, fixed.up_again);
        shared.power[threadIdx.x] = fixed.power;
    }

    Weights weights;
#pragma unroll 1
    for (int chunk = first_step; chunk < last_step; chunk += a.chunk_steps) {
        __syncthreads();
        const int end = min(chunk + a.chunk_steps, last_step);
#pragma unroll 1
        for (int task = warp; task < (end - chunk) * a.batch; task += WARPS) {
            const int vector = task % a.batch, at = task / a.batch;
            float values[STEP_CALLS][4];
            load_step(values, a, vector, chunk + at, lane);
            Order::write(values, shared.up[vector], vector, a.digits, lane, operand + at * Order::STEP_BYTES);
        }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        fence_for_products();
#endif
        __syncthreads();
#pragma unroll 1
        for (; step < end; step += parts) {
            const int call = step * STEP_CALLS + lane % 4;
            KeptWords words;
            kept.take(a, rows, call, call + parts * STEP_CALLS, words);
            weights.add(a, shared, rows, call, words, operand + (step - chunk) * Order::STEP_BYTES);
        }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();
#endif
    }

    // Sums of each group [vector][row], where the operand was.
    int64_t *sums = reinterpret_cast<int64_t *>(memory + sizeof(Shared));
    __syncthreads();
    weights.finish(a, [&](int row, int v, int64_t sum) { sums[(group * a.batch + v) * GROUP_ROWS + row] = sum; });
    block_barrier(a.cluster);
    const int block_rows = a.tiles * GROUP_ROWS;
    const float scale = *a.scale;
#pragma unroll 1
    for (int i = rank * THREADS + threadIdx.x; i < block_rows * a.batch; i += a.cluster * THREADS) {
        const int v = i / block_rows, row = i % block_rows;
        if (block_row + row >= a.generator.rows) continue;
        int64_t sum = 0;
#pragma unroll 1
        for (int block = 0; block < a.cluster; ++block)
            for (int part = 0; part < parts; ++part) {
                const int from = part * a.tiles + row / GROUP_ROWS;
                sum += read_block(sums[(from * a.batch + v) * GROUP_ROWS + row % GROUP_ROWS], block, a.cluster);
            }
        float y = rounded_sum(sum, shared.power[v], scale);
        if (a.bias != nullptr) y = __fadd_rn(y, a.bias[block_row + row]);
        store_output(a, uint64_t(v) * a.generator.rows + block_row + row, y);
    }
    if (a.cluster > 1) block_barrier(a.cluster);  // a block's memory lasts until the others have read it
}

}  // namespace slt::cuda
