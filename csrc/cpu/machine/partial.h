// Parts of registers, with masks where the instruction set has them: a copy of a few bytes costs as much as a product.
#pragma once

#include "cpu/machine/dtype.h"

namespace slt::SLT_ISA {
namespace {

// Reads the first `count` lanes; the others are zeros.
SLT_INLINE F32 read_part(const Input &x, int64_t count) {
#if defined(__AVX512F__)
    const __mmask16 exist = __mmask16((1u << count) - 1);
    if (x.type == Type::FLOAT32) return (F32)_mm512_maskz_loadu_ps(exist, x.data);
    const U16 narrow = (U16)_mm256_maskz_loadu_epi16(exist, x.data);
    return x.type == Type::BFLOAT16 ? of_bfloat16(narrow) : of_float16(narrow);
#else
    return read_floats(x, count);
#endif
}

// Writes the first `count` lanes.
SLT_INLINE void write_part(F32 v, int64_t count, const Result &to) {
#if defined(__AVX512F__)
    const __mmask16 exist = __mmask16((1u << count) - 1);
    if (to.type == Type::FLOAT32) return _mm512_mask_storeu_ps(to.data, exist, (__m512)v);
    const U16 narrow = to.type == Type::BFLOAT16 ? to_bfloat16(v) : to_float16(v);
    _mm256_mask_storeu_epi16(to.data, exist, (__m256i)narrow);
#else
    write_floats(v, count, to);
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
