// Materialize: the masked integer weight, for inspection and tests. A thread makes the weights of one word.
#include "contract/weights.h"
#include "cuda/arguments.h"

namespace slt::cuda {

extern "C" __global__ void __launch_bounds__(256) slt_materialize(const __grid_constant__ Materialize a) {
    const Source &s = a.source;
    const int64_t words = words_of(s), at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= s.rows * words) return;
    const int64_t row = at / words, w = at % words;
    const uint32_t keep = a.mask[at] & valid_bits(s, w);
    const uint64_t q = word_index(s, row, w);
    int8_t *out = a.out + row * s.fan + w * WORD;
    const int count = int(least(WORD, s.fan - w * WORD));
    const uint32_t signs = call_words(a.calls, q / WORDS_PER_CALL).word[q % WORDS_PER_CALL];
    for (int k = 0; k < count; ++k) {
        const int bit = bit_of_k(k);
        out[k] = int8_t((keep >> bit & 1) * (1 - 2 * int(signs >> bit & 1)));
    }
}

}  // namespace slt::cuda
