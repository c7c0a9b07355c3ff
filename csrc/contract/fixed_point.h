// Section 7 of the contract (docs/contract.md): fixed point of `digits` balanced base-256 digits, and the rounding of
// exact sums. No function of a mathematics library is used, so host and device have the same bits. Compile without
// contraction of multiplications and additions, and under the default floating-point control.
#pragma once

#include "contract/scores.h"

namespace slt {

// 2^e, for e from -1022 to 1023.
SLT_HOST_DEVICE double power_of_two(int e) { return __builtin_bit_cast(double, uint64_t(e + 1023) << 52); }

// To the nearest integer, ties to even; |x| < 2^31. The sum has no bits left for a fraction.
SLT_HOST_DEVICE int32_t round_to_even(float x) { return int32_t(x + 0x1.8p52 - 0x1.8p52); }

// e of the contract, before it is raised: 2^(e-1) <= m < 2^e, for the bits of a finite m >= 0; 0 for m = 0.
SLT_HOST_DEVICE int exponent_above(uint32_t m) {
    if (m == 0) return 0;
    if (m >> 23) return int(m >> 23) - 126;
    int e = -149;  // denormal: m * 2^-149
    for (; m; m >>= 1) ++e;
    return e;
}

// What the elements of a vector are multiplied by to become integers, and the inverse.
struct FixedPoint {
    float up, up_again;  // their product is 2^shift, which may be outside the range of a float
    double power;        // 2^-shift; NaN if the vector is not finite
};

// `largest`: the largest |x| of the vector, as bits.
SLT_HOST_DEVICE FixedPoint fixed_point(uint32_t largest, int digits) {
    const bool finite = largest < INFINITE;
    const uint32_t m = finite ? largest : 0;
    int shift = 8 * digits - 1 - exponent_above(m);
    const int limit = digits == 3 ? 8355711 : 32639;  // L = 127 (256^digits - 1) / 255, odd: L + 1/2 rounds to L + 1
    if (__builtin_bit_cast(float, m) * power_of_two(shift) >= limit + 0.5) --shift;
    return {finite ? float(power_of_two(shift / 2)) : 0,  // 0: finite elements beside infinity must fit an int32
            float(power_of_two(shift - shift / 2)),
            finite ? power_of_two(-shift) : __builtin_bit_cast(double, uint64_t(0x7FF8000000000000))};
}

// X of an element.
SLT_HOST_DEVICE int32_t fixed_integer(const FixedPoint &fixed, float x) {
    return round_to_even(x * fixed.up * fixed.up_again);
}

// The balanced digits of X, a byte each, the lowest first: adding 128 to every digit makes them unsigned, and inverting
// the top bit subtracts it again. `Words`: uint32_t, or a vector of it.
template <int DIGITS, class Words>
SLT_HOST_DEVICE Words balanced_digits(Words x) {
    constexpr uint32_t halves = DIGITS == 3 ? 0x808080 : 0x8080;
    return (x + halves) ^ halves;
}

// y of a sum without a bias. `Sum`: int64_t, or a double that holds the sum exactly.
template <class Sum>
SLT_HOST_DEVICE float rounded_sum(Sum sum, double power, float scale) {
    return float(double(float(sum)) * power) * scale;
}

}  // namespace slt
