// The kept weights of the two rows of a weight matrix that a thread makes, one call (four words of each row) at a time.
#pragma once

#include "contract/frame.h"
#include "cuda/arguments.h"

namespace slt::cuda {

// A thread's rows, and their calls in the frame of the source. Rows past the last one have no calls.
struct ThreadRows {
    int64_t row[2];
    uint64_t first[2];  // index of call 0 of SIGN
    int calls[2];
    int skipped, words;
};

__device__ __forceinline__ ThreadRows thread_rows(const Source &s, const Frame &frame, int64_t row) {
    ThreadRows result;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        result.row[r] = row + 8 * r;
        result.first[r] = uint64_t(s.first_row + result.row[r]) * uint64_t(s.row_calls) + uint64_t(frame.first_call);
        result.calls[r] = result.row[r] < s.rows ? int(frame.calls) : 0;
    }
    result.skipped = int(frame.skipped);
    result.words = int(words_of(s));
    return result;
}

typedef uint32_t KeptWords[2][4];  // of rows g and g + 8

// Words of a resolved mask, read ahead of their use.
class Resolved {
  public:
    __device__ __forceinline__ Resolved(const ThreadRows &rows, const ForwardSmall &a)
        : aligned(rows.skipped == 0 && rows.words % 4 == 0 && reinterpret_cast<uint64_t>(a.mask) % 16 == 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] = a.mask + rows.row[r] * rows.words - rows.skipped;
    }

    __device__ __forceinline__ void read(const ThreadRows &rows, int call) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bool inside = call < rows.calls[r];
            if (aligned) {
                const uint4 v = inside ? __ldg(reinterpret_cast<const uint4 *>(row[r]) + call) : make_uint4(0, 0, 0, 0);
                next[r][0] = v.x, next[r][1] = v.y, next[r][2] = v.z, next[r][3] = v.w;
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int w = call * 4 + i;
                    const bool valid = inside && w >= rows.skipped && w < rows.skipped + rows.words;
                    next[r][i] = valid ? __ldg(row[r] + w) : 0;
                }
            }
        }
    }

    // The words of `call`, which is the one read last. `following` is read.
    __device__ __forceinline__ void take(const ThreadRows &rows, int, int following, KeptWords &words) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) words[r][i] = next[r][i];
        read(rows, following);
    }

  private:
    const uint32_t *row[2];  // word 0 of the frame
    bool aligned;            // a call's words can be loaded at once
    KeptWords next;
};

}  // namespace slt::cuda
