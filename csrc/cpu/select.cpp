// Select: the rank-th smallest magnitude of many tensors, exactly, where they lie.
//
// The bits of a magnitude, read as an integer, are in its order, so its 31 bits are found 11, 10 and 10 at a time from
// the top: a pass counts the digit of those scores whose higher bits are the ones already found. Counts are integers,
// so the result does not depend on which thread adds what.
//
// A pass streams the scores once, in pieces large enough to make the sum of their histograms cheap. The first counts every score, into COPIES histograms
// in turn (32 KB together, so they stay in L1): scores close in size fall in one bin, and an increment that had to wait
// for the last one's store would take five cycles instead of one. The other two count a few per cent of the scores and
// one in ten thousand: they filter 16 at a time, and are bound by memory.
#include "operations.h"
#include "parallel.h"
#include "simd.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t PIECE = 1 << 18;  // scores
constexpr int64_t BLOCK = 1 << 12;  // scores that are filtered at a time: 16 KB
constexpr int BINS = 1 << 11, COPIES = 4;
constexpr uint32_t MAGNITUDE = 0x7FFFFFFF;

// Scores whose magnitude starts with `prefix`, when `shift` bits are cut off, to `out`; returns how many. `out` has
// room for LANES more.
int64_t filter(const uint32_t *scores, int64_t count, uint32_t prefix, int shift, uint32_t *out) {
    int64_t found = 0, i = 0;
#if defined(__AVX512F__)
    const __m512i magnitude = _mm512_set1_epi32(MAGNITUDE), wanted = _mm512_set1_epi32(prefix);
    const __m128i bits = _mm_cvtsi32_si128(shift);
    for (; i + 16 <= count; i += 16) {
        const __m512i v = _mm512_and_si512(_mm512_loadu_si512(scores + i), magnitude);
        const __mmask16 inside = _mm512_cmpeq_epi32_mask(_mm512_srl_epi32(v, bits), wanted);
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(inside, v));
        found += __builtin_popcount(inside);
    }
#endif
    for (; i < count; ++i) {
        out[found] = scores[i] & MAGNITUDE;
        found += out[found] >> shift == prefix;
    }
    return found;
}

// How often each digit `score >> shift & (bins - 1)` occurs.
class Histogram {
  public:
    Histogram(int shift, int bins) : shift(shift), bins(bins) {
        for (auto &copy : copies) memset(copy, 0, bins * sizeof *copy);
    }

    void add(const uint32_t *scores, int64_t count) {
        int64_t i = 0;
        for (; i + COPIES <= count; i += COPIES)
            SLT_UNROLL for (int c = 0; c < COPIES; ++c) ++copies[c][scores[i + c] >> shift & (bins - 1)];
        for (; i < count; ++i) ++copies[0][scores[i] >> shift & (bins - 1)];
    }

    void add_to(int64_t *counts) const {
        for (int b = 0; b < bins; ++b) {
            int64_t sum = 0;
            for (const auto &copy : copies) sum += copy[b];
            if (sum) __atomic_fetch_add(counts + b, sum, __ATOMIC_RELAXED);
        }
    }

  private:
    const int shift, bins;
    uint32_t copies[COPIES][BINS];
};

}  // namespace

void select(const Select &a) {
    int64_t pieces = 0;
    for (int64_t t = 0; t < a.tensors; ++t) pieces += ceil_div(a.counts[t], PIECE);

    uint32_t prefix = 0;
    int64_t rest = a.rank;  // the number we look for is the rest-th of those that start with the prefix
    for (int known = 0; known < 31; known = known == 0 ? 11 : known + 10) {
        const int digit_bits = known == 0 ? 11 : 10, shift = 31 - known - digit_bits, bins = 1 << digit_bits;
        int64_t counts[BINS] = {};
        parallel_for(a.threads, pieces, [&](int64_t piece) {
            int64_t t = 0;
            for (; piece >= ceil_div(a.counts[t], PIECE); ++t) piece -= ceil_div(a.counts[t], PIECE);
            const uint32_t *scores = a.scores[t] + piece * PIECE;
            const int64_t left = a.counts[t] - piece * PIECE, count = left < PIECE ? left : PIECE;
            Histogram histogram(shift, bins);
            if (known == 0) {
                histogram.add(scores, count);
            } else {
                uint32_t inside[BLOCK + LANES];
                for (int64_t i = 0; i < count; i += BLOCK) {
                    const int64_t block = count - i < BLOCK ? count - i : BLOCK;
                    histogram.add(inside, filter(scores + i, block, prefix, 31 - known, inside));
                }
            }
            histogram.add_to(counts);
        });
        int digit = 0;
        while (rest > counts[digit]) rest -= counts[digit++];
        prefix = prefix << digit_bits | uint32_t(digit);
    }
    *a.out = prefix;
}

}  // namespace slt::SLT_ISA
