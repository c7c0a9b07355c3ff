// The kept weights of two rows of a weight matrix, 8 apart, which one thread makes: a call (four words a row) at a time.
#pragma once

#include "contract/frame.h"
#include "cuda/arguments.h"

namespace slt::cuda {

// A thread's rows. Rows past the last one have no calls.
struct ThreadRows {
    int64_t row;      // the first
    uint64_t index;   // of the first row's call 0 of SIGN, in the frame of the source
    int calls[2];     // in the frame
};

__device__ __forceinline__ ThreadRows thread_rows(const Source &s, int64_t row) {
    const Frame frame = frame_of(s);
    return {row,
            uint64_t(s.first_row + row) * uint64_t(s.row_calls) + uint64_t(frame.first_call),
            {row < s.rows ? int(frame.calls) : 0, row + 8 < s.rows ? int(frame.calls) : 0}};
}

// The index of a call of row r.
__device__ __forceinline__ uint64_t call_index(const ForwardSmall &a, const ThreadRows &rows, int r, int call) {
    return rows.index + uint32_t(call) + (r ? uint64_t(a.source.row_calls) * 8 : 0);
}

typedef uint32_t KeptWords[2][4];

// Words of a resolved mask, read one call ahead.
class Resolved {
  public:
    __device__ __forceinline__ Resolved(const ForwardSmall &a, const ThreadRows &rows)
        : row(a.mask + rows.row * words_of(a.source) - frame_of(a.source).skipped) {}

    __device__ __forceinline__ void read(const ForwardSmall &a, const ThreadRows &rows, int call) {
        const int skipped = int(frame_of(a.source).skipped), words = int(words_of(a.source));
        const bool aligned = skipped == 0 && words % 4 == 0 && reinterpret_cast<uint64_t>(a.mask) % 16 == 0;
        const uint32_t *at = row + call * 4;
        if (aligned) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (call < rows.calls[r]) v = __ldg(reinterpret_cast<const uint4 *>(at + r * 8 * int64_t(words)));
                next[r][0] = v.x, next[r][1] = v.y, next[r][2] = v.z, next[r][3] = v.w;
            }
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int w = call * 4 + i - skipped;
                    const bool valid = call < rows.calls[r] && w >= 0 && w < words;
                    next[r][i] = valid ? __ldg(at + r * 8 * int64_t(words) + i) : 0;
                }
        }
    }

    // The words of the call that was read last; the next one to read follows.
    __device__ __forceinline__ void take(const ForwardSmall &a, const ThreadRows &rows, int, int following,
                                         KeptWords &words) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) words[r][i] = next[r][i];
        read(a, rows, following);
    }

  private:
    const uint32_t *row;  // word 0 of the frame, of the first row
    KeptWords next;
};

}  // namespace slt::cuda
