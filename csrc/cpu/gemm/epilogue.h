// The epilogue of a product: joins the exact sums of digits, subtracts the correction, rounds, and adds the bias.
//
// A product has a BLOCK of outputs at a time, a lane each, in groups of LANES. float64 holds the joined sums of one
// part exactly; sums in several parts are int64.
#pragma once

#include "cpu/gemm/fixed_point.h"

namespace slt::SLT_ISA {
namespace {

#if defined(SLT_AMX)
constexpr int GROUPS = 6;
#elif defined(__AVX512F__) || defined(__aarch64__)
constexpr int GROUPS = 4;
#else
constexpr int GROUPS = 2;
#endif
constexpr int BLOCK = GROUPS * LANES;
constexpr int MOST_VECTORS = 16;

// Quads whose int32 sums cannot overflow: 255 * 128 * 4 per quad of bytes, 255 * 2048 * 4 of pairs of int16.
constexpr int64_t LONGEST = SLT_BYTE_DIGITS ? 16384 : 1024;

// Vectors of elements, in planes; strides in elements.
template <class Element>
struct VectorsOf {
    const Element *at;
    int64_t vector_pitch, plane_pitch;
    // With AMX only: vectors that overlap in memory, as positions of an image do.
    const int64_t *steps = nullptr;  // of each step from `at`; null if steps follow each other
    const int *chosen = nullptr;     // numbers of the vectors that exist; null for the first ones
    bool overlap = false;            // enough that they stay in L1

    // Where step s begins; `row`: elements in a row of a tile.
    const Element *step(int64_t s, int64_t row) const { return at + (steps ? steps[s] : row * s); }
};
typedef VectorsOf<Digit> Vectors;

// Where sums go: y[v] = float(sum - correction) * power * scale + bias, lane by lane.
struct Output {
    Result y;                              // at vector 0, lane 0
    const int64_t *places = nullptr;       // of each vector in y; null for v * vector_stride
    int64_t vector_stride = 0;
    int first_lane = 0, lanes = 0;         // lanes that exist: [first_lane, lanes)
    const double *powers = nullptr;        // of each vector
    const int64_t *corrections = nullptr;  // of each vector: zero * sum of its integers; unused with signed bytes
    float scale = 0;
    const float *bias = nullptr;           // at lane 0
    bool small = false;                    // every sum fits an int32, whatever the vectors
    int64_t *sums = nullptr;               // [vector][BLOCK] of a sum in several parts
    bool first = true, last = true;        // part

    // The same from vector v and this lane on, for at most `most` lanes. Sums in parts are not moved.
    Output part(int64_t v, int64_t lane, int64_t most) const {
        Output out = *this;
        out.first_lane = first_lane > lane ? int(first_lane - lane) : 0;
        out.lanes = int(least(lanes - lane, most));
        out.y = y + (lane + (places ? 0 : v * vector_stride));
        if (places) out.places += v;
        out.powers += v;
        if (!SIGNED_BYTES) out.corrections += v;
        if (bias) out.bias += lane;
        return out;
    }

    // One block of a product of `vectors`. Sums in parts are [block][vector][BLOCK].
    Output block(int64_t v, int64_t vectors, int lane) const {
        Output out = part(v, lane, BLOCK);
        if (sums) out.sums += (lane / BLOCK * vectors + v) * BLOCK;
        return out;
    }
};

// Whether every sum of `depth` weights times integers of that number of digits fits an int32.
inline bool small_sums(int64_t depth, int64_t weight, int digits) {
    return depth * (weight == SIGNED_CONSTANT ? 1 : 128) <= int64_t(1) << (32 - 8 * digits);
}

// Adds the bias and stores the lanes of vector v.
SLT_INLINE void store_lanes(float y[BLOCK], int64_t v, const Output &out) {
    if (out.bias)
        for (int l = 0; l < out.lanes; ++l) y[l] += out.bias[l];
    const int64_t place = out.places ? out.places[v] : v * out.vector_stride;
    write_floats(y + out.first_lane, out.lanes - out.first_lane, out.y + (place + out.first_lane));
}

// Joins the sums of digits of BITS bits: [BLOCK].
template <int DIGITS, int BITS>
SLT_INLINE void join_digits(const int32_t *tile /* [DIGITS][BLOCK] */, double *sum) {
#if defined(__AVX512F__)
    const __m512d base = _mm512_set1_pd(1 << BITS);
    SLT_UNROLL for (int l = 0; l < BLOCK; l += 8) {
        __m512d s = _mm512_cvtepi32_pd(load<__m256i>(tile + (DIGITS - 1) * BLOCK + l));
        SLT_UNROLL for (int d = DIGITS - 2; d >= 0; --d)
            s = _mm512_fmadd_pd(s, base, _mm512_cvtepi32_pd(load<__m256i>(tile + d * BLOCK + l)));
        store(sum + l, s);
    }
#else
    for (int l = 0; l < BLOCK; ++l) {
        double s = tile[(DIGITS - 1) * BLOCK + l];
        for (int d = DIGITS - 2; d >= 0; --d) s = s * (1 << BITS) + tile[d * BLOCK + l];
        sum[l] = s;
    }
#endif
}

// Whether the product of any sum and this power of two is a normal float32: then it is exact.
SLT_INLINE bool exact_in_float(double power) { return power >= 0x1p-100 && power <= 0x1p60; }

// `rounded_sum` of the contract, for BLOCK lanes.
SLT_INLINE void round_sums(const double *sum, double correction, double power, float scale, float *y) {
#if defined(__AVX512F__)
    const bool plain = exact_in_float(power);
    const __m256 exact = _mm256_set1_ps(plain ? float(power) : 1), scales = _mm256_set1_ps(scale);
    SLT_UNROLL for (int l = 0; l < BLOCK; l += 8) {
        const __m512d s = load<__m512d>(sum + l);
        const __m256 f = _mm512_cvtpd_ps(SIGNED_BYTES ? s : _mm512_sub_pd(s, _mm512_set1_pd(correction)));
        store(y + l, plain ? _mm256_mul_ps(_mm256_mul_ps(f, exact), scales) : f);
    }
    if (plain) return;
    SLT_UNROLL for (int l = 0; l < BLOCK; l += 8) {
        const __m512d s = _mm512_mul_pd(_mm512_cvtps_pd(load<__m256>(y + l)), _mm512_set1_pd(power));
        store(y + l, _mm256_mul_ps(_mm512_cvtpd_ps(s), scales));
    }
#else
    for (int l = 0; l < BLOCK; ++l) y[l] = rounded_sum(sum[l] - correction, power, scale);
#endif
}

// join_digits and round_sums together, for small sums: one conversion, a register of lanes at a time. Intermediate sums
// may exceed an int32; they wrap, and the result fits again.
template <int DIGITS, int BITS>
SLT_INLINE void round_small(const int32_t *tile, int lanes, int64_t correction, float power, float scale, float *y) {
    for (int l = 0; l < lanes; l += LANES) {
        U32 sum = load<U32>(tile + (DIGITS - 1) * BLOCK + l);
        SLT_UNROLL for (int d = DIGITS - 2; d >= 0; --d) sum = (sum << BITS) + load<U32>(tile + d * BLOCK + l);
        if (!SIGNED_BYTES) sum -= uint32_t(correction);
        store(y + l, __builtin_convertvector((S32)sum, F32) * power * scale);
    }
}

// Writes the result of exact sums.
inline void finish_sums(double sum[BLOCK], int64_t v, const Output &out) {
    alignas(64) float y[BLOCK];
    int64_t correction = SIGNED_BYTES ? 0 : out.corrections[v];
    if (out.sums) {
        int64_t *total = out.sums + v * BLOCK;
        // Lanes past the last output hold anything, and over many parts their totals would overflow.
        for (int l = 0; l < out.lanes; ++l) total[l] = int64_t(sum[l]) + (out.first ? 0 : total[l]);
        if (!out.last) return;
        // The one rounding is here: above 2^53 a double would round too.
        for (int l = 0; l < out.lanes; ++l) sum[l] = float(total[l] - correction);
        correction = 0;
    }
    round_sums(sum, double(correction), out.powers[v], out.scale, y);
    store_lanes(y, v, out);
}

// Writes the result of the sums of each digit.
template <int DIGITS, int BITS = DIGIT_BITS>
inline void finish(const int32_t *tile, int64_t v, const Output &out) {
    const double power = out.powers[v];
    if (out.small && !out.sums && exact_in_float(power)) {
        alignas(64) float y[BLOCK];
        round_small<DIGITS, BITS>(tile, out.lanes, SIGNED_BYTES ? 0 : out.corrections[v], float(power), out.scale, y);
        return store_lanes(y, v, out);
    }
    alignas(64) double sum[BLOCK];
    join_digits<DIGITS, BITS>(tile, sum);
    finish_sums(sum, v, out);
}

}  // namespace
}  // namespace slt::SLT_ISA
