// Forward of Linear and Conv2d for many columns: y^T = W x^T.
//
// A block has a warpgroup of producers, which make the weights of 128 or 64 rows and copy x for a step of 128 k, and
// two of consumers, which multiply. A block goes through tiles of rows, columns and parts of k. Consumers are
// warpgroups of 64 rows where products are theirs (wgmma, sm_90a), or else warps of 32 rows; those of the same rows
// share the columns.
//
// They share a ring of stages in shared memory. Producers fill a stage while the copies of the one before are under
// way, so the ring has at least two; three with wgmma, whose consumers release a stage in the middle of the next.
#pragma once

#include "cuda/patches.h"
#include "cuda/product_output.h"
#include "cuda/product_weights.h"
#include "cuda/ring_products.h"

#include <utility>

namespace slt::cuda {

constexpr int CONSUMERS = 256, PRODUCT_THREADS = PRODUCERS + CONSUMERS;

// A tile of the product. Consecutive tiles are of the same columns, so that x is read from the L2 cache.
struct Tile {
    uint32_t row;        // in the group
    TileColumns column;  // with the group
    uint32_t part;
    int first_call, end_call;

    __device__ __forceinline__ Tile(const Product &a, uint32_t number, int rows, int columns) {
        row = number % a.row_tiles * rows;
        number /= a.row_tiles;
        column.first = number % a.column_tiles * columns;
        column.end = min(column.first + columns, a.columns);
        number /= a.column_tiles;
        part = number % a.parts;
        column.group = number / a.parts;
        first_call = min(part * a.part_calls, a.generator.calls);
        end_call = min(first_call + a.part_calls, a.generator.calls);
    }

    __device__ __forceinline__ int steps() const { return end_call - first_call; }

    // The row of the source.
    __device__ __forceinline__ uint32_t source_row(const Product &a) const { return column.group * a.group_rows + row; }
};

// In shared memory, after the stages.
struct ProductShared {
    Ring<PRODUCERS, CONSUMERS>::Barriers barriers;
    NormalTable table;
    uint32_t number[CONSUMERS / 32];  // of each warp's tile
    ColumnTable columns;
};

template <class Weights, int COLUMNS, class Row = ResolvedRow>
class ProductKernel {
  public:
    typedef Patches<COLUMNS, Weights::LINES, Weights::SIZE> X;
    static constexpr int STAGE = X::BYTES + Weights::BYTES;

    static __device__ __forceinline__ void run(const Product &a) {
        extern __shared__ __align__(1024) char memory[];
        ProductShared &shared = *reinterpret_cast<ProductShared *>(memory + a.stages * STAGE);
        const uint32_t stages = shared_address(memory);
        shared.table.fill(a.generator);
        Stages ring(shared.barriers, a.stages);
        __syncthreads();
        // So that it is known to be the same in all lanes.
        const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);
        if (warp < PRODUCERS / 32) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
            give_registers<PRODUCER_REGISTERS>();
#endif
            produce(a, shared, ring, stages);
        } else {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
            take_registers<CONSUMER_REGISTERS>();
#endif
            consume(a, shared, ring, stages);
        }
    }

  private:
    typedef Ring<PRODUCERS, CONSUMERS> Stages;
    typedef typename Weights::Sum Sum;
    static constexpr int PRODUCER_REGISTERS = 104, CONSUMER_REGISTERS = 200;  // of 168 for all at first

    // A consumer warp's blocks of 16 rows, and its columns; the warps that have the rows of a tile.
    static constexpr int ROWS = Weights::ROWS, BLOCKS = WARPGROUP_PRODUCTS ? 1 : 2, ROW_WARPS = ROWS / 16 / BLOCKS;
    static constexpr int SPAN = COLUMNS * ROW_WARPS / (CONSUMERS / 32);
    static constexpr int SUMS = Weights::SUMS, PRODUCTS = Weights::PRODUCTS / 2;  // of half a step
    static constexpr bool HALVES = Weights::SIZE == 2;  // whether half a step has lines of its own

    static __device__ __forceinline__ void produce(const Product &a, ProductShared &shared, Stages &ring,
                                                   uint32_t stages) {
        int filled = -1;  // the stage whose copies are under way
#pragma unroll 1
        for (uint32_t number = blockIdx.x; number < a.tiles; number += gridDim.x) {
            const Tile tile(a, number, ROWS, COLUMNS);
            const X x(a, tile.column, shared.columns);
            const int i = threadIdx.x;
            Row row(a, tile.source_row(a) + i, i < ROWS && tile.row + i < a.group_rows, tile.first_call);
#pragma unroll 1
            for (int call = tile.first_call; call < tile.end_call; ++call) {
                const uint32_t stage = stages + ring.slot * STAGE;
                ring.wait_until_empty();
                x.copy(a, call * int(CALL) - a.generator.skipped * int(WORD), stage);
                commit_copies();
                uint32_t words[4];
                row.take(a, call, words);
                if (ROWS == PRODUCERS || i < ROWS)
                    Weights::make(a, shared.table, row.index(call), words, i, stage + X::BYTES);
                if (filled >= 0) publish<1>(ring, filled);
                filled = ring.slot;
                ring.advance();
            }
        }
        if (filled >= 0) publish<0>(ring, filled);
        ring.drain();
    }

    // A stage is complete, except for PENDING later ones.
    template <int PENDING>
    static __device__ __forceinline__ void publish(const Stages &ring, int slot) {
        wait_for_copies<PENDING>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        fence_for_products();
#endif
        ring.fill(slot);
    }

    // Where a consumer's products are in a tile.
    struct Place {
        int row, column, lane;

        __device__ __forceinline__ Place() {
            uint32_t thread;
            asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // volatile: not kept in registers, but read again
            const int warp = thread / 32 - PRODUCERS / 32;
            // Where each warp has all columns, without what computes nothing.
            row = (SPAN == COLUMNS ? warp : warp % ROW_WARPS) * 16 * BLOCKS;
            column = SPAN == COLUMNS ? 0 : warp / ROW_WARPS * SPAN;
            lane = thread % 32;
        }
    };

    static __device__ __forceinline__ void consume(const Product &a, ProductShared &shared, Stages &ring,
                                                   uint32_t stages) {
        ring.open();
        // The tile's number is kept in memory, and the tile computed again for its output: they take no registers.
        const uint32_t kept = shared_address(&shared.number[threadIdx.x / 32 - PRODUCERS / 32]);
#pragma unroll 1
        for (uint32_t number = blockIdx.x; number < a.tiles; number += gridDim.x) {
            if (threadIdx.x % 32 == 0) store_4_bytes(kept, number);
            Sum sums[BLOCKS * SUMS][SPAN / 2] = {};
            multiply(ring, stages, Tile(a, number, ROWS, COLUMNS).steps(), sums);
            __syncwarp();
            const uint32_t again = load_4_bytes(kept);
            __syncwarp();
            store(a, Tile(a, again, ROWS, COLUMNS), sums);
        }
    }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static __device__ __forceinline__ void multiply(Stages &ring, uint32_t stages, int steps,
                                                    Sum (&sums)[SUMS][SPAN / 2]) {
        const Place place;
        // So that it is known to be the same in all lanes.
        const uint32_t columns_place = SPAN == COLUMNS ? 0 : __shfl_sync(0xFFFFFFFF, place.column * LINE, 0);
        multiply_stages<Weights, STAGE, COLUMNS, SPAN>(
            ring, stages, steps, X::BYTES + Weights::lane_place(place.row, place.lane), columns_place, sums);
    }
#else
    static __device__ __forceinline__ void multiply(Stages &ring, uint32_t stages, int steps,
                                                    Sum (&sums)[BLOCKS * SUMS][SPAN / 2]) {
        const Place place;
        const uint32_t weights_place = X::BYTES + Weights::lane_place(place.row, place.lane);
        // Lane l gives the address of the 16 bytes l / 8 of column l % 8.
        const uint32_t x_place = (place.column + place.lane % 8) * LINE + (place.lane / 8 ^ place.lane % 8) * 16;
#pragma unroll 1
        for (; steps > 0; --steps) {
            const uint32_t stage = stages + ring.slot * STAGE;
            ring.wait_until_full();
            Weights weights[BLOCKS];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int b = 0; b < BLOCKS; ++b)
                    weights[b].load(stage + weights_place + b * Weights::BLOCK_BYTES, half);
#pragma unroll
                for (int n = 0; n < PRODUCTS; n += 2) {  // over 64 bytes of a line
                    uint32_t operand[BLOCKS][2][4];
#pragma unroll
                    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
                        for (int i = 0; i < 2; ++i) weights[b].operand(half * PRODUCTS + n + i, operand[b][i]);
#pragma unroll
                    for (int s = 0; s < SUMS; ++s) {
                        __syncwarp();
                        const int line = HALVES ? half : s, upper = HALVES ? n / 2 : half;
                        const uint32_t from = stage + line * COLUMNS * LINE + (x_place ^ upper * 64);
#pragma unroll
                        for (int j = 0; j < SPAN / 8; ++j) {
                            uint32_t x[4];
                            load_matrices(x, from + j * 8 * LINE);
#pragma unroll
                            for (int b = 0; b < BLOCKS; ++b) {
                                Weights::multiply(sums[b * SUMS + s] + 4 * j, operand[b][0], x[0], x[1]);
                                Weights::multiply(sums[b * SUMS + s] + 4 * j, operand[b][1], x[2], x[3]);
                            }
                        }
                    }
                }
            }
            ring.release(ring.slot);
            ring.advance();
        }
    }
#endif

    // A thread has rows g and g + 8 of each block, and columns 8 j + 2 t and 8 j + 2 t + 1.
    static __device__ __forceinline__ void store(const Product &a, const Tile &tile,
                                                 const Sum (&sums)[BLOCKS * SUMS][SPAN / 2]) {
        const Place place;
        const uint32_t row = tile.row + place.row + place.lane / 4;
        const uint32_t column = tile.column.first + place.column + place.lane % 4 * 2;
        const uint32_t source_row = tile.column.group * a.group_rows + row;
        if (a.parts > 1) {
            Total *to = static_cast<Total *>(a.sums) + uint64_t(tile.part) * a.columns * a.generator.rows + source_row;
#pragma unroll
            for (int i = 0; i < SPAN / 4; ++i) {
                const uint32_t at = column + i / 2 * 8 + i % 2;
#pragma unroll
                for (int r = 0; r < 2 * BLOCKS; ++r) {
                    const Total sum = total(sums, r, i / 2 * 4 + i % 2);
                    if (at < tile.column.end && row + 8 * r < a.group_rows)
                        to[uint64_t(at) * a.generator.rows + 8 * r] = sum;
                }
            }
            return;
        }
        float bias[2 * BLOCKS];
#pragma unroll
        for (int r = 0; r < 2 * BLOCKS; ++r) bias[r] = row + 8 * r < a.group_rows ? bias_of(a, source_row + 8 * r) : 0;
        with_element<Weights::ELEMENT>(a, [&](auto element) {
            constexpr int ELEMENT = decltype(element)::value;
            if constexpr (ELEMENT != FLOAT32) {
                if (a.y_row == 1 && a.generator.rows % 2 == 0 && a.group_rows % 2 == 0)
                    return store_pairs<ELEMENT>(a, tile, place, bias, sums);
            }
            void *y = static_cast<char *>(a.y) + source_row * a.y_row * (ELEMENT == FLOAT32 ? 4 : 2);
#pragma unroll
            for (int i = 0; i < SPAN / 4; ++i) {
                const uint32_t at = column + i / 2 * 8 + i % 2;
                const Factors by = factors_of<Total>(a, min(at, tile.column.end - 1));
                const int64_t to = output_place(a, at);
#pragma unroll
                for (int r = 0; r < 2 * BLOCKS; ++r) {
                    const float value = output_of(total(sums, r, i / 2 * 4 + i % 2), by, bias[r]);
                    if (at < tile.column.end && row + 8 * r < a.group_rows)
                        store_element<ELEMENT>(a, y, to + 8 * r * a.y_row, value);
                }
            }
        });
    }

    // Two rows at once, where rows of y lie beside each other: lanes exchange the values of 8 rows and 8 columns, and
    // lane (g, t) gets rows 2 t and 2 t + 1 of column g.
    template <int ELEMENT>
    static __device__ __forceinline__ void store_pairs(const Product &a, const Tile &tile, const Place &place,
                                                       const float (&bias)[2 * BLOCKS],
                                                       const Sum (&sums)[BLOCKS * SUMS][SPAN / 2]) {
        const uint32_t first = tile.column.first + place.column, row = tile.row + place.row + place.lane % 4 * 2;
        uint16_t *y = static_cast<uint16_t *>(a.y) + tile.column.group * a.group_rows + row;
#pragma unroll
        for (int j = 0; j < SPAN / 8; ++j) {
            Factors by[2];
#pragma unroll
            for (int e = 0; e < 2; ++e)
                by[e] = factors_of<Total>(a, min(first + 8 * j + place.lane % 4 * 2 + e, tile.column.end - 1));
            const uint32_t at = first + 8 * j + place.lane / 4;
            uint16_t *to = y + output_place(a, at);
#pragma unroll
            for (int r = 0; r < 2 * BLOCKS; ++r) {
                const float low = output_of(total(sums, r, 4 * j), by[0], bias[r]);
                const float high = output_of(total(sums, r, 4 * j + 1), by[1], bias[r]);
                const uint32_t rows = transposed(two_elements<ELEMENT>(a, low, high));
                if (at < tile.column.end && row + 8 * r < a.group_rows)
                    *reinterpret_cast<uint32_t *>(to + 8 * r) = rows;
            }
        }
    }

    typedef decltype(Weights::total(std::declval<const Sum (&)[SUMS]>())) Total;

    // The sum of row 8 r that is `at` in the registers of its block.
    static __device__ __forceinline__ Total total(const Sum (&sums)[BLOCKS * SUMS][SPAN / 2], int r, int at) {
        Sum sum[SUMS];
#pragma unroll
        for (int s = 0; s < SUMS; ++s) sum[s] = sums[r / 2 * SUMS + s][2 * (r % 2) + at];
        if constexpr (BLOCKS == 2 && SUMS == 3) pin(sum);  // nvcc would begin all totals before it stores one
        return Weights::total(sum);
    }
};

constexpr int ADD_THREADS = 256;

// Adds the sums of the parts of k, in their order: a thread a row of a column.
template <class Sum>
__device__ __forceinline__ void add_parts(const Product &a) {
    const uint32_t row_blocks = ceil_div(a.generator.rows, ADD_THREADS), column = blockIdx.x / row_blocks;
    const uint32_t row = blockIdx.x % row_blocks * ADD_THREADS + threadIdx.x;
    if (row >= a.generator.rows) return;
    const uint64_t part = uint64_t(a.columns) * a.generator.rows;
    const Sum *from = static_cast<const Sum *>(a.sums) + uint64_t(column) * a.generator.rows + row;
    Sum sum = 0;
    for (uint32_t i = 0; i < a.parts; ++i) sum += from[i * part];
    const float y = output_of(sum, factors_of<Sum>(a, column), bias_of(a, row));
    with_element<ANY_ELEMENT>(a, [&](auto element) {
        store_element<decltype(element)::value>(a, a.y, output_place(a, column) + row * a.y_row, y);
    });
}

}  // namespace slt::cuda
