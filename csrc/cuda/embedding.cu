// Embedding: rows generated as they are looked up, and the gradient of their scores.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "contract/scores.h"
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

constexpr int WARPS = 8;

__device__ __forceinline__ void convert(float x, float &y) { y = x; }
__device__ __forceinline__ void convert(float x, __half &y) { y = __float2half_rn(x); }
__device__ __forceinline__ void convert(float x, __nv_bfloat16 &y) { y = __float2bfloat16_rn(x); }
__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

// 16 bytes.
template <class T>
struct alignas(16) Run {
    static constexpr int SIZE = 16 / sizeof(T);
    T value[SIZE];
};

// A warp makes a row, 32 words at a time: each lane one word, as int8 in shared memory, and then 16 bytes of y at a
// time. An index outside the rows gives NaN: a kernel cannot raise an error.
template <class T, int FORM>
__device__ __forceinline__ void embedding_forward(const EmbeddingForward &a) {
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
    const float scale = *a.scale;
    T *y = static_cast<T *>(a.y) + n * fan;
    const bool aligned = (reinterpret_cast<uintptr_t>(a.y) | fan * sizeof(T)) % 16 == 0;
    int8_t *tile = staged[threadIdx.x / 32];
    for (int32_t first = -g.skipped; first < int32_t(g.words); first += 32) {
        const int32_t word = first + lane;
        const Place at{row, uint32_t(word + g.skipped) / uint32_t(WORDS_PER_CALL), exists ? word : -1};
        const uint32_t keep = resolved_word<FORM>(g, a.mask, a.segment_starts, a.call_starts, at);
        const Words8 made = kept_values(g, call_index(g, row, at.call), lane % WORDS_PER_CALL, keep, table);
        const uint32_t *v = made.word;
        reinterpret_cast<uint4 *>(tile)[2 * lane] = make_uint4(v[0], v[1], v[2], v[3]);
        reinterpret_cast<uint4 *>(tile)[2 * lane + 1] = make_uint4(v[4], v[5], v[6], v[7]);
        __syncwarp();
#pragma unroll
        for (int run = 0; run < int(WORD) / Run<T>::SIZE; ++run) {
            const int from = (32 * run + lane) * Run<T>::SIZE;
            const int64_t k = first * WORD + from;
            Run<T> out;
#pragma unroll
            for (int i = 0; i < Run<T>::SIZE; ++i) {
                const int value = tile[from + i];
                const float product = value ? float(value) * scale : 0.0f;  // +0, whatever the scale's sign
                convert(exists ? product : __int_as_float(0x7FC00000), out.value[i]);
            }
            if (aligned) {
                if (k >= 0 && k < fan) *reinterpret_cast<Run<T> *>(y + k) = out;
            } else {
#pragma unroll
                for (int i = 0; i < Run<T>::SIZE; ++i)
                    if (k >= 0 && k + i < fan) y[k + i] = out.value[i];
            }
        }
        __syncwarp();
    }
}

// The sums of a warp: lane l has column l of each word of a call.
struct Sums {
    double word[WORDS_PER_CALL];
};

// Writes the gradient of the scores of one call of a row.
template <int PLANES>
__device__ __forceinline__ void write_grads(const EmbeddingGradScores &a, const NormalTable &table, uint32_t row,
                                            uint32_t call, const Sums &sums) {
    const Generator &g = a.generator;
    const int lane = threadIdx.x % 32, bit = bit_of_k(lane);
    const int32_t first = int32_t(WORDS_PER_CALL * call) - g.skipped;
    const uint64_t index = call_index(g, row, call);
    const int i = lane % WORDS_PER_CALL;
    const uint32_t free = frozen_word<PLANES>(g, WORDS_PER_CALL * index + i, valid_word(g, first + i)).free;
    const int before = free_before(__popc(free));
    const int64_t start = free_start<PLANES>(g, a.segment_starts, a.call_starts, row, call);
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

template <class T, int PLANES>
__device__ __forceinline__ void sum_chunk(const EmbeddingGradScores &a) {
    __shared__ NormalTable table;
    table.fill(a.generator);
    __syncthreads();
    const Generator &g = a.generator;
    const Task task = task_of(a);
    if (!task.exists) return;
    const int lane = threadIdx.x % 32;
    const int64_t fan = g.source.fan, column = (int64_t(WORDS_PER_CALL * task.call) - g.skipped) * WORD + lane;
    const T *dy = static_cast<const T *>(a.dy);
    for (int64_t begin = task.begin, end; begin < task.end; begin = end) {
        const int64_t row = a.index[begin];
        end = begin;
        for (int64_t from = begin; from < task.end; from += 32) {  // the end of the run of the row
            const bool same = from + lane < task.end && a.index[from + lane] == row;
            const int more = __popc(__ballot_sync(0xFFFFFFFF, same));
            end += more;
            if (more < 32) break;
        }
        if (uint64_t(row) >= g.rows) continue;  // an index outside the rows has no scores
        Sums sums{};
#pragma unroll 4
        for (int64_t n = begin; n < end; ++n) {  // in the order of the batch
            const T *from = dy + a.order[n] * fan + column;
#pragma unroll
            for (int w = 0; w < WORDS_PER_CALL; ++w) {
                const int64_t k = column + w * WORD;
                if (k >= 0 && k < fan) sums.word[w] += widened(from[w * WORD]);
            }
        }
        const bool began_before = begin == task.begin && begin > 0 && a.index[begin - 1] == row;
        const bool goes_on = end == task.end && end < a.count && a.index[end] == row;
        if (began_before || goes_on) {
            double *part = part_of(a, task.chunk, began_before ? 0 : 1, task.call);
#pragma unroll
            for (int w = 0; w < WORDS_PER_CALL; ++w) part[w * WORD] = sums.word[w];
        } else {
            write_grads<PLANES>(a, table, uint32_t(row), task.call, sums);
        }
    }
}

// A warp adds the parts of the row that begins in its chunk and ends after it, in their order.
template <int PLANES>
__device__ __forceinline__ void add_parts(const EmbeddingGradScores &a) {
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
#pragma unroll 4
    for (int64_t chunk = task.chunk + 1; chunk <= last; ++chunk)
#pragma unroll
        for (int w = 0; w < WORDS_PER_CALL; ++w) sums.word[w] += part_of(a, chunk, 0, task.call)[w * WORD];
    write_grads<PLANES>(a, table, uint32_t(row), task.call, sums);
}

#define SLT_KERNEL(NAME, ARGUMENTS, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) NAME(const __grid_constant__ ARGUMENTS a) {               \
        __VA_ARGS__(a);                                                                                                \
    }
#define SLT_FORWARD(NAME, T)                                                                                           \
    SLT_KERNEL(slt_embedding_forward_##NAME##_resolved, EmbeddingForward, embedding_forward<T, RESOLVED>)              \
    SLT_KERNEL(slt_embedding_forward_##NAME##_0, EmbeddingForward, embedding_forward<T, 0>)                            \
    SLT_KERNEL(slt_embedding_forward_##NAME##_4, EmbeddingForward, embedding_forward<T, 4>)                            \
    SLT_KERNEL(slt_embedding_forward_##NAME##_8, EmbeddingForward, embedding_forward<T, 8>)
#define SLT_SUM_CHUNK(NAME, T)                                                                                         \
    SLT_KERNEL(slt_embedding_sum_##NAME##_0, EmbeddingGradScores, sum_chunk<T, 0>)                                     \
    SLT_KERNEL(slt_embedding_sum_##NAME##_4, EmbeddingGradScores, sum_chunk<T, 4>)                                     \
    SLT_KERNEL(slt_embedding_sum_##NAME##_8, EmbeddingGradScores, sum_chunk<T, 8>)

SLT_FORWARD(float32, float)
SLT_FORWARD(bfloat16, __nv_bfloat16)
SLT_FORWARD(float16, __half)
SLT_SUM_CHUNK(float32, float)
SLT_SUM_CHUNK(bfloat16, __nv_bfloat16)
SLT_SUM_CHUNK(float16, __half)
SLT_KERNEL(slt_embedding_add_parts_0, EmbeddingGradScores, add_parts<0>)
SLT_KERNEL(slt_embedding_add_parts_4, EmbeddingGradScores, add_parts<4>)
SLT_KERNEL(slt_embedding_add_parts_8, EmbeddingGradScores, add_parts<8>)

}  // namespace slt::cuda
