// From dL/dW of some rows and one call of Philox to the scores' gradient: dL/dW * v * scale * sign(score) at the free
// weights. A score of 0 counts as positive.
#pragma once

#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

// What a block's threads need of a word to write its gradients.
struct alignas(16) GradWord {
    uint32_t free;
    uint32_t sign;          // of signed weights
    const uint32_t *score;  // of the first free weight
};

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

// Rows `first` to `first + ROWS - 1`, of which those in [begin, end) are written. Called by all threads of a block, which
// have written the sums.
template <int ROWS, int THREADS>
__device__ __forceinline__ void write_grads(const GradScores &a, GradRows<ROWS> &rows, uint32_t first, uint32_t begin,
                                            uint32_t end, uint32_t call) {
    const Generator &g = a.generator;
    const bool is_signed = g.source.weight == SIGNED_CONSTANT;
    rows.table.fill(g);
    if (g.source.weight == NORMAL) __syncthreads();
#pragma unroll 1
    for (int n = threadIdx.x; n < WORDS_PER_CALL * ROWS; n += THREADS) {
        const int r = n / WORDS_PER_CALL, i = n % WORDS_PER_CALL;
        const uint32_t row = first + r;
        const bool exists = row >= begin && row < end;
        const uint64_t index = call_index(g, row, call);
        const uint32_t valid = exists ? valid_word(g, int32_t(WORDS_PER_CALL * call) + i - g.skipped) : 0;
        const uint32_t free = a.planes == 0   ? valid
                              : a.planes == 4 ? frozen_word<4>(g, WORDS_PER_CALL * index + i, valid).free
                                              : frozen_word<8>(g, WORDS_PER_CALL * index + i, valid).free;
        int64_t start = free_before(__popc(free));
        if (exists)
            start += a.planes == 0 ? free_start<0>(g, a.segment_starts, a.call_starts, row, call)
                                   : free_start<8>(g, a.segment_starts, a.call_starts, row, call);
        rows.words[r][i].free = free;
        rows.words[r][i].score = a.scores + start;
        if (!is_signed) {
            uint4 values[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Words4 bytes = call_words(g.weight, 2 * (WORDS_PER_CALL * index + i) + half);
                values[half] = make_uint4(four_values(g.source.weight, bytes.word[0], rows.table),
                                          four_values(g.source.weight, bytes.word[1], rows.table),
                                          four_values(g.source.weight, bytes.word[2], rows.table),
                                          four_values(g.source.weight, bytes.word[3], rows.table));
                reinterpret_cast<uint4 *>(rows.values[r])[2 * i + half] = values[half];
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

    // A lane has a bit of each word, so that a warp writes the free weights of a word one beside the other.
    const int lane = threadIdx.x % 32, k = k_of_bit(lane);
    const uint32_t lower = (1u << lane) - 1;
    const int64_t to_out = reinterpret_cast<char *>(a.out) - reinterpret_cast<const char *>(a.scores);
    const float scale = *a.scale;
#pragma unroll 1
    for (int r = threadIdx.x / 32; r < ROWS; r += THREADS / 32) {
        if (first + r < begin || first + r >= end) continue;
        const uint32_t *at[WORDS_PER_CALL];
        uint32_t score[WORDS_PER_CALL];
        bool is_free[WORDS_PER_CALL];
        float grad[WORDS_PER_CALL];
#pragma unroll
        for (int i = 0; i < WORDS_PER_CALL; ++i) {
            const GradWord word = rows.words[r][i];
            is_free[i] = word.free >> lane & 1;
            at[i] = word.score + __popc(word.free & lower);
            score[i] = is_free[i] ? *at[i] : 0;
            grad[i] = rows.sums[r][WORD * i + k] * scale;
            if (is_signed)
                grad[i] = __uint_as_float(__float_as_uint(grad[i]) ^ (word.sign << (31 - lane) & 0x80000000));
            else
                grad[i] *= float(rows.values[r][WORD * i + k]);
        }
#pragma unroll
        for (int i = 0; i < WORDS_PER_CALL; ++i)
            if (is_free[i]) {
                char *out = const_cast<char *>(reinterpret_cast<const char *>(at[i])) + to_out;
                *reinterpret_cast<float *>(out) = __uint_as_float(score[i]) < 0 ? -grad[i] : grad[i];
            }
    }
}

}  // namespace slt::cuda
