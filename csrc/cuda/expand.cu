// Expand: a compact mask, one bit per free weight, to a resolved one. A thread makes one word.
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

template <int PLANES>
__device__ __forceinline__ void expand(const Expand &a) {
    const Generator &g = a.generator;
    const Place at = place_of(g, blockIdx.x * (256 / WORDS_PER_CALL));
    const uint32_t word = resolved_word<PLANES>(g, a.mask, a.segment_starts, a.call_starts, at);
    if (uint32_t(at.word) < g.words) a.out[uint64_t(at.row) * g.words + at.word] = word;
}

#define SLT_EXPAND(PLANES)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) slt_expand_##PLANES(const __grid_constant__ Expand a) {          \
        expand<PLANES>(a);                                                                                             \
    }
SLT_EXPAND(0)
SLT_EXPAND(4)
SLT_EXPAND(8)

}  // namespace slt::cuda
