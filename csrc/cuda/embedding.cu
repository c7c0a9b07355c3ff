// Embedding: rows generated as they are looked up, and the gradient of their scores.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "contract/scores.h"
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

constexpr int WARPS = 8;

// Numbers as bits of 32 or 16: there is one loop for both types of 16 bits.
__device__ __forceinline__ void convert(float x, Type, uint32_t &bits) { bits = __float_as_uint(x); }
__device__ __forceinline__ void convert(float x, Type type, uint16_t &bits) {
    bits = type == BFLOAT16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ float widened(uint32_t bits, Type) { return __uint_as_float(bits); }
__device__ __forceinline__ float widened(uint16_t bits, Type type) {
    return type == BFLOAT16 ? __uint_as_float(uint32_t(bits) << 16) : __half2float(__ushort_as_half(bits));
}

// 16 bytes.
template <class T>
struct alignas(16) Run {
    static constexpr int SIZE = 16 / sizeof(T);
    T value[SIZE];
};

// A warp writes the weights of 1024 columns, from `first` on, of a row of y; int8 in `tile`.
template <class T>
__device__ __forceinline__ void write_row(T *y, Type type, int64_t fan, int64_t first, const int8_t *tile,
                                          float scale) {
    const int lane = threadIdx.x % 32;
    const auto weight = [&](int v, T &out) { convert(v ? float(v) * scale : 0.0f, type, out); };  // 0 has no sign
    if ((reinterpret_cast<uintptr_t>(y) | fan * sizeof(T)) % 16 == 0) {
#pragma unroll 1
        for (int at = lane * Run<T>::SIZE; at < 32 * WORD; at += 32 * Run<T>::SIZE) {
            Run<T> run;
#pragma unroll
            for (int i = 0; i < Run<T>::SIZE; ++i) weight(tile[at + i], run.value[i]);
            if (first + at >= 0 && first + at < fan) *reinterpret_cast<Run<T> *>(y + first + at) = run;
        }
    } else {
#pragma unroll 2
        for (int at = lane; at < 32 * WORD; at += 32) {
            T value;
            weight(tile[at], value);
            if (first + at >= 0 && first + at < fan) y[first + at] = value;
        }
    }
}

// A warp makes a row, 32 words at a time: each lane one word, as int8 in shared memory, and then 16 bytes of y at a
// time. An index outside the rows gives NaN: a kernel cannot raise an error.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    slt_embedding_forward(const __grid_constant__ EmbeddingForward a) {
    __shared__ NormalTable table;
    __shared__ alignas(16) int8_t staged[WARPS][32 * WORD];
    table.fill(a.generator);
    __syncthreads();
    const Generator &g = a.generator;
    const int lane = threadIdx.x % 32;
    const int64_t n = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32, fan = g.source.fan;
    if (n >= a.count) return;
    const int64_t wanted = a.index[n];
    const bool exists = uint64_t(wanted) < g.rows;
    const uint32_t row = exists ? uint32_t(wanted) : 0;
    const float scale = exists ? *a.scale : __int_as_float(0x7FC00000);
    int8_t *tile = staged[threadIdx.x / 32];
    for (int32_t first = -g.skipped; first < int32_t(g.words); first += 32) {
        const int32_t word = first + lane;
        const Place at{row, uint32_t(word + g.skipped) / uint32_t(WORDS_PER_CALL), exists ? word : -1};
        uint32_t keep = a.compact ? compact_word<ANY>(g, a.mask, a.segment_starts, a.call_starts, at)
                                  : resolved_word(g, a.mask, at);
        if (!exists) keep = 0xFFFFFFFF;  // every weight, so that all become NaN
        const Words8 made = kept_values(g, call_index(g, row, at.call), lane % WORDS_PER_CALL, keep, table);
        const uint32_t *v = made.word;
        reinterpret_cast<uint4 *>(tile)[2 * lane] = make_uint4(v[0], v[1], v[2], v[3]);
        reinterpret_cast<uint4 *>(tile)[2 * lane + 1] = make_uint4(v[4], v[5], v[6], v[7]);
        __syncwarp();
        const int64_t column = first * WORD;
        if (a.type == FLOAT32)
            write_row(static_cast<uint32_t *>(a.y) + n * fan, a.type, fan, column, tile, scale);
        else
            write_row(static_cast<uint16_t *>(a.y) + n * fan, a.type, fan, column, tile, scale);
        __syncwarp();
    }
}

// The sums of a warp: lane l has column l of each word of a call.
struct Sums {
    double word[WORDS_PER_CALL];
};

// Writes the gradient of the scores of one call of a row.
__device__ __forceinline__ void write_grads(const EmbeddingGradScores &a, const NormalTable &table, uint32_t row,
                                            uint32_t call, const Sums &sums) {
    const Generator &g = a.generator;
    const int lane = threadIdx.x % 32, bit = bit_of_k(lane);
    const int32_t first = int32_t(WORDS_PER_CALL * call) - g.skipped;
    const uint64_t index = call_index(g, row, call);
    const int i = lane % WORDS_PER_CALL;
    const uint32_t free = frozen_word<ANY>(g, WORDS_PER_CALL * index + i, valid_word(g, first + i)).free;
    const int before = free_before(__popc(free));
    const int64_t start = free_start<ANY>(g, a.segment_starts, a.call_starts, row, call);
    const double scale = *a.scale;
    const bool is_signed = g.source.weight == SIGNED_CONSTANT;
    // Of bytes, lane l makes half l % 2 of word l / 2 % 4.
    const Words4 words = call_words(g.weight, is_signed ? index : 2 * WORDS_PER_CALL * index + lane % 8);
#pragma unroll
    for (int w = 0; w < WORDS_PER_CALL; ++w) {
        int v;
        if (is_signed) {
            v = 1 - 2 * int(words.word[w] >> bit & 1);
        } else {
            uint32_t bytes = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t other = __shfl_sync(0xFFFFFFFF, words.word[j], 2 * w + lane / 16);
                bytes = lane / 4 % 4 == j ? other : bytes;
            }
            v = int8_t(four_values(g.source.weight, bytes >> lane % 4 * 8 & 0xFF, table));
        }
        const uint32_t here = __shfl_sync(0xFFFFFFFF, free, w);
        const int lower = __shfl_sync(0xFFFFFFFF, before, w);
        if (here >> bit & 1) {
            const int64_t at = start + lower + __popc(here & ((1u << bit) - 1));
            const uint32_t score = a.scores[at];
            const double grad = sums.word[w] * v * scale;
            const bool negative = score - 0x80000001u < INFINITE;  // not -0, nor NaN
            a.out[at] = __double2float_rn(negative ? -grad : grad);
        }
    }
}

// A chunk of look-ups, and a call of columns: what a warp does.
struct Task {
    int64_t chunk, begin, end;
    uint32_t call;
    bool exists;
};

__device__ __forceinline__ Task task_of(const EmbeddingGradScores &a) {
    const uint32_t n = blockIdx.x * WARPS + threadIdx.x / 32;
    const uint32_t chunk = n / a.generator.by_calls;
    const int64_t begin = int64_t(chunk) * a.CHUNK;
    return {chunk, begin, least(begin + a.CHUNK, a.count), n - chunk * a.generator.calls, begin < a.count};
}

// What was or will be summed up elsewhere of a row: part 0 of a chunk where it began before, part 1 where it begins.
__device__ __forceinline__ double *part_of(const EmbeddingGradScores &a, int64_t chunk, int which, uint32_t call) {
    return a.parts + ((2 * chunk + which) * a.generator.calls + call) * CALL + threadIdx.x % 32;
}

// The numbers of a chunk's look-ups, two per lane.
struct Numbers {
    int64_t first, second;

    __device__ __forceinline__ int64_t operator[](int n) const {
        return __shfl_sync(0xFFFFFFFF, n < 32 ? first : second, n % 32);
    }
};

__device__ __forceinline__ Numbers numbers(const int64_t *from, int count) {
    const int lane = threadIdx.x % 32;
    return {lane < count ? from[lane] : 0, lane + 32 < count ? from[lane + 32] : 0};
}

// Adds look-ups [begin, end) of a chunk in the order of the batch, two at a time. `column`: the lane's, of each word; 0
// for one outside the row, whose sum is not used.
template <class T>
__device__ __forceinline__ void add_rows(const EmbeddingGradScores &a, const Numbers &order, int begin, int end,
                                         const int32_t (&column)[WORDS_PER_CALL], Sums &sums) {
    const T *dy = static_cast<const T *>(a.dy);
#pragma unroll 1
    for (int n = begin; n < end; n += 2) {
        const T *row = dy + order[n] * a.generator.source.fan, *next = dy + order[n + 1] * a.generator.source.fan;
        T values[2][WORDS_PER_CALL];
#pragma unroll
        for (int w = 0; w < WORDS_PER_CALL; ++w) {
            values[0][w] = row[column[w]];
            values[1][w] = n + 1 < end ? next[column[w]] : T(0);
        }
#pragma unroll
        for (int w = 0; w < WORDS_PER_CALL; ++w) {  // adding +0 changes no sum: none is -0
            sums.word[w] += widened(values[0][w], a.type);
            sums.word[w] += widened(values[1][w], a.type);
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    slt_embedding_sum(const __grid_constant__ EmbeddingGradScores a) {
    __shared__ NormalTable table;
    table.fill(a.generator);
    __syncthreads();
    const Generator &g = a.generator;
    const Task task = task_of(a);
    if (!task.exists) return;
    const int lane = threadIdx.x % 32;
    int32_t column[WORDS_PER_CALL];
#pragma unroll
    for (int w = 0; w < WORDS_PER_CALL; ++w) {
        const int32_t k = (int32_t(WORDS_PER_CALL * task.call) + w - g.skipped) * int32_t(WORD) + lane;
        column[w] = uint32_t(k) < g.source.fan ? k : 0;
    }
    const int count = int(task.end - task.begin);
    const Numbers index = numbers(a.index + task.begin, count), order = numbers(a.order + task.begin, count);
    const int64_t before = task.begin > 0 ? a.index[task.begin - 1] : -1;
    const int64_t after = task.end < a.count ? a.index[task.end] : -1;
    for (int begin = 0, end; begin < count; begin = end) {
        const int64_t row = index[begin];
        end = begin + __popc(__ballot_sync(0xFFFFFFFF, lane >= begin && lane < count && index.first == row)) +
              __popc(__ballot_sync(0xFFFFFFFF, lane + 32 >= begin && lane + 32 < count && index.second == row));
        if (uint64_t(row) >= g.rows) continue;  // an index outside the rows has no scores
        Sums sums{};
        if (a.type == FLOAT32)
            add_rows<uint32_t>(a, order, begin, end, column, sums);
        else
            add_rows<uint16_t>(a, order, begin, end, column, sums);
        const bool began_before = begin == 0 && before == row, goes_on = end == count && after == row;
        if (began_before || goes_on) {
            double *part = part_of(a, task.chunk, began_before ? 0 : 1, task.call);
#pragma unroll
            for (int w = 0; w < WORDS_PER_CALL; ++w) part[w * WORD] = sums.word[w];
        } else {
            write_grads(a, table, uint32_t(row), task.call, sums);
        }
    }
}

// A warp adds the parts of the row that begins in its chunk and ends after it, in their order.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    slt_embedding_add_parts(const __grid_constant__ EmbeddingGradScores a) {
    __shared__ NormalTable table;
    table.fill(a.generator);
    __syncthreads();
    const Task task = task_of(a);
    if (!task.exists || task.end == a.count) return;
    const int64_t row = a.index[task.end - 1];
    if (uint64_t(row) >= a.generator.rows || a.index[task.end] != row) return;
    if (task.begin > 0 && a.index[task.begin - 1] == row && a.index[task.begin] == row) return;  // began before
    int64_t end = task.end, past = a.count;  // the row's look-ups end in [end, past]
    while (end < past) {
        const int64_t middle = (end + past) / 2;
        if (a.index[middle] == row)
            end = middle + 1;
        else
            past = middle;
    }
    Sums sums;
#pragma unroll
    for (int w = 0; w < WORDS_PER_CALL; ++w) sums.word[w] = part_of(a, task.chunk, 1, task.call)[w * WORD];
    const int64_t last = (end - 1) / a.CHUNK;
#pragma unroll 2
    for (int64_t chunk = task.chunk + 1; chunk <= last; ++chunk)
#pragma unroll
        for (int w = 0; w < WORDS_PER_CALL; ++w) sums.word[w] += part_of(a, chunk, 0, task.call)[w * WORD];
    write_grads(a, table, uint32_t(row), task.call, sums);
}

}  // namespace slt::cuda
