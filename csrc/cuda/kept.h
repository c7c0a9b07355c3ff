// The kept weights of two rows of a weight matrix, 8 apart, which one thread makes: a call (four words a row) at a time.
#pragma once

#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

// A thread's rows. A row past the last one has no calls.
struct ThreadRows {
    uint32_t row;    // the first
    uint64_t index;  // of its call 0 of SIGN
    int calls[2];

    __device__ __forceinline__ ThreadRows(const Generator &g, uint32_t row)
        : row(row),
          index(call_index(g, row, 0)),
          calls{row < g.rows ? int(g.calls) : 0, row + 8 < g.rows ? int(g.calls) : 0} {}
};

// The index of a call of row r of a thread's two.
__device__ __forceinline__ uint64_t call_index(const ForwardSmall &a, const ThreadRows &rows, int r, int call) {
    return rows.index + uint32_t(call) + (r ? a.eight_rows : 0);
}

typedef uint32_t KeptWords[2][4];

// Words of a resolved mask, read one call ahead.
class ResolvedWords {
  public:
    // The words of `call`, which was read before; reads those of the call `following`.
    __device__ __forceinline__ void take(const ForwardSmall &a, const ThreadRows &rows, int, int following,
                                         KeptWords &words) {
#pragma unroll
        for (int i = 0; i < 8; ++i) words[i / 4][i % 4] = next[i / 4][i % 4];
        read(a, rows, following);
    }

    __device__ __forceinline__ void read(const ForwardSmall &a, const ThreadRows &rows, int call) {
        const Generator &g = a.generator;
        const uint32_t *row = a.mask + uint64_t(rows.row) * g.words + (call * 4 - g.skipped);
#pragma unroll
        for (int r = 0; r < 2; ++r, row += 8 * uint64_t(g.words)) {
            if (a.aligned_words) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (call < rows.calls[r]) v = __ldg(reinterpret_cast<const uint4 *>(row));
                next[r][0] = v.x, next[r][1] = v.y, next[r][2] = v.z, next[r][3] = v.w;
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool valid = call < rows.calls[r] && uint32_t(call * 4 + i - g.skipped) < g.words;
                    next[r][i] = valid ? __ldg(row + i) : 0;
                }
            }
        }
    }

  private:
    KeptWords next;
};

// Words of a compact mask; where a call's bits start is read one call ahead.
class CompactWords {
  public:
    __device__ __forceinline__ void take(const ForwardSmall &a, const ThreadRows &rows, int call, int following,
                                         KeptWords &words) {
        const Generator &g = a.generator;
        int64_t start[2] = {next[0], next[1]};
        read(a, rows, following);
#pragma unroll
        for (int i = 0; i < 8; ++i) words[i / 4][i % 4] = 0;
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t valid = call < rows.calls[r] ? valid_word(g, call * 4 + i - g.skipped) : 0;
                const uint64_t index = 4 * call_index(a, rows, r, call) + i;
                const FrozenWord frozen = a.planes == 0   ? frozen_word<0>(g, index, valid)
                                          : a.planes == 4 ? frozen_word<4>(g, index, valid)
                                                          : frozen_word<8>(g, index, valid);
                const int count = __popc(frozen.free);
                const uint32_t bits = mask_bits(a.mask, start[r], count);
                start[r] += count;
                const uint32_t kept = a.planes == 0 ? deposit_halves(bits, frozen.free) : deposit(bits, frozen.free);
                // A loop cannot index registers.
#pragma unroll
                for (int j = 0; j < 4; ++j) words[r][j] = i == j ? kept | frozen.locked : words[r][j];
            }
        }
    }

    __device__ __forceinline__ void read(const ForwardSmall &a, const ThreadRows &rows, int call) {
        const Generator &g = a.generator;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t row = rows.row + 8 * r;
            if (call >= rows.calls[r])
                next[r] = 0;
            else
                next[r] = a.planes == 0 ? free_start<0>(g, a.segment_starts, a.call_starts, row, call)
                                        : free_start<8>(g, a.segment_starts, a.call_starts, row, call);
        }
    }

  private:
    int64_t next[2];
};

}  // namespace slt::cuda
