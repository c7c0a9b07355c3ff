// Inputs as fixed point (contract/fixed_point.h): a vector that shares a power of two becomes integers X, and each X a
// few balanced digits, so that products with int8 weights are exact integer sums.
//
// With a dot product of bytes (VNNI, AMX, AArch64's) a digit is a byte: three for "highest", two for "high". Without
// one it is 12 bits in an int16, for multiply-add of pairs, and two of them hold the same X. Int8 activations have one
// digit. The digits of a vector are in the order of the quads of its weights (`Order`), so that a quad of x is one
// broadcast.
#pragma once

#include "contract/fixed_point.h"
#include "cpu/machine/dtype.h"
#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
#define SLT_BYTE_DIGITS 1
typedef int8_t Digit;
constexpr int DIGIT_BITS = 8;
#else
#define SLT_BYTE_DIGITS 0
typedef int16_t Digit;
constexpr int DIGIT_BITS = 12;
#endif

// Whether sums of signed constants can come from tables (gemm_lut.h).
#if defined(SLT_AMX) || (SLT_BYTE_DIGITS && !defined(__AVX512F__))
#define SLT_TABLES 0
#else
#define SLT_TABLES 1
#endif

// The form of the vectors of a product. InDigits: planes of digits, for dot products.
template <int DIGITS>
struct InDigits {
    typedef Digit Element;
    static constexpr int PLANES = DIGITS;
    static constexpr bool TABLES = false;
    static constexpr bool PAIRS = !SLT_BYTE_DIGITS;  // operands are pairs of int16
    static constexpr int64_t DEPTH_STEP = SIGNED_BYTES ? 64 : WORD;  // k are multiplied in multiples of it
};

// The integers X themselves, for sums from tables (gemm_lut.h).
struct Whole {
    typedef int32_t Element;
    static constexpr int PLANES = 1;
    static constexpr bool TABLES = true;
    static constexpr bool PAIRS = false;
    static constexpr int64_t DEPTH_STEP = 64;
};

template <int64_t STEP>
constexpr int64_t whole_steps(int64_t count) {
    return ceil_div(count, STEP) * STEP;
}

// `round_to_even` of the contract.
SLT_INLINE S32 round_to_int(F32 v) {
#if defined(__AVX512F__)
    return (S32)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
    return (S32)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
    return (S32)_mm_cvtps_epi32((__m128)v);
#elif defined(__aarch64__)
    return (S32)vcvtnq_s32_f32((float32x4_t)v);
#else
    S32 r;
    for (int i = 0; i < LANES; ++i) r[i] = int32_t(__builtin_lrintf(v[i]));
    return r;
#endif
}

// The largest magnitude, as bits (contract/scores.h): NaN and infinity are the largest. V: a register of integers as
// wide as the numbers.
template <class V>
SLT_INLINE int32_t largest_magnitude(const char *at, int64_t count) {
    constexpr int64_t lanes = sizeof(V) / sizeof(V{}[0]);
    const auto larger = [](V a, V b) { return a > b ? a : b; };
    const V magnitude = (V{} - 1) ^ ((V{} + 1) << (8 * sizeof(V{}[0]) - 1));  // all bits except the sign
    V most = {}, rest = {};
    for (; count >= lanes; count -= lanes, at += sizeof(V)) most = larger(most, load<V>(at) & magnitude);
    if (count > 0) memcpy(&rest, at, size_t(count) * sizeof(V{}[0]));  // `at` may be null where there is nothing
    most = larger(most, rest & magnitude);
    int32_t result = 0;
    for (int l = 0; l < lanes; ++l) result = most[l] > result ? most[l] : result;
    return result;
}

// The largest |x|, as bits of a float32.
inline uint32_t largest_bits(const Input x, int64_t count) {
    if (x.type == Type::FLOAT32) return uint32_t(largest_magnitude<S32>(x.data, count));
    const U16 most = uint16_t(largest_magnitude<S16>(x.data, count)) - U16{};
    const F32 v = x.type == Type::BFLOAT16 ? of_bfloat16(most) : of_float16(most);
    return ((U32)v)[0];
}

// The fixed point of int8 activations: X = rint(x * (127 / m)), and `power` is m / 127. Both quotients are rounded to
// float32, as if its exponent had no limit.
inline FixedPoint int8_point(uint32_t largest) {
    const bool finite = largest < INFINITE;
    const int e = finite ? exponent_above(largest) : 0;
    const float m = finite && largest ? float(__builtin_bit_cast(float, largest) * power_of_two(-e)) : 1;
    return {finite ? float(power_of_two(-e / 2)) : 0, float(power_of_two(-e / 2 - e % 2)) * (127 / m),
            finite ? power_of_two(e) * (m / 127) : __builtin_nan("")};
}

// The fixed point of a vector, from the bits of its largest |x|. One digit is int8 activations; two or three are the
// contract's.
inline FixedPoint point_of(uint32_t largest, int digits) {
    return digits == 1 ? int8_point(largest) : fixed_point(largest, digits);
}

SLT_INLINE S32 fixed_integers(const FixedPoint &fixed, F32 x) { return round_to_int(x * fixed.up * fixed.up_again); }

// The order of the digits of a word: of k, of the quads of byte weights, or of the quads of signed_constant.
enum class Layout { PLAIN, BYTE_QUADS, SIGN_QUADS };

SLT_INLINE Layout layout_of(int64_t weight) {
    return weight == SIGNED_CONSTANT ? Layout::SIGN_QUADS : Layout::BYTE_QUADS;
}

struct Order {
    alignas(64) uint8_t k[WORD] = {};  // the k at each place
#if defined(__AVX512VBMI__)
    // Indices for vpermt2b into the bytes of 32 integers in two registers: digits 0 and 1; digit 2.
    alignas(64) uint8_t two[64] = {}, third[64] = {};
#endif

    // `pairs`: for multiply-add of pairs.
    constexpr Order(Layout layout, bool pairs) {
        for (int s = 0; s < 8; ++s)
            for (int i = 0; i < 4; ++i) {
                const int byte = pairs && layout != Layout::PLAIN ? (i % 2) * 2 + i / 2 : i;
                k[4 * s + i] = uint8_t(layout == Layout::SIGN_QUADS ? quad_k(SIGNED_CONSTANT, s, byte) : 4 * s + byte);
            }
#if defined(__AVX512VBMI__)
        for (int p = 0; p < int(WORD); ++p) {
            two[p] = uint8_t(4 * k[p]);
            two[WORD + p] = uint8_t(4 * k[p] + 1);
            third[p] = third[WORD + p] = uint8_t(4 * k[p] + 2);
        }
#endif
    }
};

// The order of the vectors of a product in that form.
template <class Form>
inline const Order &order_of(Layout layout) {
    static constexpr Order orders[] = {{Layout::PLAIN, Form::PAIRS},
                                       {Layout::BYTE_QUADS, Form::PAIRS},
                                       {Layout::SIGN_QUADS, Form::PAIRS}};
    return orders[int(layout)];
}

// The digits of 32 integers, in planes `pitch` apart. Returns the sum of the integers, or 0 if weights are signed
// bytes, which need no correction.
template <class Form>
SLT_INLINE int64_t write_word(const int32_t x[WORD], const Order &order, typename Form::Element *out, int64_t pitch) {
    if constexpr (Form::TABLES) {
        for (int p = 0; p < WORD; ++p) out[p] = x[order.k[p]];
        return 0;
    }
    int64_t sum = 0;
    if constexpr (!SIGNED_BYTES)
        for (int i = 0; i < WORD; ++i) sum += x[i];
#if defined(__AVX512VBMI__)
    const auto digits = [x](int at) {
        const U32 integers = load<U32>(x + at);
        return (__m512i)(Form::PLANES == 1 ? integers : balanced_digits<Form::PLANES>(integers));
    };
    const __m512i a = digits(0), b = digits(16);
    const __m512i low = _mm512_permutex2var_epi8(a, load<__m512i>(order.two), b);
    store(out, _mm512_castsi512_si256(low));
    if (Form::PLANES > 1) store(out + pitch, _mm512_extracti64x4_epi64(low, 1));
    if (Form::PLANES == 3)
        store(out + 2 * pitch,
              _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, load<__m512i>(order.third), b)));
#elif defined(__ARM_FEATURE_DOTPROD)
    uint8x16x2_t bytes[3];  // of each digit, in the order of k
    SLT_UNROLL for (int h = 0; h < 2; ++h) {
        uint8x16_t low[2], high[2];  // halves of eight integers
        SLT_UNROLL for (int i = 0; i < 2; ++i) {
            const uint16x8_t a = (uint16x8_t)balanced_digits<Form::PLANES>(load<U32>(x + 16 * h + 8 * i));
            const uint16x8_t b = (uint16x8_t)balanced_digits<Form::PLANES>(load<U32>(x + 16 * h + 8 * i + 4));
            low[i] = (uint8x16_t)vuzp1q_u16(a, b);
            high[i] = (uint8x16_t)vuzp2q_u16(a, b);
        }
        bytes[0].val[h] = vuzp1q_u8(low[0], low[1]);
        bytes[1].val[h] = vuzp2q_u8(low[0], low[1]);
        bytes[2].val[h] = vuzp1q_u8(high[0], high[1]);
    }
    for (int d = 0; d < Form::PLANES; ++d)
        SLT_UNROLL for (int p = 0; p < WORD; p += 16)
            store(out + d * pitch + p, vqtbl2q_u8(bytes[d], load<uint8x16_t>(order.k + p)));
#else
    constexpr int32_t half = 1 << (DIGIT_BITS - 1);
    for (int p = 0; p < WORD; ++p) {
        int32_t rest = x[order.k[p]];
        for (int d = 0; d < Form::PLANES; ++d) {
            const int32_t digit = ((rest + half) & (2 * half - 1)) - half;
            out[d * pitch + p] = Digit(digit);
            rest = (rest - digit) >> DIGIT_BITS;
        }
    }
#endif
    return sum;
}

// A vector in its form, in planes `pitch` apart: x at [skipped, skipped + count), zeros around it up to `padded`, a
// multiple of 32. Returns the sum as `write_word` does.
template <class Form>
inline int64_t write_vector(const Input x, int64_t count, int64_t skipped, int64_t padded, const FixedPoint &fixed,
                            const Order &order, typename Form::Element *out, int64_t pitch) {
    int64_t sum = 0;
    for (int64_t at = 0; at < padded; at += WORD) {
        alignas(64) int32_t integers[WORD];
        F32 v[WORD / LANES] = {};
        const int64_t k = at - skipped;  // a multiple of 32
        if (k >= 0 && k + WORD <= count) {
            read_floats(x + k, v);
        } else if (k >= 0 && k < count) {
            float part[WORD] = {};
            read_floats(x + k, count - k, part);
            memcpy(v, part, sizeof v);
        }
        for (int i = 0; i < WORD / LANES; ++i) store(integers + i * LANES, fixed_integers(fixed, v[i]));
        sum += write_word<Form>(integers, order, out + at, pitch);
    }
    return sum;
}

}  // namespace
}  // namespace slt::SLT_ISA
