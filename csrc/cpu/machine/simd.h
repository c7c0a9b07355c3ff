// Vectors of 32-bit lanes, as wide as the registers of the instruction set. Arithmetic uses the compiler's vector
// types; operations for which they have no operator use intrinsics, in this file.
//
// Each file of csrc/cpu/ops is compiled once per instruction set; -DSLT_ISA=<name> names its namespace. Everything
// except an operation's entry point is in an unnamed namespace: the linker may share other inline functions between
// objects, and would carry instructions of one set into another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// The matrix unit, for int8 and bfloat16; clang 14 spells the macro in its own way.
#if defined(__AMX_INT8__) || defined(__AMXINT8__)
#define SLT_AMX 1
#endif

#if defined(__clang__)
#define SLT_UNROLL _Pragma("unroll")
#else
#define SLT_UNROLL _Pragma("GCC unroll 16")
#endif
// Stops gcc 12 from moving the computation of these four values, which would exhaust the registers.
#if defined(__AVX512F__)
#define SLT_IN_ORDER(a, b, c, d) asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d))
#else
#define SLT_IN_ORDER(a, b, c, d)
#endif
// Selects the VEX encoding (AVX-VNNI) of an instruction that AVX-512 has too. Tests that emulate AVX-VNNI on AVX-512
// take the latter.
#if defined(SLT_EMULATE)
#define SLT_VEX
#else
#define SLT_VEX "%{vex%} "
#endif
// Hides from the compiler where a value comes from.
#define SLT_HIDE(value) asm("" : "+r"(value))
#define SLT_INLINE inline __attribute__((always_inline))

namespace slt::SLT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef uint32_t U32 __attribute__((vector_size(4 * LANES)));
typedef int32_t S32 __attribute__((vector_size(4 * LANES)));
typedef int16_t S16 __attribute__((vector_size(4 * LANES)));  // 2 * LANES lanes
typedef uint64_t U64 __attribute__((vector_size(4 * LANES)));  // LANES / 2 lanes
typedef uint8_t U8 __attribute__((vector_size(4 * LANES)));
typedef int8_t S8 __attribute__((vector_size(4 * LANES)));

SLT_INLINE U32 splat(uint32_t v) { return v - U32{}; }
SLT_INLINE U64 splat64(uint64_t v) { return v - U64{}; }

template <class V>
SLT_INLINE V load(const void *at) {
    V v;
    memcpy(&v, at, sizeof v);
    return v;
}

template <class V>
SLT_INLINE void store(void *at, V v) {
    memcpy(at, &v, sizeof v);
}

// The 64-bit products of the low halves of 64-bit lanes; the high halves are ignored.
SLT_INLINE U64 multiply_low(U64 a, uint32_t b) {
#if defined(__AVX512F__)
    return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
    return (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
    return (a & 0xFFFFFFFF) * b;
#endif
}

// The low halves of the 64-bit lanes of `even` in the even 32-bit lanes, of `odd` in the odd ones.
SLT_INLINE U32 interleave(U64 even, U64 odd) {
#if defined(__AVX512F__)
    return (U32)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#elif defined(__aarch64__)
    return (U32)vtrn1q_u32((uint32x4_t)even, (uint32x4_t)odd);
#else
    return (U32)((even & 0xFFFFFFFF) | odd << 32);
#endif
}

// Every second lane of a and then of b: the even ones, or the odd ones.
template <bool ODD>
SLT_INLINE U32 every_second(U32 a, U32 b) {
#if defined(__AVX512F__)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return (U32)_mm512_permutex2var_epi32((__m512i)a, _mm512_add_epi32(even, _mm512_set1_epi32(ODD)), (__m512i)b);
#elif defined(__AVX2__)
    const __m256 of_halves = _mm256_shuffle_ps((__m256)a, (__m256)b, ODD ? 0xDD : 0x88);
    return (U32)_mm256_permute4x64_epi64((__m256i)of_halves, 0xD8);
#elif defined(__SSE2__)
    return (U32)_mm_shuffle_ps((__m128)a, (__m128)b, ODD ? 0xDD : 0x88);
#elif defined(__aarch64__)
    return (U32)(ODD ? vuzp2q_u32((uint32x4_t)a, (uint32x4_t)b) : vuzp1q_u32((uint32x4_t)a, (uint32x4_t)b));
#else
    U32 r;
    for (int i = 0; i < LANES; ++i) r[i] = i < LANES / 2 ? a[2 * i + ODD] : b[2 * i - LANES + ODD];
    return r;
#endif
}

// Bit by bit, where(m, a, b) is a where m is set and b elsewhere.
SLT_INLINE U32 where(U32 m, U32 a, U32 b) {
#if defined(__AVX512F__)
    return (U32)_mm512_ternarylogic_epi32((__m512i)m, (__m512i)a, (__m512i)b, 0xCA);
#elif defined(__aarch64__)
    return (U32)vbslq_u32((uint32x4_t)m, (uint32x4_t)a, (uint32x4_t)b);
#else
    return (a & m) | (b & ~m);
#endif
}

// where(m, a, ~b).
SLT_INLINE U32 where_not(U32 m, U32 a, U32 b) {
#if defined(__AVX512F__)
    return (U32)_mm512_ternarylogic_epi32((__m512i)m, (__m512i)a, (__m512i)b, 0xC5);
#else
    return (a & m) | ~(b | m);
#endif
}

// Bit by bit, the majority of a, ~b and c.
SLT_INLINE U32 majority_not(U32 a, U32 b, U32 c) {
#if defined(__AVX512F__)
    return (U32)_mm512_ternarylogic_epi32((__m512i)a, (__m512i)b, (__m512i)c, 0xB2);
#else
    return (a & ~b) | (c & (a | ~b));
#endif
}

// The number of set bits of each lane.
SLT_INLINE U32 count_bits(U32 v) {
#if defined(__AVX512VPOPCNTDQ__)
    return (U32)_mm512_popcnt_epi32((__m512i)v);
#elif defined(__aarch64__)
    return (U32)vpaddlq_u16(vpaddlq_u8(vcntq_u8((uint8x16_t)v)));
#else
    for (int i = 0; i < LANES; ++i) v[i] = uint32_t(__builtin_popcount(v[i]));
    return v;
#endif
}

SLT_INLINE int32_t sum_of_lanes(S32 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int l = 0; l < LANES; ++l) sum += v[l];
    return sum;
#endif
}

// Transposes a square of 32-bit elements, one row per register.
SLT_INLINE void transpose(S32 r[LANES]) {
#if defined(__AVX512F__)
    __m512i a[16], b[16];
    SLT_UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)r[i], (__m512i)r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)r[i], (__m512i)r[i + 1]);
    }
    SLT_UNROLL for (int i = 0; i < 16; i += 4) {  // b[i + j]: columns j, j + 4, ... of four rows
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    SLT_UNROLL for (int j = 0; j < 4; ++j) {  // a 4 x 4 transposition of 128-bit columns
        const __m512i low = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xDD);
        const __m512i low2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xDD);
        r[j] = (S32)_mm512_shuffle_i32x4(low, low2, 0x88);
        r[j + 4] = (S32)_mm512_shuffle_i32x4(high, high2, 0x88);
        r[j + 8] = (S32)_mm512_shuffle_i32x4(low, low2, 0xDD);
        r[j + 12] = (S32)_mm512_shuffle_i32x4(high, high2, 0xDD);
    }
#elif defined(__AVX2__)
    __m256i a[8], b[8];
    SLT_UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32((__m256i)r[i], (__m256i)r[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32((__m256i)r[i], (__m256i)r[i + 1]);
    }
    SLT_UNROLL for (int i = 0; i < 8; i += 4) {  // b[i + j]: columns j and j + 4 of four rows
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    SLT_UNROLL for (int j = 0; j < 4; ++j) {
        r[j] = (S32)_mm256_permute2x128_si256(b[j], b[j + 4], 0x20);
        r[j + 4] = (S32)_mm256_permute2x128_si256(b[j], b[j + 4], 0x31);
    }
#elif defined(__aarch64__)
    const int64x2_t a = (int64x2_t)vtrn1q_s32((int32x4_t)r[0], (int32x4_t)r[1]);  // columns 0 and 2 of two rows
    const int64x2_t b = (int64x2_t)vtrn2q_s32((int32x4_t)r[0], (int32x4_t)r[1]);
    const int64x2_t c = (int64x2_t)vtrn1q_s32((int32x4_t)r[2], (int32x4_t)r[3]);
    const int64x2_t d = (int64x2_t)vtrn2q_s32((int32x4_t)r[2], (int32x4_t)r[3]);
    r[0] = (S32)vzip1q_s64(a, c);
    r[1] = (S32)vzip1q_s64(b, d);
    r[2] = (S32)vzip2q_s64(a, c);
    r[3] = (S32)vzip2q_s64(b, d);
#else
    int32_t square[LANES][LANES];
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) square[j][i] = r[i][j];
    memcpy(r, square, sizeof square);
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
