// The kept weights of two rows of a weight matrix, 8 apart, which one thread makes: a call (four words per row) at a
// time.
#pragma once

#include "cuda/arguments.h"
#include "cuda/ptx.h"
#include "cuda/words.h"

namespace slt::cuda {

// A thread's rows, and the call that it is at.
struct ThreadRows {
    uint32_t row;    // the first
    int call;        // in the frame of the source
    uint64_t index;  // of the call of SIGN in the first row

    __device__ __forceinline__ ThreadRows(const Generator &g, uint32_t row, int call)
        : row(row), call(call), index(call_index(g, row, call)) {}

    __device__ __forceinline__ void advance(int calls) {
        call += calls;
        index += uint32_t(calls);
    }
};

// The index of the call in row r of a thread's two.
__device__ __forceinline__ uint64_t call_index(const ForwardSmall &a, const ThreadRows &rows, int r) {
    return rows.index + (r ? a.eight_rows : 0);
}

typedef uint32_t KeptWords[2][4];

// Words of a resolved mask, read into registers AHEAD calls before they are used. Those of rows and calls past the last
// ones are any words: no output and no element of x has them.
template <int CALLS_AHEAD>
class ResolvedWords {
  public:
    static constexpr int AHEAD = CALLS_AHEAD;

    // `stride` is the distance of the thread's calls.
    __device__ __forceinline__ ResolvedWords(const ForwardSmall &a, const ThreadRows &rows, int stride) {
        const Generator &g = a.generator;
#pragma unroll
        for (int r = 0; r < 2; ++r)
            row[r] = a.mask + uint64_t(min(rows.row + 8 * r, g.rows - 1)) * g.words + (rows.call * 4 - g.skipped);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            read(a, rows.call + i * stride, next[i]);
            advance(stride);
        }
    }

    // The words of the current call. The loop that uses them is unrolled AHEAD times, and TURN counts its copies.
    template <int TURN>
    __device__ __forceinline__ void take(const ForwardSmall &a, const ThreadRows &rows, int stride, KeptWords &words) {
#pragma unroll
        for (int i = 0; i < 8; ++i) words[i / 4][i % 4] = next[TURN][i / 4][i % 4];
        if constexpr (AHEAD == 1) refill(a, rows, stride, next[0]);
    }

    // After the words were used, so that others can take their registers.
    template <int TURN>
    __device__ __forceinline__ void used(const ForwardSmall &a, const ThreadRows &rows, int stride) {
        if constexpr (AHEAD > 1) refill(a, rows, stride, next[TURN]);
    }

  private:
    __device__ __forceinline__ void advance(int stride) {
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] += stride * 4;
    }

    __device__ __forceinline__ void refill(const ForwardSmall &a, const ThreadRows &rows, int stride, KeptWords &to) {
        read(a, rows.call + AHEAD * stride, to);
        advance(stride);
    }

    __device__ __forceinline__ void read(const ForwardSmall &a, int call, KeptWords &to) {
        if (a.aligned_words) {
            if (call >= int(a.generator.calls)) return;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint4 v = __ldg(reinterpret_cast<const uint4 *>(row[r]));
                to[r][0] = v.x, to[r][1] = v.y, to[r][2] = v.z, to[r][3] = v.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (uint32_t(call * 4 + i - a.generator.skipped) >= a.generator.words) continue;
#pragma unroll
                for (int r = 0; r < 2; ++r) to[r][i] = __ldg(row[r] + i);
            }
        }
    }

    const uint32_t *row[2];  // the words that are read next
    KeptWords next[AHEAD] = {};
};

// Words of a compact mask; where a call's bits start is read one call ahead.
class CompactWords {
  public:
    static constexpr int AHEAD = 1;

    __device__ __forceinline__ CompactWords(const ForwardSmall &a, const ThreadRows &rows, int) {
        read(a, rows, rows.call);
    }

    template <int TURN>
    __device__ __forceinline__ void take(const ForwardSmall &a, const ThreadRows &rows, int stride, KeptWords &words) {
        const Generator &g = a.generator;
        int64_t start[2] = {next[0], next[1]};
        read(a, rows, rows.call + stride);
#pragma unroll
        for (int i = 0; i < 8; ++i) words[i / 4][i % 4] = 0;
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t valid = has(g, rows, r, rows.call) ? valid_word(g, rows.call * 4 + i - g.skipped) : 0;
                const uint64_t index = 4 * call_index(a, rows, r) + i;
                const FrozenWord frozen = frozen_word<ANY>(g, index, valid);
                const int count = __popc(frozen.free);
                const uint32_t bits = mask_bits(a.mask, start[r], count);
                start[r] += count;
                const uint32_t kept = g.planes == 0 ? deposit_halves(bits, frozen.free) : deposit(bits, frozen.free);
                // A loop cannot index registers.
#pragma unroll
                for (int j = 0; j < 4; ++j) words[r][j] = i == j ? kept | frozen.locked : words[r][j];
            }
        }
    }

    template <int TURN>
    __device__ __forceinline__ void used(const ForwardSmall &, const ThreadRows &, int) {}

  private:
    // Whether row r of the two has that call.
    static __device__ __forceinline__ bool has(const Generator &g, const ThreadRows &rows, int r, int call) {
        return rows.row + 8 * r < g.rows && call < int(g.calls);
    }

    __device__ __forceinline__ void read(const ForwardSmall &a, const ThreadRows &rows, int call) {
        const Generator &g = a.generator;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t row = rows.row + 8 * r;
            next[r] = has(g, rows, r, call) ? free_start<ANY>(g, a.segment_starts, a.call_starts, row, call) : 0;
        }
    }

    int64_t next[2];
};

}  // namespace slt::cuda
