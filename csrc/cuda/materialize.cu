// Materialize: the masked integer weight, for inspection and tests. A thread makes the weights of one word.
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

template <int FORM>
__device__ __forceinline__ void materialize(const Materialize &a) {
    __shared__ NormalTable table;
    table.fill(a.generator);
    __syncthreads();
    const Generator &g = a.generator;
    const Place at = place_of(g, blockIdx.x * (256 / WORDS_PER_CALL));
    const uint32_t keep = resolved_word<FORM>(g, a.mask, a.segment_starts, a.call_starts, at);
    if (uint32_t(at.word) >= g.words) return;
    const Words8 values = kept_values(g, call_index(g, at.row, at.call), threadIdx.x % WORDS_PER_CALL, keep, table);
    int8_t *out = a.out + (at.row * g.source.fan + at.word * WORD);
    const int count = int(least(WORD, g.source.fan - at.word * WORD));
    if (count == WORD && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
        const uint32_t *v = values.word;
        reinterpret_cast<uint4 *>(out)[0] = make_uint4(v[0], v[1], v[2], v[3]);
        reinterpret_cast<uint4 *>(out)[1] = make_uint4(v[4], v[5], v[6], v[7]);
        return;
    }
#pragma unroll
    for (int k = 0; k < WORD; ++k)
        if (k < count) out[k] = int8_t(values.word[k / 4] >> k % 4 * 8);
}

#define SLT_MATERIALIZE(NAME, FORM)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        slt_materialize_##NAME(const __grid_constant__ Materialize a) {                                                \
        materialize<FORM>(a);                                                                                          \
    }
SLT_MATERIALIZE(resolved, RESOLVED)
SLT_MATERIALIZE(0, 0)
SLT_MATERIALIZE(4, 4)
SLT_MATERIALIZE(8, 8)

}  // namespace slt::cuda
