// The scores' gradient of products: dL/dW = dy^T x, of 128 rows and the 128 k of one call of Philox per block.
//
// Columns come in stages of 16 KiB of dy and of x, through asynchronous copies. An operand in shared memory is cut into
// pieces of 128 bytes of a column; those of all columns follow each other. Chunks of 16 bytes are exchanged inside a
// piece so that threads that read several columns at once read different banks.
#pragma once

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/grad_scores_epilogue.h"
#include "cuda/ptx.h"

namespace slt::cuda {

constexpr int GRAD_ROWS = 128, GRAD_THREADS = 256, GRAD_STAGES = 3;
constexpr uint32_t PIECE_BYTES = 128, OPERAND_BYTES = 16384, STAGE_BYTES = 2 * OPERAND_BYTES;

// How x is read.
enum Reading {
    MATRIX,  // vectors, or images that a window of one pixel reads
    IMAGES,  // images; a chunk of k is of one tap
    SCATTERED,  // images, one value at a time
};

template <class T>
struct Operand {
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int CHUNKS = int(CALL) / CHUNK;  // per column
    static constexpr int COLUMNS = OPERAND_BYTES / 16 / CHUNKS;  // per stage
    static constexpr int COPIES =
        OPERAND_BYTES / 16 / GRAD_THREADS;  // of a thread; of one chunk of every STEP-th column
    static constexpr int STEP = GRAD_THREADS / CHUNKS;

    // Products of 16-bit types read 8 columns at once, those of float32 4 columns and 2 chunks.
    static __device__ __forceinline__ uint32_t turned(uint32_t chunk, int column) {
        return chunk ^ (sizeof(T) == 2 ? column % 8 : column % 4 * 2);
    }

    static __device__ __forceinline__ uint32_t place(uint32_t chunk, int column) {
        return chunk / 8 * (COLUMNS * PIECE_BYTES) + column * PIECE_BYTES + turned(chunk % 8, column) * 16;
    }
};

// The part of a product that a block computes.
struct GradTile {
    uint32_t first;  // row
    uint32_t begin, end;  // rows that are the group's
    uint32_t call, part;
    int32_t channel;  // the group's first
    int32_t begin_column, end_column;

    template <class T>
    static __device__ __forceinline__ GradTile of(const GradScores &a, T) {
        GradTile tile;
        uint32_t b;  // read anew, so that registers do not hold the results of an earlier call
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
        const uint32_t row_tile = b % a.row_tiles;
        b /= a.row_tiles;
        tile.call = b % a.generator.calls;
        b /= a.generator.calls;
        tile.part = b % a.column_parts;
        const uint32_t group = b / a.column_parts, row = group * a.group_rows;
        tile.first = row / Operand<T>::CHUNK * Operand<T>::CHUNK + row_tile * GRAD_ROWS;
        tile.begin = max(tile.first, row);
        tile.end = min(tile.first + GRAD_ROWS, row + a.group_rows);
        tile.channel = int32_t(group) * a.group_channels;
        tile.begin_column = int32_t(tile.part) * a.part_columns;
        tile.end_column = min(tile.begin_column + a.part_columns, a.columns);
        return tile;
    }
};

// Copies stages of both operands. Columns past the end are zeros. A thread copies one chunk of some columns.
template <class T, Reading READING>
class GradLoader {
    typedef Operand<T> O;

  public:
    __device__ __forceinline__ GradLoader(const GradScores &a, const GradTile &tile)
        : chunk(threadIdx.x % O::CHUNKS), column(tile.begin_column + int(threadIdx.x) / O::CHUNKS) {
        const int32_t row = int32_t(tile.first) + chunk * O::CHUNK;
        row_exists = row < a.dy_pitch;
        dy = static_cast<const T *>(a.dy) + int64_t(column) * a.dy_pitch + row;
        const int of_thread = READING == SCATTERED ? threadIdx.x % int(CALL) : chunk * O::CHUNK;
        const int32_t k = int32_t(tile.call) * int32_t(CALL) - a.generator.skipped * int32_t(WORD) + of_thread;
        x = static_cast<const T *>(a.x) + tile.channel + k;
        if constexpr (READING == MATRIX) {
            k_exists = k >= 0 && tile.channel + k < a.x_pitch;
            x += int64_t(column) * a.x_pitch;
        } else {
            k_exists = k >= 0 && k < a.generator.source.fan;
            const int32_t number = k_exists ? k / a.group_channels : 0;
            tap = tap_of(a.image, number);
            x -= number * a.group_channels;
        }
    }

    // The next stage.
    __device__ __forceinline__ void load(const GradScores &a, const GradTile &tile, uint8_t *stage) {
        const uint32_t address = shared_address(stage) + O::place(chunk, threadIdx.x / O::CHUNKS);
#pragma unroll
        for (int j = 0; j < O::COPIES; ++j)
            copy_async(address + j * (O::STEP * PIECE_BYTES), dy + int64_t(j * O::STEP) * a.dy_pitch,
                       row_exists && column + j * O::STEP < tile.end_column);
        dy += int64_t(O::COLUMNS) * a.dy_pitch;
        if constexpr (READING == MATRIX) {
#pragma unroll
            for (int j = 0; j < O::COPIES; ++j)
                copy_async(address + OPERAND_BYTES + j * (O::STEP * PIECE_BYTES), x + int64_t(j * O::STEP) * a.x_pitch,
                           k_exists && column + j * O::STEP < tile.end_column);
            x += int64_t(O::COLUMNS) * a.x_pitch;
        } else if constexpr (READING == IMAGES) {
            // Each lane finds where one of the warp's columns reads.
            constexpr int BESIDE = 32 / O::CHUNKS;
            const int lane = threadIdx.x % 32;
            const Origin own =
                origin_of(a.image, column - lane / O::CHUNKS + lane % BESIDE + lane / BESIDE % O::COPIES * O::STEP);
#pragma unroll
            for (int j = 0; j < O::COPIES; ++j) {
                const Origin origin = of_lane(own, j * BESIDE + lane / O::CHUNKS);
                copy_async(address + OPERAND_BYTES + j * (O::STEP * PIECE_BYTES), at(a, origin),
                           exists(a, origin, column + j * O::STEP, tile));
            }
        } else {
            load_values(a, tile, stage + OPERAND_BYTES);
        }
        column += O::COLUMNS;
    }

  private:
    // A warp has 32 k of every second column.
    __device__ __forceinline__ void load_values(const GradScores &a, const GradTile &tile, uint8_t *operand) {
        typedef std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t> Bits;
        constexpr int COUNT = O::COLUMNS / 2, TOGETHER = 8;
        const int lane = threadIdx.x % 32, odd = threadIdx.x / int(CALL), k = threadIdx.x % int(CALL);
        const int first = column - int(threadIdx.x) / O::CHUNKS;  // of the stage
        const Origin own = origin_of(a.image, first + odd + 2 * (lane % COUNT));
#pragma unroll 1
        for (int j = 0; j < COUNT; j += TOGETHER) {
            Bits value[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                const Origin origin = of_lane(own, j + i);
                value[i] = 0;
                if (exists(a, origin, first + odd + 2 * (j + i), tile))
                    value[i] = __ldg(reinterpret_cast<const Bits *>(at(a, origin)));
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                const uint32_t at = O::place(k / O::CHUNK, odd + 2 * (j + i)) + k % O::CHUNK * sizeof(T);
                *reinterpret_cast<Bits *>(operand + at) = value[i];
            }
        }
    }

    static __device__ __forceinline__ Origin of_lane(const Origin &own, int lane) {
        return {__shfl_sync(0xFFFFFFFF, own.y, lane), __shfl_sync(0xFFFFFFFF, own.x, lane),
                __shfl_sync(0xFFFFFFFF, own.number, lane)};
    }

    __device__ __forceinline__ const T *at(const GradScores &a, const Origin &origin) const {
        return x + int64_t(origin.number + tap.number) * a.x_pitch;
    }

    __device__ __forceinline__ bool exists(const GradScores &a, const Origin &origin, int n,
                                           const GradTile &tile) const {
        return k_exists && n < tile.end_column && inside(a.image, origin, tap);
    }

    int chunk, column;  // the thread's first of the next stage
    bool row_exists, k_exists;
    const T *dy;  // of that column
    const T *x;  // the same of a matrix; of images in pixel 0
    Tap tap;
};

// Sums of a block, and the products of a stage. Those of `ASYNC` products may be under way until `finish`.
template <class T, int TERMS>
class GradSums;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// 16-bit types: a warpgroup has 64 rows.
template <class T>
class GradSums<T, 1> {
  public:
    static constexpr bool ASYNC = true;

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 64; ++i) sum[i] = 0;
    }

    __device__ __forceinline__ void add(uint32_t stage) {
        constexpr uint32_t HALF = Operand<T>::COLUMNS * PIECE_BYTES;
        const uint32_t group = __shfl_sync(0xFFFFFFFF, threadIdx.x / 128, 0);  // known to be the same in all lanes
        const uint64_t dy = pieces_descriptor(stage + group * HALF, HALF);
        const uint64_t x = pieces_descriptor(stage + OPERAND_BYTES, HALF);
        begin_products();
#pragma unroll
        for (int n = 0; n < Operand<T>::COLUMNS; n += 16) {
            const uint32_t along = n * PIECE_BYTES >> 4;
            if constexpr (std::is_same_v<T, __half>)
                multiply_float16_async(sum, dy + along, x + along);
            else
                multiply_bfloat16_async(sum, dy + along, x + along);
        }
        commit_products();
    }

    __device__ __forceinline__ void finish() { wait_for_products<0>(); }

    __device__ __forceinline__ void store(GradRows<GRAD_ROWS> &rows) const {
        const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 16; ++j)
                *reinterpret_cast<float2 *>(&rows.sums[row + 8 * r][k + 8 * j]) =
                    make_float2(sum[4 * j + 2 * r], sum[4 * j + 2 * r + 1]);
    }

  private:
    float sum[64];
};

#else

// 16-bit types: a warp has 64 rows and 32 k.
template <class T>
class GradSums<T, 1> {
  public:
    static constexpr bool ASYNC = false;
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 64; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0;
    }

    __device__ __forceinline__ void add(uint32_t stage) {
        typedef Operand<T> O;
        constexpr uint32_t HALF = O::COLUMNS * PIECE_BYTES;
        const int lane = threadIdx.x % 32, in_matrix = lane % 8, warp = threadIdx.x / 32;
        // Matrices 0 to 3 of dy: rows and the next 8 rows, and those of the next 8 columns. Of x: columns and the next
        // 8, and those of the next 8 k.
        const uint32_t dy = stage + warp / 4 * HALF + (in_matrix + lane / 16 * 8) * PIECE_BYTES;
        const uint32_t x = stage + OPERAND_BYTES + warp % 4 / 2 * HALF + (in_matrix + lane / 8 % 2 * 8) * PIECE_BYTES;
        const uint32_t dy_chunk = (lane / 8 % 2) ^ in_matrix, x_chunk = (warp % 2 * 4 + lane / 16) ^ in_matrix;
#pragma unroll
        for (int n = 0; n < O::COLUMNS; n += 16) {
            uint32_t b[2][4];
#pragma unroll
            for (int j = 0; j < 2; ++j) load_matrices_transposed(b[j], x + n * PIECE_BYTES + (x_chunk ^ 2 * j) * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t f[4];
                load_matrices_transposed(f, dy + n * PIECE_BYTES + (dy_chunk ^ 2 * i) * 16);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if constexpr (std::is_same_v<T, __half>)
                        multiply_float16(sum[i][j], f, b[j / 2] + j % 2 * 2);
                    else
                        multiply_bfloat16(sum[i][j], f, b[j / 2] + j % 2 * 2);
                }
            }
        }
    }

    __device__ __forceinline__ void store(GradRows<GRAD_ROWS> &rows) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / 4 * 64 + lane / 4, k = warp % 4 * 32 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    *reinterpret_cast<float2 *>(&rows.sums[row + 16 * i + 8 * r][k + 8 * j]) =
                        make_float2(sum[i][j][2 * r], sum[i][j][2 * r + 1]);
    }

  private:
    float sum[4][4][4];  // 16 rows, 8 k
};

#endif

// Products of float32. TF32 has 11 of its 24 bits, so three products make one: TERMS = 3; or one is enough. Tensor cores
// truncate sums, so those of three products are added in registers after each stage of 32 columns.
//
// The order of rows and k is free: a thread reads four rows, or k, that follow each other.
template <int TERMS>
class Tf32Sums {
  public:
    static constexpr bool ASYNC = false;

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 64; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0;
    }

    __device__ __forceinline__ void add(uint32_t stage) {
        if constexpr (TERMS == 1) {
            add(sum, stage);
        } else {
            float part[4][4][4];
#pragma unroll
            for (int i = 0; i < 64; ++i) part[i / 16][i / 4 % 4][i % 4] = 0;
            add(part, stage);
#pragma unroll
            for (int i = 0; i < 64; ++i) sum[i / 16][i / 4 % 4][i % 4] += part[i / 16][i / 4 % 4][i % 4];
        }
    }

    __device__ __forceinline__ void store(GradRows<GRAD_ROWS> &rows) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / 4 * 64 + lane / 4 * 4, k = warp % 4 * 32 + lane % 4 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    *reinterpret_cast<float4 *>(&rows.sums[row + i / 2 * 32 + i % 2 * 2 + r][k + 4 * half]) =
                        make_float4(sum[i][0][2 * r + half], sum[i][1][2 * r + half], sum[i][2][2 * r + half],
                                    sum[i][3][2 * r + half]);
    }

  private:
    struct Split {
        uint32_t high, low;

        // The low part of a NaN is a NaN, and so is that of infinity.
        __device__ __forceinline__ explicit Split(uint32_t x) {
            if constexpr (TERMS == 1) {
                high = rounded_tf32(x);
            } else {
                high = (x + 0x1000) & 0xFFFFE000;
                low = __float_as_uint(__uint_as_float(x) - __uint_as_float(high));
            }
        }
    };

    // Four values of column t and of t + 4.
    struct Values {
        uint32_t high[2][4], low[2][4];

        __device__ __forceinline__ Values(uint32_t address) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                uint32_t v[4];
                load_shared(v, address + h * 4 * PIECE_BYTES);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const Split split(v[e]);
                    high[h][e] = split.high;
                    if constexpr (TERMS == 3) low[h][e] = split.low;
                }
            }
        }
    };

    static __device__ __forceinline__ void add(float (&to)[4][4][4], uint32_t stage) {
        typedef Operand<float> O;
        constexpr uint32_t QUARTER = O::COLUMNS * PIECE_BYTES;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
        const uint32_t own = t * PIECE_BYTES + O::turned(lane / 4, t) * 16;
        const uint32_t dy = stage + warp / 4 * 2 * QUARTER + own, x = stage + OPERAND_BYTES + warp % 4 * QUARTER + own;
#pragma unroll
        for (int n = 0; n < O::COLUMNS; n += 8) {
            const Values b(x + n * PIECE_BYTES);
#pragma unroll
            for (int two = 0; two < 2; ++two) {
                const Values f(dy + two * QUARTER + n * PIECE_BYTES);
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        float *d = to[2 * two + i][j];
                        if constexpr (TERMS == 3) {
                            multiply(d, f.low, i, b.high, j);
                            multiply(d, f.high, i, b.low, j);
                        }
                        multiply(d, f.high, i, b.high, j);
                    }
            }
        }
    }

    static __device__ __forceinline__ void multiply(float *d, const uint32_t (&a)[2][4], int i,
                                                    const uint32_t (&b)[2][4], int j) {
        multiply_tf32(d, a[0][2 * i], a[0][2 * i + 1], a[1][2 * i], a[1][2 * i + 1], b[0][j], b[1][j]);
    }

    float sum[4][4][4];  // 16 rows, of which a thread's are neighbours, and 8 k, every fourth of 32
};

template <>
class GradSums<float, 1> : public Tf32Sums<1> {};
template <>
class GradSums<float, 3> : public Tf32Sums<3> {};

template <class T, int TERMS, Reading READING>
__device__ __forceinline__ void grad_scores(const GradScores &a) {
    extern __shared__ __align__(1024) uint8_t memory[];
    GradTile tile = GradTile::of(a, T());
    if (tile.begin >= tile.end) return;  // a group's last tile may have none of its rows
    GradLoader<T, READING> loader(a, tile);
    GradSums<T, TERMS> sums;
    sums.clear();
    constexpr bool ASYNC = GradSums<T, TERMS>::ASYNC;
    constexpr int COLUMNS = Operand<T>::COLUMNS;
    const int steps = (tile.end_column - tile.begin_column + COLUMNS - 1) / COLUMNS;
#pragma unroll
    for (int i = 0; i < GRAD_STAGES - 1; ++i) {
        if (i < steps) loader.load(a, tile, memory + i * STAGE_BYTES);
        commit_copies();
    }
    int at = 0, next = GRAD_STAGES - 1;  // stages
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        wait_for_copies<GRAD_STAGES - 2>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if constexpr (ASYNC) fence_for_products();
#endif
        __syncthreads();  // the stage is there, and the one before it has been read
        if constexpr (ASYNC) sums.add(shared_address(memory) + at * STAGE_BYTES);
        if (i + GRAD_STAGES - 1 < steps) loader.load(a, tile, memory + next * STAGE_BYTES);
        commit_copies();
        if constexpr (ASYNC)
            sums.finish();
        else
            sums.add(shared_address(memory) + at * STAGE_BYTES);
        at = at == GRAD_STAGES - 1 ? 0 : at + 1;
        next = next == GRAD_STAGES - 1 ? 0 : next + 1;
    }
    __syncthreads();
    GradRows<GRAD_ROWS> &rows = *reinterpret_cast<GradRows<GRAD_ROWS> *>(memory);
    static_assert(sizeof(rows) <= GRAD_STAGES * STAGE_BYTES);
    sums.store(rows);
    tile = GradTile::of(a, T());
    if (a.column_parts == 1) {
        write_grads<GRAD_ROWS, GRAD_THREADS>(a, rows, tile.first, tile.begin, tile.end, tile.call);
        return;
    }
    __syncthreads();
    for (uint32_t row = tile.begin + threadIdx.x / 32; row < tile.end; row += GRAD_THREADS / 32)
        part_of(a, tile.part, row, tile.call)[threadIdx.x % 32] =
            *reinterpret_cast<const float4 *>(&rows.sums[row - tile.first][threadIdx.x % 32 * 4]);
}

}  // namespace slt::cuda
