// The output of grad_input: sums to dx, as section 7 of the contract has it for digits, and where it goes.
#pragma once

#include "cuda/grad_input_weights.h"

namespace slt::cuda {

// Where channel 0 of a column of dx is, and the unit of its image.
struct GradColumn {
    int64_t at;
    float2 power;  // two factors

    __device__ __forceinline__ GradColumn(const GradInput &a, uint32_t column) {
        const uint32_t image = column / a.pixels;
        at = image * a.dx_image + (column - image * a.pixels.number) * a.dx_pixel;
        power = a.power == nullptr ? make_float2(1, 1) : __ldg(reinterpret_cast<const float2 *>(a.power) + image);
    }
};

// dx of a sum, rounded to a float. A power of two in two factors is applied as one, since only the second can round.
__device__ __forceinline__ float grad_of(float sum, const GradColumn &column, float scale) {
    return __fmul_rn(__fmul_rn(__fmul_rn(sum, column.power.x), column.power.y), scale);
}

// Two values in the type of dx, of 16 bits, the first in the lower half.
__device__ __forceinline__ uint32_t two_halves(const GradInput &a, float low, float high) {
    uint32_t both;
    if (a.element == BFLOAT16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ void store_grad(const GradInput &a, int64_t at, float value) {
    if (a.element == FLOAT32)
        static_cast<float *>(a.dx)[at] = value;
    else
        static_cast<uint16_t *>(a.dx)[at] = uint16_t(two_halves(a, value, value));
}

// Of four channels that follow each other in memory, the first at a multiple of four.
__device__ __forceinline__ void store_quad(const GradInput &a, int64_t at, const float (&v)[4]) {
    if (a.element == FLOAT32)
        static_cast<float4 *>(a.dx)[at / 4] = make_float4(v[0], v[1], v[2], v[3]);
    else
        static_cast<uint2 *>(a.dx)[at / 4] = make_uint2(two_halves(a, v[0], v[1]), two_halves(a, v[2], v[3]));
}

// The sums of a tile's part [columns, all_channels].
template <class Total>
__device__ __forceinline__ Total *part_of(const GradInput &a, const GradTile &tile) {
    return static_cast<Total *>(a.sums) + uint64_t(tile.part) * a.columns * a.all_channels;
}

// The sums of channels k and k + APART of a tile, among those of its part.
template <int APART, class Total>
__device__ __forceinline__ void store_sums(const GradInput &a, const GradTile &tile, Total *part, int column, int k,
                                           Total first, Total second) {
    const uint32_t number = tile.column + column, channel = tile.first + k;
    if (number >= a.columns) return;
    Total *at = part + uint64_t(number) * a.all_channels + tile.group * a.channels + channel;
    if (channel < a.channels) at[0] = first;  // not before the first channel either
    if (channel + APART < a.channels) at[APART] = second;
}

// The sums of k and k + APART in shared memory, as a column of floats.
template <int APART, class Total>
__device__ __forceinline__ void keep_sums(float *column, int k, Total first, Total second) {
    if constexpr (APART == 1) {
        *reinterpret_cast<float2 *>(column + k) = make_float2(float(first), float(second));
    } else {
        column[k] = float(first);
        column[k + APART] = float(second);
    }
}

// The distance in a tile of column c of those that are stored, every other RUN.
template <int COLUMNS, int RUN>
__device__ __forceinline__ int tile_column(int c) {
    return RUN == COLUMNS ? c : c + c / RUN * RUN;
}

// Sums of some columns of a tile, in shared memory, to dx, so that neighbouring threads write neighbouring elements.
// `grads` [COLUMNS, K + 4]: RUN columns of the tile from `first` on, and then every other RUN. `thread`: of
// GRAD_THREADS.
template <int K, int COLUMNS, int RUN>
__device__ __forceinline__ void store_grads(const GradInput &a, const GradTile &tile, int first, const float *grads,
                                            uint32_t thread) {
    constexpr int PITCH = K + 4;
    const float scale = *a.scale;
    const uint32_t channels = tile.group * a.channels, begin = tile.column + first;  // channels before the group
    if (a.dx_channel == 1) {
        const int k = thread % (K / 4) * 4;
#pragma unroll 1
        for (int c = thread / (K / 4); c < COLUMNS; c += GRAD_THREADS / (K / 4)) {
            const uint32_t channel = tile.first + k, number = begin + tile_column<COLUMNS, RUN>(c);
            if (number >= a.columns) break;
            const GradColumn column(a, number);
            const float4 sum = *reinterpret_cast<const float4 *>(grads + c * PITCH + k);
            const float v[4] = {grad_of(sum.x, column, scale), grad_of(sum.y, column, scale),
                                grad_of(sum.z, column, scale), grad_of(sum.w, column, scale)};
            const int64_t at = column.at + channels + channel;
            if (a.quads) {
                if (channel < a.channels) store_quad(a, at, v);
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (channel + i < a.channels) store_grad(a, at + i, v[i]);
            }
        }
    } else {
        const int c = thread % COLUMNS;
        const uint32_t number = begin + tile_column<COLUMNS, RUN>(c);
        if (number >= a.columns) return;
        const GradColumn column(a, number);
#pragma unroll 4
        for (int k = thread / COLUMNS; k < K; k += GRAD_THREADS / COLUMNS) {
            const uint32_t channel = tile.first + k;
            if (channel < a.channels)
                store_grad(a, column.at + (channels + channel) * a.dx_channel,
                           grad_of(grads[c * PITCH + k], column, scale));
        }
    }
}

// Adds the sums of the parts, in their order: a thread a channel of a column.
template <class Sum>
__device__ __forceinline__ void add_grad_parts(const GradInput &a) {
    const uint32_t blocks = uint32_t(ceil_div(a.all_channels, GRAD_THREADS)), column = blockIdx.x / blocks;
    const uint32_t channel = blockIdx.x % blocks * GRAD_THREADS + threadIdx.x;
    if (channel >= a.all_channels) return;
    const Sum *from = static_cast<const Sum *>(a.sums) + uint64_t(column) * a.all_channels + channel;
    Sum sum = 0;
    for (uint32_t i = 0; i < a.parts; ++i) sum += from[i * uint64_t(a.columns) * a.all_channels];
    const GradColumn to(a, column);
    store_grad(a, to.at + channel * a.dx_channel, grad_of(float(sum), to, *a.scale));
}

}  // namespace slt::cuda
