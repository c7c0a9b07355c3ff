// Grad_input of Linear and Conv2d: dx^T = W^T dy^T.
//
// A tile has some words of k, or channels, of a group, and some columns, which are pixels of dx. The sum is over the
// rows of the group at each tap of the window, in steps of 128 summands.
//
// On sm_90a a block has a warpgroup of producers, which make the weights of a step and copy its dy, and two warpgroups
// of consumers, which multiply (wgmma). They share a ring of stages, as in product.h, and a block goes through tiles.
// After the steps of a tile comes a stage that producers leave empty: by way of it, consumers store their sums.
//
// Elsewhere a block has one tile, and its warps do everything: in a step they multiply (mma.sync), copy dy for a later
// one, and make the weights of the next.
#pragma once

#include "contract/fixed_point.h"
#include "cuda/grad_input_operands.h"
#include "cuda/grad_input_output.h"
#include "cuda/grad_input_patches.h"
#include "cuda/ring_products.h"

#include <utility>

namespace slt::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int GRAD_BLOCK_THREADS = GRAD_MAKERS + GRAD_THREADS;

// In shared memory, after the stages.
template <int COLUMNS>
struct GradShared {
    Ring<GRAD_MAKERS, GRAD_THREADS>::Barriers barriers;
    NormalTable table;
    uint32_t number[GRAD_THREADS / 32];  // of each consumer warp's tile
    GradPixel columns[COLUMNS];
};

// WORDS: of a tile. A consumer warpgroup has two of them, and all columns or half of them.
template <class Weights, int WORDS, int COLUMNS>
class GradInputKernel {
    static constexpr int K = WORDS * int(WORD), SPAN = COLUMNS * WORDS / 4;  // SPAN: columns of a warpgroup

  public:
    static __device__ __forceinline__ void run(const GradInput &a) {
        extern __shared__ __align__(1024) char memory[];
        GradShared<COLUMNS> &shared = *reinterpret_cast<GradShared<COLUMNS> *>(memory + a.stages * STAGE);
        shared.table.fill(a.generator);
        Stages ring(shared.barriers, a.stages);
        __syncthreads();
        // So that it is known to be the same in all lanes.
        const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);
        if (warp < GRAD_MAKERS / 32) {
            give_registers<PRODUCER_REGISTERS>();
            produce(a, shared, ring, shared_address(memory));
        } else {
            take_registers<CONSUMER_REGISTERS>();
            consume(a, shared, ring, memory);
        }
    }

  private:
    typedef Ring<GRAD_MAKERS, GRAD_THREADS> Stages;
    typedef GradPatches<COLUMNS, Weights::LINES, Weights::SIZE> Patches;
    typedef typename Weights::Maker Maker;
    typedef typename Weights::Sum Sum;
    static constexpr int SUMS = Weights::SUMS;
    typedef decltype(Weights::total(std::declval<const Sum(&)[SUMS]>())) Total;
    static constexpr int PRODUCER_REGISTERS = 104, CONSUMER_REGISTERS = 200;  // of 168 for all at first
    static constexpr int STAGE = Patches::BYTES + int(ceil_div(Maker::BYTES, 1024)) * 1024;
    static constexpr int CONSUMER_BARRIER = 14;

    static __device__ __forceinline__ void produce(const GradInput &a, GradShared<COLUMNS> &shared, Stages &ring,
                                                   uint32_t stages) {
        int filled = -1;  // the stage whose copies are under way
#pragma unroll 1
        for (uint32_t number = blockIdx.x; number < a.tiles; number += gridDim.x) {
            const GradTile tile(a, number, WORDS, COLUMNS);
            const Patches patches(a, tile, shared.columns);
            const int first = tile.first_step(a), end = tile.end_step(a), for_output = a.parts == 1;
            Maker maker(a, tile, first);
#pragma unroll 1
            for (int step = first; step < end + for_output; ++step) {
                const uint32_t stage = stages + ring.slot * STAGE;
                ring.wait_until_empty();
                if (step < end) patches.copy(a, step, stage);
                commit_copies();
                if (step < end) maker.make(a, tile, shared.table, step, stage + Patches::BYTES);
                if (filled >= 0) publish<1>(ring, filled);
                filled = ring.slot;
                ring.advance();
            }
        }
        if (filled >= 0) publish<0>(ring, filled);
    }

    // A stage is complete, except for PENDING later ones.
    template <int PENDING>
    static __device__ __forceinline__ void publish(const Stages &ring, int slot) {
        wait_for_copies<PENDING>();
        fence_for_products();
        ring.fill(slot);
    }

    // Where a consumer's products are in a tile.
    struct Place {
        int word, column, lane;

        __device__ __forceinline__ Place() {
            const uint32_t thread = thread_number(), warp = thread / 32 - GRAD_MAKERS / 32;
            word = warp / 4 % (WORDS / 2) * 2 + warp % 4 / 2;
            column = warp / 4 / (WORDS / 2) * SPAN;
            lane = thread % 32;
        }
    };

    static __device__ __forceinline__ void consume(const GradInput &a, GradShared<COLUMNS> &shared, Stages &ring,
                                                   char *memory) {
        const uint32_t stages = shared_address(memory);
        // The tile's number is kept in memory, and the tile computed again for its output: they take no registers.
        const uint32_t kept = shared_address(&shared.number[threadIdx.x / 32 - GRAD_MAKERS / 32]);
#pragma unroll 1
        for (uint32_t number = blockIdx.x; number < a.tiles; number += gridDim.x) {
            if (threadIdx.x % 32 == 0) store_4_bytes(kept, number);
            const GradTile tile(a, number, WORDS, COLUMNS);
            const Place place;
            // So that it is known to be the same in all lanes.
            const int column = SPAN == COLUMNS ? 0 : __shfl_sync(0xFFFFFFFF, place.column, 0);
            Sum sums[SUMS][SPAN / 2] = {};
            multiply_stages<Weights, STAGE, COLUMNS, SPAN>(
                ring, stages, int(tile.end_step(a) - tile.first_step(a)),
                Patches::BYTES + Maker::lane_place(place.word, place.lane), column * LINE, sums);
            __syncwarp();
            const uint32_t again = load_4_bytes(kept);
            __syncwarp();
            store(a, GradTile(a, again, WORDS, COLUMNS), ring, memory, sums);
        }
    }

    static __device__ __forceinline__ void store(const GradInput &a, const GradTile &tile, Stages &ring, char *memory,
                                                 const Sum (&sums)[SUMS][SPAN / 2]) {
        if (a.parts > 1) {
            Total *part = part_of<Total>(a, tile);
            each_pair<0, SPAN>(sums, [&](int column, int k, Total first, Total second) {
                store_sums<Weights::APART>(a, tile, part, column, k, first, second);
            });
            return;
        }
        constexpr int RUN = SPAN / 2;  // columns of a warpgroup that are stored at once
        static_assert(COLUMNS / 2 * (K + 4) * 4 <= STAGE);
        float *grads = reinterpret_cast<float *>(memory + ring.slot * STAGE);
        ring.wait_until_full();
        store_columns<0, RUN>(a, tile, grads, sums);
        store_columns<RUN, RUN>(a, tile, grads, sums);
        ring.release(ring.slot);
        ring.advance();
    }

    // RUN columns of each warpgroup, from its column FIRST on.
    template <int FIRST, int RUN>
    static __device__ __forceinline__ void store_columns(const GradInput &a, const GradTile &tile, float *grads,
                                                         const Sum (&sums)[SUMS][SPAN / 2]) {
        if (FIRST > 0) named_barrier(CONSUMER_BARRIER, GRAD_THREADS);  // nobody reads the columns before
        each_pair<FIRST, RUN>(sums, [&](int column, int k, Total first, Total second) {
            const int c = column - FIRST - column / SPAN * (SPAN - RUN);  // of those that are stored
            keep_sums<Weights::APART>(grads + c * (K + 4), k, first, second);
        });
        named_barrier(CONSUMER_BARRIER, GRAD_THREADS);
        store_grads<K, COLUMNS / SPAN * RUN, RUN>(a, tile, FIRST, grads, thread_number() - GRAD_MAKERS);
    }

    // Calls write(column, k, sum of k, sum of k + APART) for a thread's sums of COUNT of its warpgroup's columns, from
    // the column FIRST on.
    template <int FIRST, int COUNT, class Write>
    static __device__ __forceinline__ void each_pair(const Sum (&sums)[SUMS][SPAN / 2], Write write) {
        const Place place;
        const int k = place.word * int(WORD) + Maker::lane_k(place.lane);
#pragma unroll
        for (int i = 0; i < COUNT / 4; ++i) {
            const int at = FIRST / 2 + i / 2 * 4 + i % 2;  // in the registers of row g
            const int column = place.column + FIRST + place.lane % 4 * 2 + i / 2 * 8 + i % 2;
            write(column, k, total(sums, at), total(sums, at + 2));
        }
    }

    static __device__ __forceinline__ Total total(const Sum (&sums)[SUMS][SPAN / 2], int at) {
        Sum sum[SUMS];
#pragma unroll
        for (int s = 0; s < SUMS; ++s) sum[s] = sums[s][at];
        return Weights::total(sum);
    }
};

#else

constexpr int GRAD_BLOCK_THREADS = GRAD_THREADS;

// In shared memory, before the stages of dy and two buffers of weights.
template <int COLUMNS>
struct GradShared {
    GradPixel columns[COLUMNS];
    NormalTable table;
};

// WORDS: of a tile. A warp has one of them, in two blocks of 16 k, and a part of the columns.
template <class Weights, int WORDS, int COLUMNS>
class GradInputKernel {
    static constexpr int K = WORDS * int(WORD), SPAN = COLUMNS * WORDS * 32 / GRAD_THREADS;  // SPAN: columns of a warp

  public:
    static __device__ __forceinline__ void run(const GradInput &a) {
        extern __shared__ __align__(128) char memory[];
        GradShared<COLUMNS> &shared = *reinterpret_cast<GradShared<COLUMNS> *>(memory);
        const uint32_t stages = shared_address(memory) + sizeof(GradShared<COLUMNS>);
        const uint32_t weights = stages + a.stages * Patches::BYTES;
        const GradTile tile(a, blockIdx.x, WORDS, COLUMNS);
        const Patches patches(a, tile, shared.columns);
        shared.table.fill(a.generator);

        const uint32_t first = tile.first_step(a), end = tile.end_step(a);
        const int ahead = a.stages - 1;
        int filling = 0, reading = 0;  // stages
        Maker maker(a, tile, first);
        Sum sums[2][SUMS][SPAN / 2] = {};
#pragma unroll 1
        for (int step = int(first) - ahead; step < int(end); ++step) {  // before the first, only what is ahead of it
            if (ahead == 2)
                wait_for_copies<1>();
            else
                wait_for_copies<0>();
            __syncthreads();
            if (step + ahead < int(end)) patches.copy(a, step + ahead, stages + filling * Patches::BYTES);
            commit_copies();
            if (++filling == a.stages) filling = 0;
            if (step + 1 >= int(first) && step + 1 < int(end))
                maker.make(a, tile, shared.table, step + 1, weights + (step + 1) % 2 * Maker::BYTES);
            if (step < int(first)) continue;
            multiply(stages + reading * Patches::BYTES, weights + step % 2 * Maker::BYTES, sums);
            if (++reading == a.stages) reading = 0;
        }
        if (a.parts > 1) {
            Total *part = part_of<Total>(a, tile);
            each_pair(sums, [&](int column, int k, Total first, Total second) {
                store_sums<1>(a, tile, part, column, k, first, second);
            });
        } else {
            float *grads = reinterpret_cast<float *>(memory + sizeof(GradShared<COLUMNS>));
            __syncthreads();  // nobody reads a stage
            each_pair(sums, [&](int column, int k, Total first, Total second) {
                keep_sums<1>(grads + column * (K + 4), k, first, second);
            });
            __syncthreads();
            store_grads<K, COLUMNS, COLUMNS>(a, tile, 0, grads, threadIdx.x);
        }
    }

  private:
    typedef GradPatches<COLUMNS, Weights::LINES, Weights::SIZE> Patches;
    typedef typename Weights::Maker Maker;
    typedef typename Weights::Sum Sum;
    static constexpr int SUMS = Weights::SUMS;
    typedef decltype(Weights::total(std::declval<const Sum(&)[SUMS]>())) Total;
    static constexpr bool HALVES = Weights::SIZE == 2;

    static __device__ __forceinline__ void multiply(uint32_t dy, uint32_t weights, Sum (&sums)[2][SUMS][SPAN / 2]) {
        const int lane = threadIdx.x % 32, word = threadIdx.x / 32 % WORDS;
        // Lane l gives the address of the 16 bytes l / 8 of column l % 8.
        const uint32_t place = (threadIdx.x / (32 * WORDS) * SPAN + lane % 8) * LINE + (lane / 8 ^ lane % 8) * 16;
#pragma unroll
        for (int n = 0; n < Weights::PRODUCTS; n += 2) {  // over 64 bytes of a line
            uint32_t operand[2][2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) Weights::operand(weights, word, lane, n + i, operand[i]);
#pragma unroll
            for (int s = 0; s < SUMS; ++s) {
                const uint32_t from = dy + (HALVES ? n / 4 : s) * COLUMNS * LINE + (place ^ n / 2 % 2 * 64);
#pragma unroll
                for (int j = 0; j < SPAN / 8; ++j) {
                    uint32_t x[4];
                    load_matrices(x, from + j * 8 * LINE);
#pragma unroll
                    for (int b = 0; b < 2; ++b) {
                        Weights::multiply(sums[b][s] + 4 * j, operand[0][b], x[0], x[1]);
                        Weights::multiply(sums[b][s] + 4 * j, operand[1][b], x[2], x[3]);
                    }
                }
            }
        }
    }

    // Calls write(column, k, sum of k, sum of k + 1) for the sums of a thread, in the tile.
    template <class Write>
    static __device__ __forceinline__ void each_pair(const Sum (&sums)[2][SUMS][SPAN / 2], Write write) {
        const int lane = threadIdx.x % 32, word = threadIdx.x / 32 % WORDS;
        const int column = threadIdx.x / (32 * WORDS) * SPAN + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < SPAN / 2; ++i) {  // a register of each sum
            Total total[2];
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                Sum sum[SUMS];
#pragma unroll
                for (int s = 0; s < SUMS; ++s) sum[s] = sums[b][s][i];
                total[b] = Weights::total(sum);
            }
            const int k = word * int(WORD) + Weights::lane_k(lane / 4, i / 2 % 2);
            write(column + i / 4 * 8 + i % 2, k, total[0], total[1]);
        }
    }
};

#endif

}  // namespace slt::cuda
