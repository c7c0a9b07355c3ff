// `multiply` with dot products in vector registers: vpdpbusd (VNNI) and sdot (AArch64), multiply-add of pairs of int16,
// or with FEAT_I8MM of AArch64 products of small matrices (smmla).
//
// Register blocking: a few digits of x by all groups, 6 x 4 registers of sums with AVX-512 VNNI. A quad then costs 4
// loads of weights and 6 broadcasts of x for 24 dot products (1536 multiplications). One pass goes over all of k.
#pragma once

#include "cpu/gemm/epilogue.h"
#include "cpu/gemm/workspace.h"

namespace slt::SLT_ISA {
namespace {

constexpr int QUAD_BYTES = 4 * sizeof(Digit);

#if SLT_BYTE_DIGITS
// sum += four weights times four digits, in each lane. gcc 12 spills the sums of the intrinsic.
SLT_INLINE void dot(S32 &sum, U32 weights, S32 digits) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(digits));
#elif defined(__aarch64__)
    sum = (S32)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)digits);
#else
    asm(SLT_VEX "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(digits));
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
#elif defined(__aarch64__)
    const int16x8_t a = (int16x8_t)weights, b = (int16x8_t)digits;
    return (S32)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
#else
    return (S32)(weights & 0xFFFF) * (digits << 16 >> 16) + (S32)(weights >> 16) * (digits >> 16);
#endif
}
#endif

// The sum of `count` digits, a multiple of 64.
inline int64_t total(const Digit *digits, int64_t count) {
    constexpr int64_t most = 1 << 20;  // digits whose sum fits an int32
    int64_t sum = 0;
    for (int64_t first = 0; first < count; first += most) {
        S32 sums = {};
        for (int64_t i = first; i < least(first + most, count); i += int64_t(sizeof(U32) / sizeof(Digit))) {
#if SLT_BYTE_DIGITS
            dot(sums, splat(0x01010101), load<S32>(digits + i));
#else
            sums += multiply_pairs(splat(0x00010001), load<S32>(digits + i));
#endif
        }
        sum += sum_of_lanes(sums);
    }
    return sum;
}

SLT_INLINE S32 broadcast(const void *at) {
    int32_t v;
    memcpy(&v, at, 4);
    return v - S32{};
}

// A register of quads as the operands of a product, and the digits of one vector for it: `add_product` adds their
// products to the sum of each lane.
#if SLT_BYTE_DIGITS
typedef U32 Quads;
typedef S32 QuadDigits;

SLT_INLINE Quads quads_of(U32 weights) { return weights; }
SLT_INLINE QuadDigits digits_at(const char *at) { return broadcast(at); }
SLT_INLINE void add_product(S32 &sum, const Quads &weights, const QuadDigits &digits) { dot(sum, weights, digits); }
#elif defined(__aarch64__)
// One multiplication of widened weights by one of four digits takes one k of all rows.
struct Quads {
    int16x8_t first, second;  // k = 0 and 1 of the quads, 2 and 3
};
typedef int16x4_t QuadDigits;  // of k = 0, 2, 1, 3

SLT_INLINE Quads quads_of(U32 weights) {
    const uint16x8_t even = (uint16x8_t)(weights & 0x00FF00FF), odd = vshrq_n_u16((uint16x8_t)weights, 8);
    return {(int16x8_t)vuzp1q_u16(even, odd), (int16x8_t)vuzp2q_u16(even, odd)};
}
SLT_INLINE QuadDigits digits_at(const char *at) { return load<int16x4_t>(at); }
SLT_INLINE void add_product(S32 &sum, const Quads &weights, const QuadDigits &digits) {
    int32x4_t s = (int32x4_t)sum;
    s = vmlal_lane_s16(s, vget_low_s16(weights.first), digits, 0);
    s = vmlal_high_lane_s16(s, weights.first, digits, 2);
    s = vmlal_lane_s16(s, vget_low_s16(weights.second), digits, 1);
    sum = (S32)vmlal_high_lane_s16(s, weights.second, digits, 3);
}
#else
struct Quads {
    U32 even, odd;
};
struct QuadDigits {
    S32 even, odd;
};

SLT_INLINE Quads quads_of(U32 weights) { return {weights & 0x00FF00FF, weights >> 8 & 0x00FF00FF}; }
SLT_INLINE QuadDigits digits_at(const char *at) { return {broadcast(at), broadcast(at + 4)}; }
SLT_INLINE void add_product(S32 &sum, const Quads &weights, const QuadDigits &digits) {
    sum += multiply_pairs(weights.even, digits.even) + multiply_pairs(weights.odd, digits.odd);
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)

// One tile of sums in registers, over an even number of quads of groups that are `group` words apart. smmla multiplies
// eight k of two digits by those of two outputs; a last digit without another stands for both.
template <int VECTORS, int DIGITS, int USED>
__attribute__((noinline)) void register_tile(const Vectors &x, const uint32_t *panel, int64_t group, int64_t quads,
                                             int32_t *tile /* [VECTORS][DIGITS][BLOCK] */) {
    constexpr int ROWS = VECTORS * DIGITS, PAIRS = (ROWS + 1) / 2;
    const Digit *row[2 * PAIRS];
    for (int r = 0; r < 2 * PAIRS; ++r) {
        const int exists = r < ROWS ? r : ROWS - 1;
        row[r] = x.at + exists / DIGITS * x.vector_pitch + exists % DIGITS * x.plane_pitch;
    }
    int32x4_t sums[PAIRS][USED][2] = {};  // of two digits by two outputs
    for (int64_t q = 0; q < quads; q += 2) {
        int8x16_t digits[PAIRS];
        SLT_UNROLL for (int p = 0; p < PAIRS; ++p)
            digits[p] = vcombine_s8(vld1_s8(row[2 * p] + 4 * q), vld1_s8(row[2 * p + 1] + 4 * q));
        SLT_UNROLL for (int g = 0; g < USED; ++g) {
            const uint32_t *at = panel + g * group + q * LANES;
            const uint32x4_t first = vld1q_u32(at), second = vld1q_u32(at + LANES);
            const int8x16_t low = (int8x16_t)vzip1q_u32(first, second), high = (int8x16_t)vzip2q_u32(first, second);
            SLT_UNROLL for (int p = 0; p < PAIRS; ++p) {
                sums[p][g][0] = vmmlaq_s32(sums[p][g][0], digits[p], low);
                sums[p][g][1] = vmmlaq_s32(sums[p][g][1], digits[p], high);
            }
        }
    }
    SLT_UNROLL for (int r = 0; r < ROWS; ++r)
        SLT_UNROLL for (int g = 0; g < USED; ++g) {
            const int64x2_t low = (int64x2_t)sums[r / 2][g][0], high = (int64x2_t)sums[r / 2][g][1];
            store(tile + r * BLOCK + g * LANES, r % 2 ? vzip2q_s64(low, high) : vzip1q_s64(low, high));
        }
}

#else

// One tile of sums in registers, over some quads of groups that are `group` words apart. Not inlined: the compiler
// would spill the sums.
template <int VECTORS, int DIGITS, int USED>
__attribute__((noinline)) void register_tile(const Vectors &x, const uint32_t *panel, int64_t group, int64_t quads,
                                             int32_t *tile /* [VECTORS][DIGITS][BLOCK] */) {
    S32 sums[VECTORS][DIGITS][USED] = {};
    const char *digits = reinterpret_cast<const char *>(x.at);
    const int64_t vector_pitch = x.vector_pitch * sizeof(Digit), digit_pitch = x.plane_pitch * sizeof(Digit);
    for (int64_t q = 0; q < quads; ++q) {
        Quads weights[USED];
        SLT_UNROLL for (int g = 0; g < USED; ++g)
            weights[g] = quads_of(load<U32>(panel + g * group + q * LANES));
        SLT_UNROLL for (int v = 0; v < VECTORS; ++v)
            SLT_UNROLL for (int d = 0; d < DIGITS; ++d) {
                const QuadDigits four = digits_at(digits + v * vector_pitch + d * digit_pitch + q * QUAD_BYTES);
                SLT_UNROLL for (int g = 0; g < USED; ++g) add_product(sums[v][d][g], weights[g], four);
            }
    }
    SLT_UNROLL for (int v = 0; v < VECTORS; ++v)
        SLT_UNROLL for (int d = 0; d < DIGITS; ++d)
            SLT_UNROLL for (int g = 0; g < USED; ++g)
                store(tile + (v * DIGITS + d) * BLOCK + g * LANES, sums[v][d][g]);
}

#endif

// Vectors of one tile: six digits in all, or the four that sixteen registers hold.
template <int DIGITS>
constexpr int TILE_VECTORS = (SLT_BYTE_DIGITS ? 6 : 4) / DIGITS;

template <int DIGITS, int USED>
inline void register_tiles(int vectors, const Vectors &x, const uint32_t *panel, int64_t group, int64_t quads,
                           int32_t *tile) {
    if constexpr (DIGITS == 1) {
        // Vectors of one digit are as far apart as digits of a vector: 4 and 6 are two vectors of 2 or 3 digits.
        const int each = vectors == 4 ? 2 : vectors == 6 ? 3 : vectors;
        const Vectors digits = {x.at, each * x.vector_pitch, x.vector_pitch};
        if (vectors == 1) return register_tile<1, 1, USED>(x, panel, group, quads, tile);
        if (vectors == 2) return register_tile<1, 2, USED>(digits, panel, group, quads, tile);
        if (vectors == 3) return register_tile<1, 3, USED>(digits, panel, group, quads, tile);
        if (vectors == 4) return register_tile<2, 2, USED>(digits, panel, group, quads, tile);
        if (vectors == 5) return register_tile<5, 1, USED>(x, panel, group, quads, tile);
        if constexpr (SLT_BYTE_DIGITS) register_tile<2, 3, USED>(digits, panel, group, quads, tile);
    } else {
        if (vectors == 1) return register_tile<1, DIGITS, USED>(x, panel, group, quads, tile);
        if (vectors == 2) return register_tile<2, DIGITS, USED>(x, panel, group, quads, tile);
        if constexpr (TILE_VECTORS<DIGITS> == 3) register_tile<3, DIGITS, USED>(x, panel, group, quads, tile);
    }
}

// Multiplies every vector by the panel, of which `used` groups exist.
template <int DIGITS>
void multiply(Workspace &, const Vectors &x, int64_t vectors, const uint32_t *panel, int used, int64_t quads,
              const Output &out) {
    constexpr int most = TILE_VECTORS<DIGITS>;
    alignas(64) int32_t tile[most * DIGITS * BLOCK];
    alignas(64) double sums[most][BLOCK], part[BLOCK];
    for (int64_t v = 0; v < vectors; v += most) {
        const int count = int(least(vectors - v, most));
        for (int64_t q = 0; q == 0 || q < quads; q += LONGEST) {
            const int64_t here = least(quads - q, LONGEST);
            const Vectors these = {x.at + v * x.vector_pitch + 4 * q, x.vector_pitch, x.plane_pitch};
            const uint32_t *weights = panel + q * LANES;
            if (used == 1) register_tiles<DIGITS, 1>(count, these, weights, quads * LANES, here, tile);
            if (used == 2) register_tiles<DIGITS, 2>(count, these, weights, quads * LANES, here, tile);
            if constexpr (GROUPS == 4) {
                if (used == 3) register_tiles<DIGITS, 3>(count, these, weights, quads * LANES, here, tile);
                if (used == 4) register_tiles<DIGITS, 4>(count, these, weights, quads * LANES, here, tile);
            }
            for (int i = 0; i < count && quads > LONGEST; ++i) {
                join_digits<DIGITS, DIGIT_BITS>(tile + i * DIGITS * BLOCK, part);
                for (int l = 0; l < BLOCK; ++l) sums[i][l] = part[l] + (q == 0 ? 0 : sums[i][l]);
            }
        }
        for (int i = 0; i < count; ++i)
            quads > LONGEST ? finish_sums(sums[i], v + i, out) : finish<DIGITS>(tile + i * DIGITS * BLOCK, v + i, out);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
