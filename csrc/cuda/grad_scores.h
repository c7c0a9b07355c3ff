// The scores' gradient of products: dL/dW = dy^T x, of 128 or 256 rows and the 128 k of one call of Philox per block.
//
// Columns come in stages through asynchronous copies: 16 KiB of x, and as much of 128 rows of dy. An operand in shared
// memory is cut into pieces of 128 bytes of a column; those of all columns follow each other. Chunks of 16 bytes are
// exchanged inside a piece, so that threads that read several columns at once read different banks.
#pragma once

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/grad_scores_epilogue.h"
#include "cuda/ptx.h"

namespace slt::cuda {

constexpr int GRAD_THREADS = 256;
constexpr int PREFETCHED = 8;  // stages before the end, scores are brought near
constexpr uint32_t PIECE_BYTES = 128, OPERAND_BYTES = 16384;

// A tile of 128 rows leaves room for another block, which multiplies while this one waits for its products. A tile of
// 256 rows reads less and fills a multiprocessor: products of a stage are under way while those of the next are issued.
template <int ROWS>
struct Stages {
    static constexpr int PENDING = ROWS == 256 ? 1 : 0;  // stages whose products are under way while a stage is loaded
    static constexpr int AHEAD = 2, COUNT = AHEAD + 1 + PENDING;
    static constexpr uint32_t DY_BYTES = ROWS / 128 * OPERAND_BYTES, BYTES = DY_BYTES + OPERAND_BYTES;
};

// How x is read.
enum Reading {
    MATRIX,     // vectors, or images that a window of one pixel reads
    IMAGES,     // images; a chunk of k is of one tap
    SCATTERED,  // images, one value at a time
};

// The layout of 128 rows of dy, or of x, in a stage.
template <class T>
struct Operand {
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int CHUNKS = int(CALL) / CHUNK;                  // per column
    static constexpr int COLUMNS = OPERAND_BYTES / 16 / CHUNKS;       // per stage
    static constexpr int STEP = GRAD_THREADS / CHUNKS;                // columns between the chunks of a thread
    static constexpr int COPIES = OPERAND_BYTES / 16 / GRAD_THREADS;  // that a thread makes

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
    uint32_t first;       // row
    uint32_t begin, end;  // rows that are the group's
    uint32_t call, part;
    int32_t channel;      // the group's first
    int32_t begin_column, end_column;

    template <int ROWS, int CHUNK>
    static __device__ __forceinline__ GradTile of(const GradScores &a) {
        GradTile tile;
        uint32_t b;  // read anew, so that registers do not hold the results of an earlier call
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
        // Blocks that run at once have a square of tiles, and read each operand about as often.
        constexpr uint32_t BAND = 2048 / ROWS;
        const uint32_t tiles = a.row_tiles * a.generator.calls, of_all = b / tiles, in_all = b - of_all * tiles;
        const uint32_t band = in_all / (BAND * a.generator.calls), in_band = in_all - band * BAND * a.generator.calls;
        const uint32_t band_rows = min(BAND, a.row_tiles - band * BAND);
        tile.call = in_band / band_rows;
        const uint32_t row_tile = band * BAND + in_band - tile.call * band_rows;
        const uint32_t group = of_all / a.column_parts, row = group * a.group_rows;
        tile.part = of_all - group * a.column_parts;
        tile.first = row / CHUNK * CHUNK + row_tile * ROWS;
        tile.begin = max(tile.first, row);
        tile.end = min(tile.first + ROWS, row + a.group_rows);
        tile.channel = int32_t(group) * a.group_channels;
        tile.begin_column = int32_t(tile.part) * a.part_columns;
        tile.end_column = min(tile.begin_column + a.part_columns, a.columns);
        return tile;
    }
};

// Copies stages of both operands. Columns past the end are zeros. A thread copies one chunk of some columns.
template <class T, Reading READING, int ROWS>
class GradLoader {
    typedef Operand<T> O;
    static constexpr uint32_t X = Stages<ROWS>::DY_BYTES;  // where x is in a stage

  public:
    __device__ __forceinline__ GradLoader(const GradScores &a, const GradTile &tile)
        : chunk(threadIdx.x % O::CHUNKS), column(tile.begin_column + int(threadIdx.x) / O::CHUNKS) {
        const int32_t row = int32_t(tile.first) + chunk * O::CHUNK;
        row_pitch = a.dy_pitch - row;
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
        for (int r = 0; r < ROWS; r += 128)
#pragma unroll
            for (int j = 0; j < O::COPIES; ++j)
                copy_16_bytes(address + r / 128 * OPERAND_BYTES + j * (O::STEP * PIECE_BYTES),
                           dy + int64_t(j * O::STEP) * a.dy_pitch + r,
                           r < row_pitch && column + j * O::STEP < tile.end_column);
        dy += int64_t(O::COLUMNS) * a.dy_pitch;
        if constexpr (READING == MATRIX) {
#pragma unroll
            for (int j = 0; j < O::COPIES; ++j)
                copy_16_bytes(address + X + j * (O::STEP * PIECE_BYTES), x + int64_t(j * O::STEP) * a.x_pitch,
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
                copy_16_bytes(address + X + j * (O::STEP * PIECE_BYTES), at(a, origin),
                           exists(a, origin, column + j * O::STEP, tile));
            }
        } else {
            load_values(a, tile, stage + X);
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

    int chunk, column;  // the thread's, of the next stage the first
    int row_pitch;      // rows of dy from the thread's first on
    bool k_exists;
    const T *dy;        // of that column
    const T *x;         // of that column of a matrix, or of pixel 0 of images
    Tap tap;
};

// Sums of a block, and the products of a stage. Those of `ASYNC` products may be under way until `finish`.
template <class T, int TERMS, int ROWS>
class GradSums;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// 16-bit types: a warpgroup has half of the rows, 64 in one product.
template <class T, int ROWS>
class GradSums<T, 1, ROWS> {
  public:
    static constexpr bool ASYNC = true;

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < PRODUCTS * 64; ++i) sum[i / 64][i % 64] = 0;
    }

    __device__ __forceinline__ void add(uint32_t stage) {
        constexpr uint32_t HALF = Operand<T>::COLUMNS * PIECE_BYTES;
        const uint32_t group = __shfl_sync(0xFFFFFFFF, threadIdx.x / 128, 0);  // known to be the same in all lanes
        const uint64_t dy = pieces_descriptor(stage + group * PRODUCTS * HALF, HALF);
        const uint64_t x = pieces_descriptor(stage + Stages<ROWS>::DY_BYTES, HALF);
        begin_products();
#pragma unroll
        for (int n = 0; n < Operand<T>::COLUMNS; n += 16) {
            const uint32_t along = n * PIECE_BYTES >> 4;
#pragma unroll
            for (int i = 0; i < PRODUCTS; ++i) {
                if constexpr (std::is_same_v<T, __half>)
                    multiply_float16_async(sum[i], dy + along + (i * HALF >> 4), x + along);
                else
                    multiply_bfloat16_async(sum[i], dy + along + (i * HALF >> 4), x + along);
            }
        }
        commit_products();
    }

    // Waits until the products of at most PENDING stages are under way.
    template <int PENDING>
    __device__ __forceinline__ void finish() {
        wait_for_products<PENDING>();
    }

    __device__ __forceinline__ void store(GradRows<ROWS> &rows) const {
        const int warp = threadIdx.x / 32;
        const int row = warp / 4 * (64 * PRODUCTS) + warp % 4 * 16 + threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < PRODUCTS; ++i)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int j = 0; j < 16; ++j)
                    *reinterpret_cast<float2 *>(&rows.sums[row + 64 * i + 8 * r][k + 8 * j]) =
                        make_float2(sum[i][4 * j + 2 * r], sum[i][4 * j + 2 * r + 1]);
    }

  private:
    static constexpr int PRODUCTS = ROWS / 128;
    float sum[PRODUCTS][64];
};

#else

// 16-bit types: a warp has 64 rows and 32 k.
template <class T>
class GradSums<T, 1, 128> {
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
                        multiply_floats<Float16>(sum[i][j], f, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                    else
                        multiply_floats<Bfloat16>(sum[i][j], f, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(GradRows<128> &rows) const {
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

// Products of float32. TF32 has 11 of its 24 bits, so a float32 product is three of TF32; with TERMS = 1 it is one, of
// rounded numbers. Tensor cores truncate sums, so those of three products are added in registers after each stage.
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

    __device__ __forceinline__ void store(GradRows<128> &rows) const {
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
                load_16_bytes(v, address + h * 4 * PIECE_BYTES);
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
#pragma unroll 2
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
class GradSums<float, 1, 128> : public Tf32Sums<1> {};
template <>
class GradSums<float, 3, 128> : public Tf32Sums<3> {};

template <class T, int TERMS, Reading READING, int ROWS>
__device__ __forceinline__ void grad_scores(const GradScores &a) {
    extern __shared__ __align__(1024) uint8_t memory[];
    typedef Stages<ROWS> S;
    constexpr int COLUMNS = Operand<T>::COLUMNS, CHUNK = Operand<T>::CHUNK;
    constexpr bool ASYNC = GradSums<T, TERMS, ROWS>::ASYNC;
    GradTile tile = GradTile::of<ROWS, CHUNK>(a);
    if (tile.begin >= tile.end) return;  // a group's last tile may have none of its rows
    GradLoader<T, READING, ROWS> loader(a, tile);
    GradSums<T, TERMS, ROWS> sums;
    sums.clear();
    const int steps = (tile.end_column - tile.begin_column + COLUMNS - 1) / COLUMNS;
#pragma unroll
    for (int i = 0; i < S::AHEAD; ++i) {
        if (i < steps) loader.load(a, tile, memory + i * S::BYTES);
        commit_copies();
    }
    constexpr bool PREFETCH = ASYNC || TERMS == 3;  // other products leave no registers for it
    const int prefetched = a.column_parts == 1 ? max(steps - PREFETCHED, 0) : -1;
    int at = 0, next = S::AHEAD;  // stages
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        wait_for_copies<S::AHEAD - 1>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if constexpr (ASYNC) fence_for_products();
#endif
        __syncthreads();  // the stage is there, and the one that is loaded next has been read
        if constexpr (ASYNC) sums.add(shared_address(memory) + at * S::BYTES);
        if (i + S::AHEAD < steps) loader.load(a, tile, memory + next * S::BYTES);
        commit_copies();
        if (PREFETCH && i == prefetched) prefetch_scores<ROWS, GRAD_THREADS>(a, tile.begin, tile.end, tile.call);
        if constexpr (ASYNC)
            sums.template finish<S::PENDING>();
        else
            sums.add(shared_address(memory) + at * S::BYTES);
        at = at == S::COUNT - 1 ? 0 : at + 1;
        next = next == S::COUNT - 1 ? 0 : next + 1;
    }
    if constexpr (S::PENDING > 0) sums.template finish<0>();
    __syncthreads();
    GradRows<ROWS> &rows = *reinterpret_cast<GradRows<ROWS> *>(memory);
    static_assert(sizeof(rows) <= S::COUNT * S::BYTES);
    sums.store(rows);
    tile = GradTile::of<ROWS, CHUNK>(a);
    if (a.column_parts == 1) {
        write_grads<ROWS, GRAD_THREADS>(a, rows, tile.first, tile.begin, tile.end, tile.call);
        return;
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t row = tile.begin + threadIdx.x / 32; row < tile.end; row += GRAD_THREADS / 32)
        part_of(a, tile.part, row, tile.call)[threadIdx.x % 32] =
            *reinterpret_cast<const float4 *>(&rows.sums[row - tile.first][threadIdx.x % 32 * 4]);
}

}  // namespace slt::cuda
