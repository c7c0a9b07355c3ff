// The product of all products: a panel of weights against vectors of digits, to exact integer sums and their rounding.
//
// A panel is up to BLOCK outputs, a lane each, in groups of LANES: quads [group][quad][LANES] of unsigned bytes. The
// tile in registers is a few digits of x by all groups: 6 x 4 registers of sums with AVX-512 VNNI, so that a quad costs
// 4 loads of weights and 6 broadcasts of x for 24 dot products (1536 multiplications), all of k in one go. With AMX, 16
// quads of a group are one operand as they lie in the panel, and a tile of sums is 16 vectors (or all digits of up to
// 5) by 16 lanes.
//
// int32 sums are exact for LONGEST quads; products cut longer ones and add up in int64. float64 holds the digits' sums of
// a part exactly, and after the correction every sum of a fan below 2^23.
#pragma once

#include "digits.h"

namespace slt::SLT_ISA {
namespace {

#if defined(SLT_AMX)
constexpr int GROUPS = 6;
#elif defined(__AVX512F__)
constexpr int GROUPS = 4;
#else
constexpr int GROUPS = 2;
#endif
constexpr int BLOCK = GROUPS * LANES;
constexpr int QUAD_BYTES = 4 * sizeof(Digit);
constexpr int MOST_VECTORS = 16;

// Quads that fit int32 sums whatever the digits: 255 * 128 * 4 a quad for bytes, 255 * 2048 * 4 for pairs of int16.
constexpr int64_t LONGEST = SLT_BYTE_DIGITS ? 16384 : 1024;

// Vectors of elements, in planes; strides in elements.
template <class Element>
struct VectorsOf {
    const Element *at;
    int64_t vector_pitch, plane_pitch;
    // With AMX alone: vectors that overlap in memory, as positions of an image do.
    const int64_t *steps = nullptr;  // where each row of a tile stands; null where they follow each other
    const int *chosen = nullptr;     // of the vectors, those that exist; null for the first ones
    bool overlap = false;            // so much that they stay in L1

    // Where a step begins, whose rows of a tile are so many elements.
    const Element *step(int64_t s, int64_t row) const { return at + (steps ? steps[s] : row * s); }
};
typedef VectorsOf<Digit> Vectors;

// Where sums go: y[v] = float(sum - correction) * power * scale + bias, lane by lane.
struct Output {
    Result y;                 // of vector 0, lane 0
    const int64_t *places;    // of each vector in y; null for v * vector_stride
    int64_t vector_stride;
    int first_lane, lanes;    // those that exist: [first_lane, lanes)
    const double *powers;     // of each vector, or of all
    bool one_power;
    const int64_t *corrections;  // of each vector: zero * sum of its integers; not read where bytes are signed
    float scale;
    const float *bias;        // of lane 0, or null
    int64_t *sums;            // [vector][BLOCK] of a sum in several parts, or null
    bool first, last;         // part
    bool small;               // every sum fits an int32, whatever the vectors
};

// Whether sums of `depth` weights times integers of `bytes` do.
inline bool small_sums(int64_t depth, int64_t weight, int bytes) {
    return depth * (weight == SIGNED_CONSTANT ? 1 : 128) <= int64_t(1) << (32 - 8 * bytes);
}

// With the bias, to where vector v goes.
SLT_INLINE void store_lanes(float y[BLOCK], int64_t v, const Output &out) {
    if (out.bias)
        for (int l = 0; l < out.lanes; ++l) y[l] += out.bias[l];
    const int64_t place = out.places ? out.places[v] : v * out.vector_stride;
    write_floats(y + out.first_lane, out.lanes - out.first_lane, out.y + (place + out.first_lane));
}

// The sums of all digits: [BLOCK].
template <int DIGITS>
SLT_INLINE void join_digits(const int32_t *tile /* [DIGITS][BLOCK] */, double *sum) {
#if defined(__AVX512F__)
    const __m512d base = _mm512_set1_pd(1 << DIGIT_BITS);
    SLT_UNROLL for (int l = 0; l < BLOCK; l += 8) {
        __m512d s = _mm512_cvtepi32_pd(load<__m256i>(tile + (DIGITS - 1) * BLOCK + l));
        SLT_UNROLL for (int d = DIGITS - 2; d >= 0; --d)
            s = _mm512_fmadd_pd(s, base, _mm512_cvtepi32_pd(load<__m256i>(tile + d * BLOCK + l)));
        store(sum + l, s);
    }
#else
    for (int l = 0; l < BLOCK; ++l) {
        double s = tile[(DIGITS - 1) * BLOCK + l];
        for (int d = DIGITS - 2; d >= 0; --d) s = s * (1 << DIGIT_BITS) + tile[d * BLOCK + l];
        sum[l] = s;
    }
#endif
}

// float(float(sum - correction) * power) * scale, rounded at each step.
SLT_INLINE void round_sums(const double *sum, double correction, double power, float scale, float *y) {
#if defined(__AVX512F__)
    // Where it cannot leave the range of normal numbers, a product with a power of two is exact in float32 as well.
    const bool plain = power >= 0x1p-100 && power <= 0x1p60;
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
    for (int l = 0; l < BLOCK; ++l) y[l] = float(double(float(sum[l] - correction)) * power) * scale;
#endif
}

// Both of small sums, whose digits may pass an int32 on the way: one conversion, a register of lanes at a time.
template <int DIGITS>
SLT_INLINE void round_small(const int32_t *tile, int lanes, int64_t correction, float power, float scale, float *y) {
    for (int l = 0; l < lanes; l += LANES) {
        U32 sum = load<U32>(tile + (DIGITS - 1) * BLOCK + l);
        SLT_UNROLL for (int d = DIGITS - 2; d >= 0; --d) sum = (sum << DIGIT_BITS) + load<U32>(tile + d * BLOCK + l);
        if (!SIGNED_BYTES) sum -= uint32_t(correction);
        store(y + l, __builtin_convertvector((S32)sum, F32) * power * scale);
    }
}

template <int DIGITS>
inline void finish(const int32_t *tile, int64_t v, const Output &out) {
    alignas(64) float y[BLOCK];
    const double power = out.powers[out.one_power ? 0 : v];
    // Where it cannot leave the range of normal numbers, a product with a power of two is exact in float32.
    if (out.small && !out.sums && power >= 0x1p-100 && power <= 0x1p60) {
        round_small<DIGITS>(tile, out.lanes, SIGNED_BYTES ? 0 : out.corrections[v], float(power), out.scale, y);
        return store_lanes(y, v, out);
    }
    alignas(64) double sum[BLOCK];
    join_digits<DIGITS>(tile, sum);
    int64_t correction = SIGNED_BYTES ? 0 : out.corrections[v];
    if (out.sums) {
        int64_t *total = out.sums + v * BLOCK;
        for (int l = 0; l < BLOCK; ++l) total[l] = int64_t(sum[l]) + (out.first ? 0 : total[l]);
        if (!out.last) return;
        for (int l = 0; l < BLOCK; ++l) sum[l] = double(total[l] - correction);
        correction = 0;
    }
    round_sums(sum, double(correction), power, out.scale, y);
    store_lanes(y, v, out);
}

#if SLT_BYTE_DIGITS
// sum += four unsigned weights times four digits, in each lane. gcc 12 spills the sums of the intrinsic.
SLT_INLINE void dot(S32 &sum, U32 weights, S32 digits) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(digits));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(digits));
#endif
}
#else
// sum += two weights times two digits, as int16, in each lane.
SLT_INLINE S32 multiply_pairs(U32 weights, S32 digits) {
#if defined(__AVX512BW__)
    return (S32)_mm512_madd_epi16((__m512i)weights, (__m512i)digits);
#elif defined(__AVX2__)
    return (S32)_mm256_madd_epi16((__m256i)weights, (__m256i)digits);
#elif defined(__SSE2__)
    return (S32)_mm_madd_epi16((__m128i)weights, (__m128i)digits);
#else
    return (S32)(weights & 0xFFFF) * (digits << 16 >> 16) + (S32)(weights >> 16) * (digits >> 16);
#endif
}
#endif

// The sum of `count` digits, a multiple of 64.
inline int64_t total(const Digit *digits, int64_t count) {
    S32 sums = {};
    const char *at = reinterpret_cast<const char *>(digits), *end = at + count * sizeof(Digit);
    for (; at < end; at += sizeof(U32)) {
#if SLT_BYTE_DIGITS
        dot(sums, splat(0x01010101), load<S32>(at));
#else
        sums += multiply_pairs(splat(0x00010001), load<S32>(at));
#endif
    }
    int64_t sum = 0;
    for (int l = 0; l < LANES; ++l) sum += sums[l];
    return sum;
}

SLT_INLINE S32 broadcast(const void *at) {
    int32_t v;
    memcpy(&v, at, 4);
    return v - S32{};
}

// One tile of sums in registers, over all quads. Inlined, its sums would be spilled.
template <int VECTORS, int DIGITS, int USED>
__attribute__((noinline)) void register_tile(const Vectors &x, const uint32_t *panel, int64_t quads,
                                             int32_t *tile /* [VECTORS][DIGITS][BLOCK] */) {
    S32 sums[VECTORS][DIGITS][USED] = {};
    const char *digits = reinterpret_cast<const char *>(x.at);
    const int64_t vector_pitch = x.vector_pitch * sizeof(Digit), digit_pitch = x.plane_pitch * sizeof(Digit);
    for (int64_t q = 0; q < quads; ++q) {
        U32 weights[USED];
        SLT_UNROLL for (int g = 0; g < USED; ++g) weights[g] = load<U32>(panel + (g * quads + q) * LANES);
#if !SLT_BYTE_DIGITS
        U32 odd[USED];
        SLT_UNROLL for (int g = 0; g < USED; ++g) {
            odd[g] = weights[g] >> 8 & 0x00FF00FF;
            weights[g] &= 0x00FF00FF;
        }
#endif
        SLT_UNROLL for (int v = 0; v < VECTORS; ++v)
            SLT_UNROLL for (int d = 0; d < DIGITS; ++d) {
                const char *at = digits + v * vector_pitch + d * digit_pitch + q * QUAD_BYTES;
#if SLT_BYTE_DIGITS
                const S32 four = broadcast(at);
                SLT_UNROLL for (int g = 0; g < USED; ++g) dot(sums[v][d][g], weights[g], four);
#else
                const S32 first = broadcast(at), second = broadcast(at + 4);
                SLT_UNROLL for (int g = 0; g < USED; ++g)
                    sums[v][d][g] += multiply_pairs(weights[g], first) + multiply_pairs(odd[g], second);
#endif
            }
    }
    SLT_UNROLL for (int v = 0; v < VECTORS; ++v)
        SLT_UNROLL for (int d = 0; d < DIGITS; ++d)
            SLT_UNROLL for (int g = 0; g < USED; ++g)
                store(tile + (v * DIGITS + d) * BLOCK + g * LANES, sums[v][d][g]);
}

// Vectors of one tile: six digits in all, or what sixteen registers hold.
template <int DIGITS>
constexpr int TILE_VECTORS = SLT_BYTE_DIGITS ? 6 / DIGITS : 2;

template <int DIGITS, int USED>
inline void register_tiles(int vectors, const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    if (vectors == 1) return register_tile<1, DIGITS, USED>(x, panel, quads, tile);
    if (vectors == 2) return register_tile<2, DIGITS, USED>(x, panel, quads, tile);
    if constexpr (TILE_VECTORS<DIGITS> == 3) register_tile<3, DIGITS, USED>(x, panel, quads, tile);
}

#if !defined(SLT_AMX)

struct Tiles {};  // the state that AMX has and others have not

// Every vector against the panel; `used` groups of it exist.
template <int DIGITS>
void multiply(Tiles &, const Vectors &x, int64_t vectors, const uint32_t *panel, int used, int64_t quads,
              const Output &out) {
    constexpr int most = TILE_VECTORS<DIGITS>;
    alignas(64) int32_t tile[most * DIGITS * BLOCK];
    for (int64_t v = 0; v < vectors; v += most) {
        const int count = vectors - v < most ? int(vectors - v) : most;
        const Vectors here = {x.at + v * x.vector_pitch, x.vector_pitch, x.plane_pitch};
        if (used == 1) register_tiles<DIGITS, 1>(count, here, panel, quads, tile);
        if (used == 2) register_tiles<DIGITS, 2>(count, here, panel, quads, tile);
        if constexpr (GROUPS == 4) {
            if (used == 3) register_tiles<DIGITS, 3>(count, here, panel, quads, tile);
            if (used == 4) register_tiles<DIGITS, 4>(count, here, panel, quads, tile);
        }
        for (int i = 0; i < count; ++i) finish<DIGITS>(tile + i * DIGITS * BLOCK, v + i, out);
    }
}

#endif

}  // namespace
}  // namespace slt::SLT_ISA

#if defined(SLT_AMX)
#include "product_amx.h"
#endif

namespace slt::SLT_ISA {
namespace {

// Vectors (at most MOST_VECTORS where some are chosen) against several panels, [block][group][quad][LANES]; `out` is the
// first block's, its lanes those of all. Sixteen vectors meet every panel before the next do, so that large inputs are
// read from far memory once a piece.
template <int DIGITS>
void multiply_blocks(Tiles &tiles, const Vectors &x, int64_t vectors, const uint32_t *panel, int64_t quads,
                     const Output &out) {
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int64_t count = vectors - v < MOST_VECTORS ? vectors - v : MOST_VECTORS;
        for (int block = 0; block * BLOCK < out.lanes; ++block) {
            const int lane = block * BLOCK, lanes = out.lanes - lane < BLOCK ? out.lanes - lane : BLOCK;
            Output here = out;
            here.first_lane = out.first_lane > lane ? out.first_lane - lane : 0;
            if (here.first_lane >= lanes) continue;
            here.lanes = lanes;
            here.y = out.y + (lane + (out.places ? 0 : v * out.vector_stride));
            if (out.places) here.places += v;
            if (!out.one_power) here.powers += v;
            if (!SIGNED_BYTES) here.corrections += v;
            if (out.bias) here.bias += lane;
            if (out.sums) here.sums += (block * vectors + v) * BLOCK;
            Vectors these = x;
            these.at += v * x.vector_pitch;
            multiply<DIGITS>(tiles, these, count, panel + block * BLOCK * quads, int(ceil_div(lanes, LANES)), quads,
                             here);
        }
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
