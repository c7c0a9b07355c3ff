// Conversion of tensor elements to float32 and back, a vector at a time.
#pragma once

#include "cpu/machine/simd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

typedef float F32 __attribute__((vector_size(4 * LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));

SLT_INLINE F32 of_float16(U16 v) {
#if defined(__AVX512F__)
    return (F32)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
    return (F32)_mm256_cvtph_ps((__m128i)v);
#elif defined(__aarch64__)
    return (F32)vcvt_f32_f16((float16x4_t)v);
#else
    // Read with float32's exponent bias, a float16 is 2^-112 times its value, denormal or not; infinity and NaN need a
    // different exponent.
    const U32 bits = __builtin_convertvector(v, U32), size = (bits & 0x7FFF) << 13;
    const U32 special = (U32)((bits & 0x7C00) == 0x7C00) & 0x7F800000;
    return (F32)((U32)((F32)size * 0x1p112f) | special | (bits & 0x8000) << 16);
#endif
}

// To the nearest, ties to even.
SLT_INLINE U16 to_float16(F32 v) {
#if defined(__AVX512F__)
    return (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return (U16)vcvt_f16_f32((float32x4_t)v);
#else
    const U32 size = (U32)v & 0x7FFFFFFF;
    const U32 normal = (size + 0xC8000FFF + (size >> 13 & 1)) >> 13;  // changes the bias, adds half a last place
    const U32 denormal = (U32)((F32)size + 0.5f) - 0x3F000000;         // the addition rounds
    const U32 special = 0x7C00 | ((U32)((S32)size > 0x7F800000) & 0x200);
    const U32 tiny = (U32)((S32)size < 0x38800000), huge = (U32)((S32)size >= 0x47800000);
    const U32 result = where(huge, special, where(tiny, denormal, normal));
    return __builtin_convertvector(result | ((U32)v >> 16 & 0x8000), U16);
#endif
}

SLT_INLINE F32 of_bfloat16(U16 v) { return (F32)(__builtin_convertvector(v, U32) << 16); }

// To the nearest, ties to even.
SLT_INLINE U16 to_bfloat16(F32 v) {
    const U32 bits = (U32)v, nan = (U32)((S32)(bits & 0x7FFFFFFF) > 0x7F800000);
    const U32 rounded = bits + 0x7FFF + (bits >> 16 & 1);
    return __builtin_convertvector(where(nan, bits | 0x400000, rounded) >> 16, U16);
}

// Reads N registers.
template <int N>
SLT_INLINE void read_floats(const Input &x, F32 (&out)[N]) {
    if (x.type == Type::FLOAT32)
        for (int i = 0; i < N; ++i) out[i] = load<F32>(x.data + i * sizeof(F32));
    else if (x.type == Type::BFLOAT16)
        for (int i = 0; i < N; ++i) out[i] = of_bfloat16(load<U16>(x.data + i * sizeof(U16)));
    else
        for (int i = 0; i < N; ++i) out[i] = of_float16(load<U16>(x.data + i * sizeof(U16)));
}

SLT_INLINE F32 read_floats(const Input &x) {
    F32 v[1];
    read_floats(x, v);
    return v[0];
}

// Reads the first `count` lanes; the others are zeros.
SLT_INLINE F32 read_floats(const Input &x, int64_t count) {
    char part[sizeof(F32)] = {};
    memcpy(part, x.data, size_t(count * x.size()));
    return read_floats({part, x.type});
}

inline void read_floats(const Input &x, int64_t count, float *out) {
    if (x.type == Type::FLOAT32) {
        memcpy(out, x.data, size_t(count) * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, read_floats(x + i));
    const F32 last = read_floats(x + i, count - i);
    memcpy(out + i, &last, size_t(count - i) * sizeof(float));
}

// Writes the first `count` lanes.
SLT_INLINE void write_floats(F32 v, int64_t count, const Result &to) {
    if (to.type == Type::FLOAT32) {
        memcpy(to.data, &v, size_t(count) * sizeof(float));
    } else {
        const U16 narrow = to.type == Type::BFLOAT16 ? to_bfloat16(v) : to_float16(v);
        memcpy(to.data, &narrow, size_t(count) * sizeof(uint16_t));
    }
}

inline void write_floats(const float *from, int64_t count, const Result &to) {
    if (to.type == Type::FLOAT32) {
        memcpy(to.data, from, size_t(count) * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) write_floats(load<F32>(from + i), LANES, to + i);
    if (i == count) return;
    F32 last = {};
    memcpy(&last, from + i, size_t(count - i) * sizeof(float));
    write_floats(last, count - i, to + i);
}

}  // namespace
}  // namespace slt::SLT_ISA
