// Multiply-add of float32 and float64, with one rounding where the instruction set has it.
#pragma once

#include "cpu/machine/dtype.h"

namespace slt::SLT_ISA {
namespace {

typedef double F64 __attribute__((vector_size(4 * LANES)));  // LANES / 2 lanes

// a * b + sum.
SLT_INLINE F32 multiply_add(F32 a, F32 b, F32 sum) {
#if defined(__AVX512F__)
    return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__)
    return (F32)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + sum;
#endif
}

SLT_INLINE F64 multiply_add(F64 a, F64 b, F64 sum) {
#if defined(__AVX512F__)
    return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
    return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#elif defined(__aarch64__)
    return (F64)vfmaq_f64((float64x2_t)sum, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + sum;
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
