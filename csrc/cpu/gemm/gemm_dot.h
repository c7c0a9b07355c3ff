// `multiply` with dot products in vector registers: vpdpbusd (VNNI), or multiply-add of pairs of int16.
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
        for (int l = 0; l < LANES; ++l) sum += sums[l];
    }
    return sum;
}

SLT_INLINE S32 broadcast(const void *at) {
    int32_t v;
    memcpy(&v, at, 4);
    return v - S32{};
}

// One tile of sums in registers, over some quads of groups that are `group` words apart. Not inlined: the compiler
// would spill the sums.
template <int VECTORS, int DIGITS, int USED>
__attribute__((noinline)) void register_tile(const Vectors &x, const uint32_t *panel, int64_t group, int64_t quads,
                                             int32_t *tile /* [VECTORS][DIGITS][BLOCK] */) {
    S32 sums[VECTORS][DIGITS][USED] = {};
    const char *digits = reinterpret_cast<const char *>(x.at);
    const int64_t vector_pitch = x.vector_pitch * sizeof(Digit), digit_pitch = x.plane_pitch * sizeof(Digit);
    for (int64_t q = 0; q < quads; ++q) {
        U32 weights[USED];
        SLT_UNROLL for (int g = 0; g < USED; ++g) weights[g] = load<U32>(panel + g * group + q * LANES);
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

// Vectors of one tile: six digits in all, or the two vectors that sixteen registers hold.
template <int DIGITS>
constexpr int TILE_VECTORS = SLT_BYTE_DIGITS ? 6 / DIGITS : 2;

template <int DIGITS, int USED>
inline void register_tiles(int vectors, const Vectors &x, const uint32_t *panel, int64_t group, int64_t quads,
                           int32_t *tile) {
    if (vectors == 1) return register_tile<1, DIGITS, USED>(x, panel, group, quads, tile);
    if (vectors == 2) return register_tile<2, DIGITS, USED>(x, panel, group, quads, tile);
    if constexpr (TILE_VECTORS<DIGITS> == 3) register_tile<3, DIGITS, USED>(x, panel, group, quads, tile);
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
