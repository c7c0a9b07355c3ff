// Vectors of 32-bit lanes, as wide as the instruction set that this file is compiled for. Compilers' own vector types
// do the arithmetic; only what they have no operator for is written with intrinsics, here.
//
// Each file of csrc/cpu is compiled once per instruction set, with -DSLT_ISA=<name> naming both the namespace and the
// registers. Everything but an operation's entry point is in an unnamed namespace: a function that the linker may
// share between objects could carry one path's instructions into another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define SLT_UNROLL _Pragma("unroll")
#else
#define SLT_UNROLL _Pragma("GCC unroll 16")
#endif
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
typedef uint64_t U64 __attribute__((vector_size(4 * LANES)));  // half as many lanes
typedef uint8_t U8 __attribute__((vector_size(4 * LANES)));

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

// The 64-bit products of the low halves of 64-bit lanes; the high halves may hold anything.
SLT_INLINE U64 multiply_low(U64 a, uint32_t b) {
#if defined(__AVX512F__)
    return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xFFFFFFFF) * b;
#endif
}

// Bit by bit, where(m, a, b) is a where m is set and b elsewhere.
SLT_INLINE U32 where(U32 m, U32 a, U32 b) {
#if defined(__AVX512F__)
    return (U32)_mm512_ternarylogic_epi32((__m512i)m, (__m512i)a, (__m512i)b, 0xCA);
#else
    return (a & m) | (b & ~m);
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
