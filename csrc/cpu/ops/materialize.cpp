// Materialize: the masked integer weight as a matrix, for inspection and tests. A piece of work is LANES rows. The
// quads of a call are made as for products (generate.h applies the mask), then written byte by byte.
#include "cpu/machine/parallel.h"
#include "cpu/weights/generate.h"
#include "operations.h"

namespace slt::SLT_ISA {

void materialize(const Materialize &a, int threads) {
    const Source &s = a.source;
    const Weights weights(s, a.mask);
    const int zero = zero_of(s.weight);
    parallel_for(threads, ceil_div(s.rows, LANES), [&](int64_t piece) {
        const int64_t row = piece * LANES;
        alignas(64) uint32_t quads[QUADS * LANES];
        const uint8_t(*bytes)[LANES][4] = reinterpret_cast<const uint8_t(*)[LANES][4]>(quads);
        for (int64_t call = 0; call < weights.frame.calls; ++call) {
            weights.write(row, call, 1, quads);
            const int64_t words = weights.frame.skipped + words_of(s) - call * WORDS_PER_CALL;  // from this call on
            for (int l = 0; l < LANES && row + l < s.rows; ++l)
                for (int i = 0; i < least(words * WORD, CALL); ++i) {
                    const int quad = i / 4, in_word = quad_k(s.weight, quad % 8, i % 4);
                    const int64_t k = call * CALL + quad / 8 * WORD + in_word - weights.frame.skipped * WORD;
                    if (k >= 0 && k < s.fan) a.out[(row + l) * s.fan + k] = int8_t(bytes[quad][l][i % 4] - zero);
                }
        }
    });
}

}  // namespace slt::SLT_ISA
