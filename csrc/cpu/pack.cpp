// Pack: scores and a threshold to the words of a mask, and the number of weights that it keeps. One comparison gives
// the bits of 16 scores; for a compact mask they are its words as they come, for a resolved one a pdep puts them at the
// free weights of a word. Scores are read once; a dense source's pack is bound by that.
#include "operations.h"
#include "parallel.h"
#include "pattern.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t PIECE = 1 << 12;  // words of a compact mask

// Where the magnitudes of 32 scores are above the threshold. NaN never is.
SLT_INLINE uint32_t above(const float *scores, float threshold) {
#if defined(__AVX512F__)
    const __m512 t = _mm512_set1_ps(threshold);
    const __mmask16 low = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(scores)), t, _CMP_GT_OQ);
    const __mmask16 high = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(scores + 16)), t, _CMP_GT_OQ);
    return uint32_t(low) | uint32_t(high) << 16;
#elif defined(__AVX2__)
    const __m256 t = _mm256_set1_ps(threshold), sign = _mm256_set1_ps(-0.0f);
    uint32_t bits = 0;
    SLT_UNROLL for (int i = 0; i < 4; ++i) {
        const __m256 magnitude = _mm256_andnot_ps(sign, _mm256_loadu_ps(scores + 8 * i));
        bits |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(magnitude, t, _CMP_GT_OQ))) << (8 * i);
    }
    return bits;
#else
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= uint32_t(__builtin_fabsf(scores[i]) > threshold) << i;
    return bits;
#endif
}

// The scores from number i on, 32 at a time; those that are not there are not above.
struct Comparison {
    const float *scores;
    int64_t count;
    float threshold;

    SLT_INLINE uint32_t operator()(int64_t i) const {
        if (i + WORD <= count) return above(scores + i, threshold);
        float padded[WORD];
        for (int64_t j = 0; j < WORD; ++j) padded[j] = i + j < count ? scores[i + j] : __builtin_nanf("");
        return above(padded, threshold);
    }
};

}  // namespace

void pack(const Pack &a) {
    const Source &s = a.source;
    const Comparison bits{a.scores, a.offsets[s.rows], a.threshold};
    const int64_t words = a.compact ? ceil_div(bits.count, WORD) : words_of(s), rows = rows_a_piece(s);
    const int64_t pieces = a.compact ? ceil_div(words, PIECE) : ceil_div(s.rows, rows);
    *a.kept = a.compact ? a.locked : 0;
    parallel_for(a.threads, pieces, [&](int64_t piece) {
        int64_t kept = 0;
        if (a.compact) {
            const int64_t end = least((piece + 1) * PIECE, words);
            for (int64_t w = piece * PIECE; w < end; ++w) kept += __builtin_popcount(a.out[w] = bits(w * WORD));
        } else {
            const int64_t row = piece * rows, left = s.rows - row;
            kept = resolve_rows(s, a.offsets, row, least(left, rows), a.out + row * words, bits);
        }
        __atomic_fetch_add(a.kept, kept, __ATOMIC_RELAXED);
    });
}

}  // namespace slt::SLT_ISA
