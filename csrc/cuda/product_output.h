// The output of a product: sums to y, as section 7 of the contract has it for digits, and where it goes.
#pragma once

#include "cuda/planes.h"

#include <type_traits>

namespace slt::cuda {

// In the place of the type of y: it is an argument, one of all or of those of 16 bits.
constexpr int ANY_ELEMENT = -1, ANY_16_BITS = -2;

// Calls function(element) with the type of y as a constant, or ANY_16_BITS: it is ELEMENT, if that is one type.
template <int ELEMENT, class Function>
__device__ __forceinline__ void with_element(const Product &a, Function function) {
    if constexpr (ELEMENT != ANY_ELEMENT)
        function(std::integral_constant<int, ELEMENT>());
    else if (a.element == FLOAT32)
        function(std::integral_constant<int, FLOAT32>());
    else
        function(std::integral_constant<int, ANY_16_BITS>());
}

// What sums are multiplied by: the unit of the column's image, and the scale of the weights.
struct Factors {
    float2 power;
    float scale;
};

// The factors of a column. Signed weights were multiplied as 2 v by floats, and as 2^6 v by digits.
template <class Sum>
__device__ __forceinline__ Factors factors_of(const Product &a, uint32_t column) {
    if constexpr (std::is_same_v<Sum, float>) {
        return {make_float2(1, 1), *a.scale * 0.5f};
    } else {
        float2 power = __ldg(reinterpret_cast<const float2 *>(a.power) + column / a.pixels);
        if (a.generator.source.weight == SIGNED_CONSTANT) power.x *= 0x1p-6f;
        return {power, *a.scale};
    }
}

// y of an exact sum that was rounded to a float: a power of two in two factors is applied as one, since only the second
// product can round.
__device__ __forceinline__ float output_of_rounded(float sum, const Factors &by, float bias) {
    const float y = __fmul_rn(__fmul_rn(sum, by.power.x), by.power.y);
    return __fadd_rn(__fmul_rn(y, by.scale), bias);
}

__device__ __forceinline__ float output_of(int64_t sum, const Factors &by, float bias) {
    return output_of_rounded(__ll2float_rn(sum), by, bias);
}
__device__ __forceinline__ float output_of(int32_t sum, const Factors &by, float bias) {
    return output_of_rounded(__int2float_rn(sum), by, bias);
}
__device__ __forceinline__ float output_of(float sum, const Factors &by, float bias) {
    return __fmaf_rn(sum, by.scale, bias);
}

// The bias of a row; where there is none, what changes no number.
template <class Arguments>
__device__ __forceinline__ float bias_of(const Arguments &a, uint32_t row) {
    return a.bias == nullptr ? -0.0f : __ldg(a.bias + row);
}

// Where row 0 of a column of y is.
__device__ __forceinline__ int64_t output_place(const Product &a, uint32_t column) {
    const uint32_t image = column / a.pixels;
    return image * a.y_image + (column - image * a.pixels.number) * a.y_pixel;
}

// Two values rounded to a type of 16 bits, the first in the lower half.
template <int ELEMENT>
__device__ __forceinline__ uint32_t two_elements(const Product &a, float low, float high) {
    uint32_t both;
    if (ELEMENT == BFLOAT16 || (ELEMENT == ANY_16_BITS && a.element == BFLOAT16))
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

template <int ELEMENT>
__device__ __forceinline__ void store_element(const Product &a, void *y, int64_t at, float value) {
    if constexpr (ELEMENT == FLOAT32)
        static_cast<float *>(y)[at] = value;
    else
        static_cast<uint16_t *>(y)[at] = uint16_t(two_elements<ELEMENT>(a, value, value));
}

}  // namespace slt::cuda
