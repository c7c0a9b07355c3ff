// Weights one by one, as a matrix.
#pragma once

#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

// Writes the masked integer weights of LANES rows from `row` on, those that the source has, to out [rows][fan].
inline void materialize_rows(const Weights &weights, int64_t row, int8_t *out) {
    const Source &s = weights.source;
    const int zero = zero_of(s.weight);
    alignas(64) uint32_t quads[QUADS * LANES];
    const uint8_t(*bytes)[LANES][4] = reinterpret_cast<const uint8_t(*)[LANES][4]>(quads);
    for (int64_t call = 0; call < weights.frame.calls; ++call) {
        weights.write(row, call, 1, quads);
        const int64_t words = weights.frame.skipped + words_of(s) - call * WORDS_PER_CALL;  // from this call on
        for (int l = 0; l < LANES && row + l < s.rows; ++l)
            for (int i = 0; i < least(words * WORD, CALL); ++i) {
                const int quad = i / 4, in_word = quad_k(s.weight, quad % 8, i % 4);
                const int64_t k = call * CALL + quad / 8 * WORD + in_word - weights.frame.skipped * WORD;
                if (k >= 0 && k < s.fan) out[(row + l) * s.fan + k] = int8_t(bytes[quad][l][i % 4] - zero);
            }
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
