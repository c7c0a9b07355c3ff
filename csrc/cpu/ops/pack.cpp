// Pack: scores and a threshold to the words of a mask, and the number of weights that it keeps. One comparison gives
// the bits of 16 scores. They are the words of a compact mask; for a resolved mask a pdep deposits them at the free
// weights of a word. Scores are read once, which bounds the pack of a dense source.
#include "contract/scores.h"
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t WORDS_PER_PIECE = 1 << 12;  // of a compact mask

// `Kept` of the contract, moved by 2^31 for comparisons of signed integers.
struct Above {
    uint32_t first;
    int32_t end;

    explicit Above(uint32_t threshold) {
        const Kept kept = kept_above(threshold);
        first = kept.first + 0x80000000;
        end = int32_t(kept.count + 0x80000000);
    }

    // A bit for each of 32 scores.
    SLT_INLINE uint32_t operator()(const uint32_t *scores) const {
        uint32_t bits = 0;
#if defined(__AVX512F__)
        const __m512i sizes = _mm512_set1_epi32(MAGNITUDE), from = _mm512_set1_epi32(int(first));
        SLT_UNROLL for (int i = 0; i < 2; ++i) {
            const __m512i v = _mm512_and_si512(_mm512_loadu_si512(scores + 16 * i), sizes);
            bits |= uint32_t(_mm512_cmplt_epi32_mask(_mm512_sub_epi32(v, from), _mm512_set1_epi32(end))) << 16 * i;
        }
#elif defined(__AVX2__)
        const __m256i sizes = _mm256_set1_epi32(MAGNITUDE), from = _mm256_set1_epi32(int(first));
        SLT_UNROLL for (int i = 0; i < 4; ++i) {
            const __m256i v = _mm256_and_si256(load<__m256i>(scores + 8 * i), sizes);
            const __m256i above = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), _mm256_sub_epi32(v, from));
            bits |= uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(above))) << 8 * i;
        }
#else
        U32 lane, all = {};
        for (int l = 0; l < LANES; ++l) lane[l] = 1u << l;
        SLT_UNROLL for (int i = 0; i < WORD; i += LANES) {
            const S32 v = (S32)((load<U32>(scores + i) & MAGNITUDE) - first);
            all |= (U32)(v < end) & lane << i;
        }
        for (int l = 0; l < LANES; ++l) bits |= all[l];
#endif
        return bits;
    }
};

// Compares 32 scores from number i on; scores past the last are not above.
struct Comparison {
    const uint32_t *scores;
    int64_t count;
    Above above;

    SLT_INLINE uint32_t operator()(int64_t i) const {
        if (i + WORD <= count) return above(scores + i);
        uint32_t padded[WORD];
        for (int64_t j = 0; j < WORD; ++j) padded[j] = i + j < count ? scores[i + j] : MAGNITUDE;
        return above(padded);
    }
};

}  // namespace

void pack(const Pack &a, int threads) {
    const Source &s = a.source;
    const Comparison comparison{a.scores, a.offsets[s.rows], Above(a.threshold)};
    const int64_t words = a.compact ? ceil_div(comparison.count, WORD) : words_of(s), rows = rows_per_piece(s);
    const int64_t pieces = a.compact ? ceil_div(words, WORDS_PER_PIECE) : ceil_div(s.rows, rows);
    *a.kept = a.compact ? a.locked : 0;
    parallel_for(threads, pieces, [&](int64_t piece) {
        const Comparison bits = comparison;  // a copy, which stays in registers while words are written
        int64_t kept = 0;
        if (a.compact) {
            const int64_t first = piece * WORDS_PER_PIECE, end = least(first + WORDS_PER_PIECE, words);
            for (int64_t w = first; w < end; ++w) kept += __builtin_popcount(a.out[w] = bits(w * WORD));
        } else {
            const int64_t row = piece * rows, left = s.rows - row;
            kept = resolve_rows(s, a.offsets, row, least(left, rows), a.out + row * words, bits);
        }
        __atomic_fetch_add(a.kept, kept, __ATOMIC_RELAXED);
    });
}

}  // namespace slt::SLT_ISA
