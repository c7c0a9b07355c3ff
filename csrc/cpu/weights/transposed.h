// Weights for products that sum over rows: a lane is one k, and a quad holds four rows of it.
//
// The generator makes quads of four k, with rows in lanes. Four lanes hold 4 rows x 4 k; transposed, each lane holds
// four rows of one k, and LANES of them are one quad of a panel whose outputs are k.
#pragma once

#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

constexpr int COLUMN_ROWS = 2 * LANES;  // rows of two calls of the generator
constexpr int ROW_QUADS = COLUMN_ROWS / 4;

// Transposes the quads of one call of LANES rows.
inline void transpose_quads(const uint32_t *quads, bool shuffled, uint32_t *out) {
#if defined(__AVX512BW__)
    // A register is 4 x (4 rows x 4 k). Signs are in the order k = 2s, 2s + 16, 2s + 1, 2s + 17, so two k of a register
    // are joined with two of the next.
    const __m512i transpose = _mm512_set4_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400);
    const __m512i pairs = _mm512_set4_epi32(0x0F0B0703, 0x0D090501, 0x0E0A0602, 0x0C080400);
    for (int half = 0; half < QUADS / 4; ++half) {  // 16 k of all rows
        __m512i r[4];
        if (shuffled) {
            const uint32_t *at = quads + half / 2 * 8 * LANES;
            for (int i = 0; i < 4; ++i) {
                const __m512i a = _mm512_shuffle_epi8(load<__m512i>(at + 2 * i * LANES), pairs);
                const __m512i b = _mm512_shuffle_epi8(load<__m512i>(at + (2 * i + 1) * LANES), pairs);
                r[i] = half % 2 ? _mm512_unpackhi_epi64(a, b) : _mm512_unpacklo_epi64(a, b);
            }
        } else {
            for (int i = 0; i < 4; ++i)
                r[i] = _mm512_shuffle_epi8(load<__m512i>(quads + (4 * half + i) * LANES), transpose);
        }
        const __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x88), b = _mm512_shuffle_i32x4(r[0], r[1], 0xDD);
        const __m512i c = _mm512_shuffle_i32x4(r[2], r[3], 0x88), d = _mm512_shuffle_i32x4(r[2], r[3], 0xDD);
        uint32_t *to = out + 16 * half;
        store(to, _mm512_shuffle_i32x4(a, c, 0x88));
        store(to + CALL, _mm512_shuffle_i32x4(b, d, 0x88));
        store(to + 2 * CALL, _mm512_shuffle_i32x4(a, c, 0xDD));
        store(to + 3 * CALL, _mm512_shuffle_i32x4(b, d, 0xDD));
    }
#elif defined(__aarch64__)
    // A register is 4 rows x 4 k. Signs are in the order k = 2s, 2s + 16, 2s + 1, 2s + 17, so two k of a register are
    // joined with two of the next.
    const U8 transpose = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const U8 pairs = {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15};
    const auto shuffle = [&](int q, U8 order) {
        return (uint64x2_t)vqtbl1q_u8((uint8x16_t)load<U32>(quads + q * LANES), (uint8x16_t)order);
    };
    for (int q = 0; q < QUADS; q += 2) {
        if (shuffled) {
            const uint64x2_t a = shuffle(q, pairs), b = shuffle(q + 1, pairs);
            uint32_t *to = out + q / 8 * WORD + q % 8 * 2;
            store(to, vzip1q_u64(a, b));
            store(to + WORD / 2, vzip2q_u64(a, b));
        } else {
            store(out + 4 * q, shuffle(q, transpose));
            store(out + 4 * q + 4, shuffle(q + 1, transpose));
        }
    }
#else
    const uint8_t *from = reinterpret_cast<const uint8_t *>(quads);
    uint8_t *to = reinterpret_cast<uint8_t *>(out);
    for (int q = 0; q < QUADS; ++q)
        for (int i = 0; i < 4; ++i) {
            const int k = q / 8 * int(WORD) + (shuffled ? quad_k(SIGNED_CONSTANT, q % 8, i) : q % 8 * 4 + i);
            for (int l = 0; l < LANES; ++l) to[(l / 4 * CALL + k) * 4 + l % 4] = from[(q * LANES + l) * 4 + i];
        }
#endif
}

// One call of COLUMN_ROWS rows: lanes of four rows [ROW_QUADS][CALL], in the order of k.
inline void make_columns(const Weights &weights, int64_t row, int64_t call, uint32_t *out) {
    alignas(64) uint32_t quads[2 * QUADS * LANES];
    const bool shuffled = weights.signs();
    shuffled ? weights.write_pair<Origin::SIGNS>(row, call, quads)
             : weights.write_pair<Origin::BYTES>(row, call, quads);
    transpose_quads(quads, shuffled, out);
    transpose_quads(quads + QUADS * LANES, shuffled, out + LANES / 4 * CALL);
}

}  // namespace
}  // namespace slt::SLT_ISA
