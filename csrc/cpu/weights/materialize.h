// Weights one by one, as a matrix.
#pragma once

#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

#if defined(__AVX512VBMI__)
// The order of the bytes of LANES quads of a row that makes them weights in the order of k.
struct PlainOrder {
    alignas(64) uint8_t byte[4 * LANES] = {};

    explicit PlainOrder(int64_t weight) {
        for (int quad = 0; quad < LANES; ++quad)
            for (int i = 0; i < 4; ++i)
                byte[quad / 8 * WORD + quad_k(weight, quad % 8, i)] = uint8_t(4 * quad + i);
    }
};
#endif

// Writes the masked integer weights of LANES rows from `row` on, those that the source has, to out [rows][fan].
inline void materialize_rows(const Weights &weights, int64_t row, int8_t *out) {
    const Source &s = weights.source;
    const int zero = zero_of(s.weight);
    alignas(64) uint32_t quads[QUADS * LANES];
#if defined(__AVX512VBMI__)
    const PlainOrder order(s.weight);
#endif
    for (int64_t call = 0; call < weights.frame.calls; ++call) {
        weights.write(row, call, 1, quads);
#if defined(__AVX512VBMI__)
        for (int quad = 0; quad < QUADS; quad += LANES) {
            S32 square[LANES];
            for (int q = 0; q < LANES; ++q) square[q] = load<S32>(quads + (quad + q) * LANES);
            transpose(square);
            const int64_t first = call * CALL + quad * 4 - weights.frame.skipped * WORD;
            const int64_t begin = greatest(first, 0), end = least(first + 4 * LANES, s.fan);
            for (int l = 0; l < LANES && row + l < s.rows; ++l) {
                const U8 v = (U8)_mm512_permutexvar_epi8(load<__m512i>(order.byte), (__m512i)square[l]) - uint8_t(zero);
                if (end - begin == 4 * LANES) {
                    store(out + (row + l) * s.fan + first, v);
                } else if (begin < end) {
                    alignas(64) int8_t part[4 * LANES];
                    store(part, v);
                    memcpy(out + (row + l) * s.fan + begin, part + (begin - first), size_t(end - begin));
                }
            }
        }
#else
        const uint8_t(*bytes)[LANES][4] = reinterpret_cast<const uint8_t(*)[LANES][4]>(quads);
        const int64_t words = weights.frame.skipped + words_of(s) - call * WORDS_PER_CALL;  // from this call on
        for (int l = 0; l < LANES && row + l < s.rows; ++l)
            for (int i = 0; i < least(words * WORD, CALL); ++i) {
                const int quad = i / 4, in_word = quad_k(s.weight, quad % 8, i % 4);
                const int64_t k = call * CALL + quad / 8 * WORD + in_word - weights.frame.skipped * WORD;
                if (k >= 0 && k < s.fan) out[(row + l) * s.fan + k] = int8_t(bytes[quad][l][i % 4] - zero);
            }
#endif
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
