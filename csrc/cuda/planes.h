// The second operand of a product of integer weights and x in fixed point (docs/contract.md, section 7), in shared
// memory.
//
// k goes in steps of 4 calls of Philox, 512 weights: thread t of the four of a row makes call t of a step. The operand
// is of matrices of 8 columns of 16 bytes. A matrix holds 4 bytes for each of the four calls: a word of 32 k of a bit
// plane, or a digit each of 4 k. A warp converts one step of one vector; its lane l has k 4 l to 4 l + 3 of each call.
#pragma once

#include "contract/fixed_point.h"
#include "cuda/arguments.h"
#include "cuda/ptx.h"

namespace slt::cuda {

constexpr int STEP_CALLS = 4, STEP = STEP_CALLS * int(CALL);

__device__ __forceinline__ float float_of(uint32_t bits, int element) {
    if (element == BFLOAT16) return __uint_as_float(bits << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(bits)));
    return value;
}

// One step's elements of a vector that a lane converts, 4 of each call; 0 outside the vector.
__device__ __forceinline__ void load_step(float (&out)[STEP_CALLS][4], const ForwardSmall &a, int vector, int step,
                                          int lane) {
    const bool wide = a.element == FLOAT32;
    const char *x = static_cast<const char *>(a.x) + int64_t(vector) * a.pitch * (wide ? 4 : 2);
    const int first = step * STEP + lane * 4 - a.generator.skipped * int(WORD);
    uint4 raw[STEP_CALLS];
#pragma unroll
    for (int t = 0; t < STEP_CALLS; ++t) {
        const int k = first + t * int(CALL);
        raw[t] = make_uint4(0, 0, 0, 0);
        if (uint32_t(k) >= uint32_t(a.pitch)) continue;
        if (wide) {
            raw[t] = __ldg(reinterpret_cast<const uint4 *>(x + 4 * k));
        } else {
            const uint2 half = __ldg(reinterpret_cast<const uint2 *>(x + 2 * k));
            raw[t].x = half.x, raw[t].y = half.y;
        }
    }
#pragma unroll
    for (int t = 0; t < STEP_CALLS; ++t) {
        const uint32_t word[4] = {raw[t].x, raw[t].y, raw[t].z, raw[t].w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
            out[t][i] = wide ? __uint_as_float(word[i]) : float_of(word[i / 2] >> i % 2 * 16 & 0xFFFF, a.element);
    }
}

// The largest magnitude, as bits, of a warp's elements.
__device__ __forceinline__ uint32_t largest_of(const float (&x)[STEP_CALLS][4]) {
    uint32_t largest = 0;
#pragma unroll
    for (int t = 0; t < STEP_CALLS; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(x[t][i]) & MAGNITUDE);
    return __reduce_max_sync(0xFFFFFFFF, largest);
}

// X of an element, by the rounding of a conversion, which is to even as the contract's.
__device__ __forceinline__ uint32_t integer_of(float x, float2 up) { return uint32_t(__float2int_rn(x * up.x * up.y)); }

// Where the 16 bytes of a column are inside the matrices of one place in k.
__device__ __forceinline__ uint32_t column_offset(int column) { return column / 8 * 128 + column % 8 * 16; }

// Bit planes: TILES * 8 of them per vector. The bits of the lanes' elements are transposed: each bit of k is exchanged
// with one of the plane's number. Bit 0 of k comes to bit 4 of the place in a word, and 1 to 4 come to 0 to 3, as in a
// word of the mask; so lane l % 8 has planes with l % 8 in bits 1 to 3 of their number. Where column c of a vector has
// the bit of plane_shift.
template <int TILES, int LEAD>
struct PlaneOrder {
    static constexpr int STEP_BYTES = 4 * LEAD;

    static __device__ __forceinline__ void write(const float (&x)[STEP_CALLS][4], float2 up, int b, int, int lane,
                                                 uint32_t operand) {
        constexpr int HALVES = TILES == 3 ? 2 : 1;  // of 16 planes
        uint32_t planes[HALVES][2][STEP_CALLS];
#pragma unroll
        for (int t = 0; t < STEP_CALLS; ++t) {
            uint32_t v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = integer_of(x[t][i], up);
#pragma unroll
            for (int half = 0; half < HALVES; ++half) {
                uint32_t w[2] = {bytes_of(v[0], v[1], half ? 0x7632 : 0x5410),
                                 bytes_of(v[2], v[3], half ? 0x7632 : 0x5410)};
                const uint32_t differ = (w[0] >> 1 ^ w[1]) & 0x55555555;
                w[1] ^= differ;
                w[0] ^= differ << 1;
#pragma unroll
                for (int i = 0; i < 3; ++i) {  // lane bit i, and bit i + 1 of the place
                    constexpr uint32_t low[3] = {0x33333333, 0x0F0F0F0F, 0x00FF00FF};
                    const bool upper = lane >> i & 1;
                    const uint32_t own = upper ? ~low[i] : low[i];
                    const int shift = 2 << i, turn = upper ? 32 - shift : shift;
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const uint32_t other = __shfl_xor_sync(0xFFFFFFFF, w[r], 1 << i);
                        w[r] = (w[r] & own) | (__funnelshift_l(other, other, turn) & ~own);
                    }
                }
                planes[half][0][t] = w[0];
                planes[half][1][t] = w[1];
            }
        }
        operand += lane / 8 * LEAD + b * TILES * 128;
        const int l = lane % 8;
        store_16_bytes(operand + l * 16, planes[0][0]);
        store_16_bytes(operand + 128 + l * 16, planes[0][1]);
        if constexpr (HALVES == 2) {
            if (l < 4) {
                store_16_bytes(operand + 256 + l * 16, planes[1][0]);
                store_16_bytes(operand + 256 + 64 + l * 16, planes[1][1]);
            }
        }
    }
};

// How far the sums of columns 2 t and 2 t + 1 of a tile of planes are shifted: c(2 t) + 4 c(2 t + 1), left by this.
__device__ __forceinline__ int plane_shift(int tile, int t) {
    return tile == 2 ? 16 + t / 2 + t % 2 * 4 : 4 * t + tile;
}

// Digits: 2 columns of a vector for two digits, 4 for three, the last of which is not used. BYTES: byte i of matrix
// 8 w + m holds k = 32 w + 4 m + i of a call, as bytes of VALUE are. Otherwise it holds 32 w + k_of_bit(m + 8 i), as
// the fields of coded words: 2 m, 2 m + 16 and the k after each.
template <bool BYTES, int LEAD>
struct DigitOrder {
    static constexpr int STEP_BYTES = 32 * LEAD;

    static __device__ __forceinline__ void write(const float (&x)[STEP_CALLS][4], float2 up, int b, int digits,
                                                 int lane, uint32_t operand) {
        const int l = lane % 8, m = BYTES ? l : l < 4 ? 2 * l : 2 * l - 7;
        uint32_t out[3][STEP_CALLS];
#pragma unroll
        for (int t = 0; t < STEP_CALLS; ++t) {
            uint32_t v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                v[i] = integer_of(x[t][i], up);
                v[i] = digits == 3 ? balanced_digits<3>(v[i]) : balanced_digits<2>(v[i]);
            }
            if constexpr (!BYTES) {  // lanes l and l + 4 exchange the pairs that belong to the other's matrix
                const bool upper = l >= 4;
                const uint32_t own[2] = {upper ? v[2] : v[0], upper ? v[3] : v[1]};
                const uint32_t got[2] = {__shfl_xor_sync(0xFFFFFFFF, upper ? v[0] : v[2], 4),
                                         __shfl_xor_sync(0xFFFFFFFF, upper ? v[1] : v[3], 4)};
                v[0] = upper ? got[0] : own[0];
                v[1] = upper ? own[0] : got[0];
                v[2] = upper ? got[1] : own[1];
                v[3] = upper ? own[1] : got[1];
            }
            const uint32_t low = bytes_of(v[0], v[1], 0x5140), high = bytes_of(v[2], v[3], 0x5140);
            out[0][t] = bytes_of(low, high, 0x5410);
            out[1][t] = bytes_of(low, high, 0x7632);
            out[2][t] = bytes_of(bytes_of(v[0], v[1], 0x0062), bytes_of(v[2], v[3], 0x0062), 0x5410);
        }
        operand += (lane / 8 * 8 + m) * LEAD;
        const int column = b * (digits == 3 ? 4 : 2);
        store_16_bytes(operand + column_offset(column), out[0]);
        store_16_bytes(operand + column_offset(column + 1), out[1]);
        if (digits == 3) store_16_bytes(operand + column_offset(column + 2), out[2]);
    }
};

}  // namespace slt::cuda
