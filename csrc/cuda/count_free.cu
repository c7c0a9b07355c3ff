// Count free: where the free weights of each call start in the enumeration. A few lanes count a segment of a row, each
// one call at a time.
//
// 16 bits per call of 128 weights are an eighth of a bit per weight; the starts of segments are summed up by the host's
// code. A kernel reads the start of its first call, and counts from there.
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

template <int PLANES>
__device__ __forceinline__ void count_free(const CountFree &a) {
    const Generator &g = a.generator;
    const int lane = threadIdx.x % a.lanes;
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / a.lanes;  // of the segment
    const bool exists = at < int64_t(g.rows) * g.segments;
    const uint32_t row = exists ? uint32_t(at / g.segments) : 0, segment = exists ? uint32_t(at % g.segments) : 0;
    const uint32_t first = segment * SEGMENT, end = min(first + SEGMENT, g.calls);
    int free = 0, locked = 0;
    for (uint32_t step = 0; step < SEGMENT; step += a.lanes) {  // as often in all lanes of a warp
        const uint32_t call = first + step + lane;
        int here = 0;
        if (call < end)
            for (int i = 0; i < WORDS_PER_CALL; ++i) {
                const uint32_t valid = valid_word(g, int32_t(WORDS_PER_CALL * call) + i - g.skipped);
                const FrozenWord word = frozen_word<PLANES>(g, WORDS_PER_CALL * call_index(g, row, call) + i, valid);
                here += __popc(word.free);
                locked += __popc(word.locked);
            }
        int sum = here;
        for (int by = 1; by < a.lanes; by *= 2) {
            const int lower = __shfl_up_sync(0xFFFFFFFF, sum, by, a.lanes);
            sum += lane >= by ? lower : 0;
        }
        if (exists && call < end) a.call_starts[uint64_t(row) * g.calls + call] = uint16_t(free + sum - here);
        free += __shfl_sync(0xFFFFFFFF, sum, a.lanes - 1, a.lanes);
        if (first + step + a.lanes >= g.calls && g.segments == 1) break;  // the same for all rows
    }
    for (int by = a.lanes / 2; by; by /= 2) locked += __shfl_down_sync(0xFFFFFFFF, locked, by, a.lanes);
    if (exists && lane == 0) {
        a.free[at] = free;
        a.locked[at] = locked;
    }
}

#define SLT_COUNT_FREE(PLANES)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        slt_count_free_##PLANES(const __grid_constant__ CountFree a) {                                                 \
        count_free<PLANES>(a);                                                                                         \
    }
SLT_COUNT_FREE(4)
SLT_COUNT_FREE(8)

}  // namespace slt::cuda
