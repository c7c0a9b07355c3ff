// From dL/dW of some rows and one call of Philox to the scores' gradient: dL/dW * v * scale * sign(score) at the free
// weights. A score of 0 counts as positive.
#pragma once

#include "cuda/arguments.h"
#include "cuda/ptx.h"
#include "cuda/words.h"

namespace slt::cuda {

// What a block's threads need of a word to write its gradients.
struct alignas(16) GradWord {
    uint32_t free;
    uint32_t sign;       // 0 of weights that are bytes
    const float *score;  // of the first free weight
};

// In one load.
__device__ __forceinline__ GradWord loaded(const GradWord &from) {
    GradWord word;
    *reinterpret_cast<uint4 *>(&word) = *reinterpret_cast<const uint4 *>(&from);
    return word;
}

// Shared memory; the rows of a block and one call.
template <int ROWS>
struct GradRows {
    // The padding lets the lanes of a warp write the sums of 8 rows at once.
    static constexpr int PITCH = int(CALL) + 8;
    float sums[ROWS][PITCH];
    GradWord words[ROWS][WORDS_PER_CALL];
    alignas(16) int8_t values[ROWS][CALL];  // of weights that are bytes
    NormalTable table;
};

// The free weights of a word, of those in `valid`. `planes` is no template argument, so that there are fewer kernels.
__device__ __forceinline__ uint32_t free_word(const Generator &g, int planes, uint64_t index, uint32_t valid) {
    if (planes == 0) return valid;
    const Words4 first = call_words(g.freeze, 2 * index);
    uint32_t plane[8] = {first.word[0], first.word[1], first.word[2], first.word[3]};
    if (planes == 8) {
        const Words4 second = call_words(g.freeze, 2 * index + 1);
        for (int i = 0; i < 4; ++i) plane[4 + i] = second.word[i];
    }
    // Of the thresholds that four planes decide, the other bits are 0, and any planes give the same.
    return below<8>(plane, g.lock) & ~below<8>(plane, g.prune) & valid;
}

// The number of free weights before a call.
__device__ __forceinline__ int64_t start_of(const GradScores &a, uint32_t row, uint32_t call) {
    return a.planes == 0 ? free_start<0>(a.generator, a.segment_starts, a.call_starts, row, call)
                         : free_start<8>(a.generator, a.segment_starts, a.call_starts, row, call);
}

// Brings the scores of a block near, so that `write_grads` waits less for them: all that its calls may have.
template <int ROWS, int THREADS>
__device__ __forceinline__ void prefetch_scores(const GradScores &a, uint32_t begin, uint32_t end, uint32_t call) {
    static_assert(ROWS <= THREADS);
    const uint32_t row = begin + threadIdx.x;
    if (row >= end) return;
    const int64_t start = start_of(a, row, call);
    constexpr int LINE = 128 / sizeof(float);
#pragma unroll
    for (int i = 0; i <= int(CALL) / LINE; ++i) {
        const int64_t at = start + (i < int(CALL) / LINE ? i * LINE : int(CALL) - 1);
        if (at < a.free) prefetch(a.scores + at);
    }
}

// Half a warp has a word, and a lane the bits b and b + 16 of it: their sums, of k and k + 1, are one beside the other.
// The free weights of a half of a word are written one beside the other. Rows that do not exist have none. WHOLE: all
// weights of the words are free, and have signs.
template <int ROWS, int THREADS, bool WHOLE>
__device__ __forceinline__ void write_rows(const GradScores &a, const GradRows<ROWS> &rows, uint32_t end) {
    const uint32_t thread = thread_number(), own = thread % 32 / 16, bit = thread % 16;
    const int64_t to_out = reinterpret_cast<char *>(a.out) - reinterpret_cast<const char *>(a.scores);
    const float scale = *a.scale;
    // Scores of several rows are read at once, since each takes long.
    constexpr uint32_t WARPS = THREADS / 32, MOST = WHOLE ? 2 : 4;
    constexpr uint32_t TOGETHER = ROWS / WARPS < MOST ? ROWS / WARPS : MOST;
    static_assert(ROWS % (TOGETHER * WARPS) == 0);
    constexpr int PAIRS = WORDS_PER_CALL / 2 * TOGETHER, HALF = WORD / 2;  // of weights
#pragma unroll 1
    for (uint32_t from = thread / 32; from < end; from += TOGETHER * WARPS) {
        const float *at[PAIRS][2];
        float score[PAIRS][2], grad[PAIRS][2];
        bool is_free[PAIRS][2], negative[PAIRS][2];
#pragma unroll
        for (int n = 0; n < PAIRS; ++n) {
            const uint32_t r = from + n / 2 * WARPS, i = n % 2 * 2 + own;
            const GradWord word = loaded(rows.words[r][i]);
            const float2 sums = *reinterpret_cast<const float2 *>(&rows.sums[r][WORD * i + 2 * bit]);
            grad[n][0] = sums.x * scale, grad[n][1] = sums.y * scale;
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const uint32_t here = (odd ? 0x10000 : 1) << bit;
                is_free[n][odd] = WHOLE ? word.free : word.free & here;
                negative[n][odd] = word.sign & here;
                at[n][odd] = WHOLE ? word.score + bit + HALF * odd : word.score + __popc(word.free & (here - 1));
                if (is_free[n][odd]) score[n][odd] = __ldg(at[n][odd]);
            }
        }
        if (!WHOLE && a.generator.source.weight != SIGNED_CONSTANT) {
#pragma unroll
            for (int n = 0; n < PAIRS; ++n) {
                const uint32_t r = from + n / 2 * WARPS, i = n % 2 * 2 + own;
                const char2 values = *reinterpret_cast<const char2 *>(&rows.values[r][WORD * i + 2 * bit]);
                grad[n][0] *= float(values.x), grad[n][1] *= float(values.y);
            }
        }
#pragma unroll
        for (int n = 0; n < PAIRS; ++n) {
            const char *to[2];
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                if (!is_free[n][odd]) continue;
                if (!WHOLE || odd == 0) to[odd] = reinterpret_cast<const char *>(at[n][odd]) + to_out;
                if (WHOLE && odd == 1) to[1] = to[0] + HALF * sizeof(float);
                const bool negate = (score[n][odd] < 0) != negative[n][odd];
                store_global(to[odd], negate ? -grad[n][odd] : grad[n][odd]);
            }
        }
    }
}

// Writes the rows in [begin, end) of those from `first` on. Called by all threads of a block, after they have stored
// the sums.
template <int ROWS, int THREADS>
__device__ __forceinline__ void write_grads(const GradScores &a, GradRows<ROWS> &rows, uint32_t first, uint32_t begin,
                                            uint32_t end, uint32_t call) {
    const Generator &g = a.generator;
    const bool is_signed = g.source.weight == SIGNED_CONSTANT;
    rows.table.fill(g);
    if (g.source.weight == NORMAL) __syncthreads();
    const uint32_t i = threadIdx.x % WORDS_PER_CALL;  // a thread has this word of some rows
    const uint32_t valid = valid_word(g, int32_t(WORDS_PER_CALL * call + i) - g.skipped);
#pragma unroll 1
    for (uint32_t r = threadIdx.x / WORDS_PER_CALL; r < ROWS; r += THREADS / WORDS_PER_CALL) {
        const uint32_t row = first + r;
        const bool exists = row >= begin && row < end;
        const uint64_t index = call_index(g, row, call);
        const uint32_t free = free_word(g, a.planes, WORDS_PER_CALL * index + i, exists ? valid : 0);
        int64_t start = free_before(__popc(free));
        if (exists) start += start_of(a, row, call);
        rows.words[r][i].free = free;
        rows.words[r][i].score = a.scores + start;
        if (!is_signed) {
            rows.words[r][i].sign = 0;
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
                const Words4 bytes = call_words(g.weight, 2 * (WORDS_PER_CALL * index + i) + half);
                reinterpret_cast<uint4 *>(rows.values[r])[2 * i + half] =
                    make_uint4(four_values(g.source.weight, bytes.word[0], rows.table),
                               four_values(g.source.weight, bytes.word[1], rows.table),
                               four_values(g.source.weight, bytes.word[2], rows.table),
                               four_values(g.source.weight, bytes.word[3], rows.table));
            }
        }
    }
    if (is_signed)
        for (int r = threadIdx.x; r < ROWS; r += THREADS) {
            const Words4 signs = call_words(g.weight, call_index(g, first + r, call));
#pragma unroll
            for (int i = 0; i < WORDS_PER_CALL; ++i) rows.words[r][i].sign = signs.word[i];
        }
    __syncthreads();

    // Blocks of few rows do not pay for the code.
    if (ROWS >= THREADS / 2 && is_signed && a.planes == 0 && g.source.fan % WORD == 0)
        write_rows<ROWS, THREADS, true>(a, rows, end - first);
    else
        write_rows<ROWS, THREADS, false>(a, rows, end - first);
}

// The sums of a row and call over one part of the columns, for `add_grad_parts`.
__device__ __forceinline__ float4 *part_of(const GradScores &a, uint32_t part, uint32_t row, uint32_t call) {
    const uint64_t at = (uint64_t(part) * a.generator.rows + row) * a.generator.calls + call;
    return reinterpret_cast<float4 *>(a.parts) + at * (CALL / 4);
}

__device__ __forceinline__ void add(float4 &sum, const float4 &more) {
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

// Adds the parts of the columns, always in the same order. A block has 8 rows of one call, a warp every eighth part.
constexpr int ADD_ROWS = 8, ADD_THREADS = 256;

struct AddedParts {
    GradRows<ADD_ROWS> rows;
    float4 warps[ADD_THREADS / 32][ADD_ROWS][CALL / 4];
};

__device__ __forceinline__ void add_grad_parts(const GradScores &a) {
    __shared__ AddedParts shared;
    constexpr int WARPS = ADD_THREADS / 32;
    static_assert(WARPS == ADD_ROWS);
    const Generator &g = a.generator;
    const uint32_t call = blockIdx.x % g.calls, first = blockIdx.x / g.calls * ADD_ROWS;
    const uint32_t end = min(first + ADD_ROWS, g.rows), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t k = int32_t(call) * int32_t(CALL) - g.skipped * int32_t(WORD) + int32_t(lane) * 4;
    const bool exists = k >= 0 && k < g.source.fan;  // other sums are not read: they may have been left out
    float4 sum[ADD_ROWS];
#pragma unroll
    for (int r = 0; r < ADD_ROWS; ++r) sum[r] = make_float4(0, 0, 0, 0);
#pragma unroll 2
    for (int part = warp; part < a.column_parts; part += WARPS)
#pragma unroll
        for (int r = 0; r < ADD_ROWS; ++r)
            if (exists && first + r < end) add(sum[r], part_of(a, part, first + r, call)[lane]);
#pragma unroll
    for (int r = 0; r < ADD_ROWS; ++r) shared.warps[warp][r][lane] = sum[r];
    __syncthreads();
    float4 total = shared.warps[0][warp][lane];  // of a row
#pragma unroll
    for (int w = 1; w < WARPS; ++w) add(total, shared.warps[w][warp][lane]);
    *reinterpret_cast<float4 *>(&shared.rows.sums[warp][lane * 4]) = total;
    write_grads<ADD_ROWS, ADD_THREADS>(a, shared.rows, first, first, end, call);
}

}  // namespace slt::cuda
