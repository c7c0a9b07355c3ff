// Inputs as fixed point (docs/contract.md, section 7): a vector that shares a scale becomes integers X, and each X a
// few balanced digits, so that products with int8 weights are exact integer sums.
//
// With a dot product of bytes (VNNI, AMX) a digit is a byte, and "highest" has three of them. Without one it is 12 bits
// in an int16, for multiply-add of pairs, and two of them hold the same X. The digits of a vector stand in the order in
// which the quads of its weights do (`Order`), so that a quad of x is one broadcast.
#pragma once

#include <type_traits>

#include "cpu/machine/dtype.h"
#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define SLT_BYTE_DIGITS 1
typedef int8_t Digit;
constexpr int DIGIT_BITS = 8;
#else
#define SLT_BYTE_DIGITS 0
typedef int16_t Digit;
constexpr int DIGIT_BITS = 12;
#endif

// Whether the sums of signed constants can come from tables (gemm_lut.h).
#if defined(SLT_AMX) || (SLT_BYTE_DIGITS && !defined(__AVX512F__))
#define SLT_TABLES 0
#else
#define SLT_TABLES 1
#endif

// Digits of a product: 2 or 3, or WHOLE, where they are the integers themselves (gemm_lut.h).
constexpr int WHOLE = 1;
template <int DIGITS>
using DigitOf = std::conditional_t<DIGITS == WHOLE, int32_t, Digit>;

// Whether its operands are pairs of int16.
template <int DIGITS>
constexpr bool PAIRS = DIGITS != WHOLE && !SLT_BYTE_DIGITS;

// Digits that hold a fixed point of so many bytes.
SLT_INLINE int digits_for(int bytes) { return SLT_BYTE_DIGITS ? bytes : 2; }

// To the nearest integer, ties to even.
SLT_INLINE S32 round_to_int(F32 v) {
#if defined(__AVX512F__)
    return (S32)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
    return (S32)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
    return (S32)_mm_cvtps_epi32((__m128)v);
#else
    S32 r;
    for (int i = 0; i < LANES; ++i) r[i] = int32_t(__builtin_lrintf(v[i]));
    return r;
#endif
}

// The largest of numbers without their signs, as integers: their order is that of the numbers, with NaN and infinity at
// the top. V: a register of such integers.
template <class V>
SLT_INLINE int32_t largest_magnitude(const char *at, int64_t count) {
    constexpr int64_t lanes = sizeof(V) / sizeof(V{}[0]);
    const auto larger = [](V a, V b) { return a > b ? a : b; };
    const V magnitude = (V{} - 1) ^ ((V{} + 1) << (8 * sizeof(V{}[0]) - 1));  // all bits but the sign
    V most = {}, rest = {};
    for (; count >= lanes; count -= lanes, at += sizeof(V)) most = larger(most, load<V>(at) & magnitude);
    memcpy(&rest, at, size_t(count) * sizeof(V{}[0]));
    most = larger(most, rest & magnitude);
    int32_t result = 0;
    for (int l = 0; l < lanes; ++l) result = most[l] > result ? most[l] : result;
    return result;
}

// From here on the bits of a float without its sign are infinity's, or a NaN's.
constexpr uint32_t NOT_FINITE = 0x7F800000;

// The largest |x|, as the bits of a float.
inline uint32_t largest_bits(const Input x, int64_t count) {
    if (x.type == Type::FLOAT32) return uint32_t(largest_magnitude<S32>(x.data, count));
    const U16 most = uint16_t(largest_magnitude<S16>(x.data, count)) - U16{};
    const F32 v = x.type == Type::BFLOAT16 ? of_bfloat16(most) : of_float16(most);
    return ((U32)v)[0];
}

// What a vector is multiplied by to become integers, and its inverse.
struct FixedPoint {
    float up, up_again;  // their product is 2^shift, which may be past the range of a float
    double power;        // 2^-shift; NaN if the vector is not finite

    FixedPoint() = default;
    FixedPoint(uint32_t largest, int bytes) {
        const bool finite = largest < NOT_FINITE;
        float m;
        memcpy(&m, &largest, 4);
        int e = 0;
        __builtin_frexp(finite ? m : 0, &e);
        int shift = 8 * bytes - 1 - e;
        const int limit = bytes == 3 ? 8355711 : 32639;  // 127 * (256^bytes - 1) / 255
        if (finite && __builtin_nearbyint(__builtin_ldexp(m, shift)) > limit) --shift;
        up = finite ? __builtin_ldexpf(1, shift / 2) : 0;  // its finite elements must not pass an int32
        up_again = __builtin_ldexpf(1, shift - shift / 2);
        power = finite ? __builtin_ldexp(1, -shift) : __builtin_nan("");
    }

    SLT_INLINE S32 operator()(F32 x) const { return round_to_int(x * up * up_again); }
};

// How the digits of a word are ordered: as their k; or as in the quads of byte weights, or of signed_constant.
enum class Layout { PLAIN, BYTE_QUADS, SIGN_QUADS };

SLT_INLINE Layout layout_of(int64_t weight) {
    return weight == SIGNED_CONSTANT ? Layout::SIGN_QUADS : Layout::BYTE_QUADS;
}

struct Order {
    alignas(64) uint8_t k[WORD];  // the k at each place
#if defined(__AVX512VBMI__)
    // Where vpermt2b finds the bytes of 32 integers in two registers: digits 0 and 1, and digit 2.
    alignas(64) uint8_t two[64], third[64];
#endif

    // `pairs`: for multiply-add of pairs.
    explicit Order(Layout layout, bool pairs) {
        for (int s = 0; s < 8; ++s)
            for (int i = 0; i < 4; ++i) {
                const int byte = pairs && layout != Layout::PLAIN ? (i % 2) * 2 + i / 2 : i;
                k[4 * s + i] = uint8_t(layout == Layout::SIGN_QUADS ? quad_k(SIGNED_CONSTANT, s, byte) : 4 * s + byte);
            }
#if defined(__AVX512VBMI__)
        for (int p = 0; p < WORD; ++p) {
            two[p] = uint8_t(4 * k[p]);
            two[WORD + p] = uint8_t(4 * k[p] + 1);
            third[p] = third[WORD + p] = uint8_t(4 * k[p] + 2);
        }
#endif
    }
};

// The balanced digits of integers, as the bytes of each: adding 128 to every digit makes them unsigned, and inverting the
// top bit subtracts it again.
template <int DIGITS>
SLT_INLINE U32 balanced_bytes(U32 x) {
    constexpr uint32_t each = DIGITS == 3 ? 0x808080 : 0x8080;
    return (x + each) ^ each;
}

// The digits of 32 integers, with `pitch` of them from one digit's plane to the next; returns the integers' sum, which
// nobody needs where weights are signed.
template <int DIGITS>
SLT_INLINE int64_t write_word(const int32_t x[WORD], const Order &order, DigitOf<DIGITS> *out, int64_t pitch) {
    if constexpr (DIGITS == WHOLE) {
        for (int p = 0; p < WORD; ++p) out[p] = x[order.k[p]];
        return 0;
    }
    int64_t sum = 0;
    if constexpr (!SIGNED_BYTES)
        for (int i = 0; i < WORD; ++i) sum += x[i];
#if defined(__AVX512VBMI__)
    const __m512i a = (__m512i)balanced_bytes<DIGITS>(load<U32>(x));
    const __m512i b = (__m512i)balanced_bytes<DIGITS>(load<U32>(x + 16));
    const __m512i low = _mm512_permutex2var_epi8(a, load<__m512i>(order.two), b);
    store(out, _mm512_castsi512_si256(low));
    store(out + pitch, _mm512_extracti64x4_epi64(low, 1));
    if (DIGITS == 3)
        store(out + 2 * pitch,
              _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, load<__m512i>(order.third), b)));
#else
    constexpr int32_t half = 1 << (DIGIT_BITS - 1);
    for (int p = 0; p < WORD; ++p) {
        int32_t rest = x[order.k[p]];
        for (int d = 0; d < DIGITS; ++d) {
            const int32_t digit = ((rest + half) & (2 * half - 1)) - half;
            out[d * pitch + p] = Digit(digit);
            rest = (rest - digit) >> DIGIT_BITS;
        }
    }
#endif
    return sum;
}

// A vector in digits: DIGITS planes of `pitch` digits; x stands at [skipped, skipped + count), zeros around it up to
// `padded`, a multiple of 32. Returns the sum of its integers.
template <int DIGITS>
inline int64_t write_vector(const Input x, int64_t count, int64_t skipped, int64_t padded, const FixedPoint &fixed,
                            const Order &order, DigitOf<DIGITS> *out, int64_t pitch) {
    int64_t sum = 0;
    for (int64_t at = 0; at < padded; at += WORD) {
        alignas(64) int32_t integers[WORD];
        F32 v[WORD / LANES] = {};
        const int64_t k = at - skipped;  // both are multiples of 32
        if (k >= 0 && k + WORD <= count) {
            read_floats(x + k, v);
        } else if (k >= 0 && k < count) {
            float part[WORD] = {};
            read_floats(x + k, count - k, part);
            memcpy(v, part, sizeof v);
        }
        for (int i = 0; i < WORD / LANES; ++i) store(integers + i * LANES, fixed(v[i]));
        sum += write_word<DIGITS>(integers, order, out + at, pitch);
    }
    return sum;
}

}  // namespace
}  // namespace slt::SLT_ISA
