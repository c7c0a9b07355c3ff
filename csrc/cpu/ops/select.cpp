// Select: the exact rank-th smallest magnitude of many tensors, without copying them.
//
// The bits of magnitudes, as integers, are in the order of the magnitudes. A pass reads all scores once. It counts the
// scores below an interval of magnitudes, and the scores in each of 2048 equal parts of the interval; the part that
// holds the rank is the interval of the next pass. The first interval is estimated from a sample and holds a few per
// cent of the scores, so that two passes suffice. Passes are bound by memory: sixteen scores are compared at a time,
// and only scores inside the interval are counted one by one. The counts reveal a wrong estimate; then the first
// interval is all magnitudes, which takes three more passes.
//
// Counts are integers, so the result does not depend on the order in which threads add them.
#include "contract/scores.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"
#include "cpu/machine/simd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t PIECE = 1 << 18;   // scores per piece of work; summing histograms must be cheap beside it
constexpr int64_t SCORES = 1 << 12;  // filtered at a time: 16 KB
constexpr int64_t SAMPLE = 1 << 14;
constexpr int64_t MARGIN = 384;  // at least six standard deviations of a rank in the sample
constexpr int PART_BITS = 11, PARTS = 1 << PART_BITS, COPIES = 4;

// Magnitudes [low, low + (PARTS << shift)).
struct Interval {
    uint32_t low = 0;
    int shift = 31 - PART_BITS;

    uint32_t width() const { return uint32_t(PARTS) << shift; }
};

// The smallest interval that holds both magnitudes.
Interval between(uint32_t low, uint32_t high) {
    Interval i = {low, 0};
    while (high - low >= i.width()) ++i.shift;
    return i;
}

// Finds the scores inside an interval, of `count` <= SCORES. Writes their distances from its low end to `inside`, which
// has room for LANES more, and returns their number. Adds the number of scores below the interval to `below`.
SLT_INLINE int64_t filter(const uint32_t *scores, int64_t count, const Interval &interval, uint32_t *inside,
                          int64_t &below) {
    int64_t found = 0, i = 0;
#if defined(__AVX512F__)
    const __m512i magnitude = _mm512_set1_epi32(MAGNITUDE), low = _mm512_set1_epi32(int(interval.low));
    const __m512i width = _mm512_set1_epi32(int(interval.width()));
    for (; i + 16 <= count; i += 16) {
        const __m512i v = _mm512_and_si512(_mm512_loadu_si512(scores + i), magnitude);
        const __m512i distance = _mm512_sub_epi32(v, low);
        const __mmask16 chosen = _mm512_cmplt_epu32_mask(distance, width);
        _mm512_storeu_si512(inside + found, _mm512_maskz_compress_epi32(chosen, distance));
        found += __builtin_popcount(chosen);
        below += __builtin_popcount(_mm512_cmplt_epu32_mask(v, low));
    }
#endif
    for (; i < count; ++i) {
        const uint32_t v = scores[i] & MAGNITUDE;
        inside[found] = v - interval.low;
        found += v - interval.low < interval.width();
        below += v < interval.low;
    }
    return found;
}

// The number of scores in each part of an interval, and below it.
class Counts {
  public:
    int64_t parts[PARTS] = {}, below = 0;

    Counts(const Select &a, const Interval &interval, int threads) {
        int64_t pieces = 0;
        for (int64_t t = 0; t < a.tensors; ++t) pieces += ceil_div(a.counts[t], PIECE);
        parallel_for(threads, pieces, [&](int64_t piece) {
            int64_t t = 0;
            for (; piece >= ceil_div(a.counts[t], PIECE); ++t) piece -= ceil_div(a.counts[t], PIECE);
            const int64_t left = a.counts[t] - piece * PIECE;
            add(a.scores[t] + piece * PIECE, least(left, PIECE), interval);
        });
    }

  private:
    // Uses COPIES histograms in turn (32 KB together, so they stay in L1): similar scores fall in the same part, and an
    // increment that depends on the previous store takes five cycles instead of one.
    void add(const uint32_t *scores, int64_t count, const Interval &interval) {
        uint32_t copies[COPIES][PARTS] = {}, inside[SCORES + LANES];
        int64_t below_here = 0;
        for (int64_t s = 0; s < count; s += SCORES) {
            const int64_t some = least(count - s, SCORES);
            const int64_t found = filter(scores + s, some, interval, inside, below_here);
            int64_t i = 0;
            for (; i + COPIES <= found; i += COPIES)
                SLT_UNROLL for (int c = 0; c < COPIES; ++c) ++copies[c][inside[i + c] >> interval.shift];
            for (; i < found; ++i) ++copies[0][inside[i] >> interval.shift];
        }
        for (int p = 0; p < PARTS; ++p) {
            int64_t sum = 0;
            for (const auto &copy : copies) sum += copy[p];
            if (sum) __atomic_fetch_add(parts + p, sum, __ATOMIC_RELAXED);
        }
        __atomic_fetch_add(&below, below_here, __ATOMIC_RELAXED);
    }
};

// The rank-th smallest magnitude; searches an interval first.
uint32_t find(const Select &a, Interval interval, int threads) {
    for (;;) {
        const Counts counts(a, interval, threads);
        int64_t rest = a.rank - counts.below;
        int part = 0;
        while (part < PARTS && rest > counts.parts[part]) rest -= counts.parts[part++];
        if (a.rank <= counts.below || part == PARTS) {
            interval = Interval();  // not inside
            continue;
        }
        interval.low += uint32_t(part) << interval.shift;
        if (interval.shift == 0) return interval.low;
        interval.shift = interval.shift > PART_BITS ? interval.shift - PART_BITS : 0;
    }
}

// An interval that almost surely holds the rank-th smallest magnitude.
Interval guess(const Select &a) {
    int64_t all = 0;
    for (int64_t t = 0; t < a.tensors; ++t) all += a.counts[t];
    if (all < 16 * SAMPLE) return Interval();
    Scratch<uint32_t> sample(SAMPLE);
    for (int64_t i = 0; i < SAMPLE; ++i) {  // multiples of the golden ratio: evenly distributed, without a period
        int64_t at = int64_t((unsigned __int128)(uint64_t(i) * 0x9E3779B97F4A7C15u) * uint64_t(all) >> 64), t = 0;
        while (at >= a.counts[t]) at -= a.counts[t++];
        sample[i] = a.scores[t][at];
    }
    const int64_t middle = int64_t((unsigned __int128)a.rank * SAMPLE / all);
    const auto magnitude = [&](int64_t rank) {
        const uint32_t *scores = sample;
        return find({.scores = &scores, .counts = &SAMPLE, .tensors = 1, .rank = rank, .out = nullptr}, Interval(), 1);
    };
    return between(middle > MARGIN ? magnitude(middle - MARGIN) : 0,
                   middle + MARGIN <= SAMPLE ? magnitude(middle + MARGIN) : MAGNITUDE);
}

}  // namespace

void select(const Select &a, int threads) { *a.out = find(a, guess(a), threads); }

}  // namespace slt::SLT_ISA
