// Materialize: the masked integer weight, for inspection and tests. A thread makes the weights of one word.
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

extern "C" __global__ void __launch_bounds__(256) slt_materialize(const __grid_constant__ Materialize a) {
    __shared__ NormalTable table;
    table.fill(a.generator);
    __syncthreads();
    const Generator &g = a.generator;
    const Place at = place_of(g, blockIdx.x * (256 / WORDS_PER_CALL));
    const uint32_t keep =
        a.compact ? compact_word<ANY>(g, a.mask, a.segment_starts, a.call_starts, at) : resolved_word(g, a.mask, at);
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

}  // namespace slt::cuda
