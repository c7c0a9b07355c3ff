// Vectors to fixed point (section 7 of the contract), for products by digits. A block converts a piece of one vector.
#include "cuda/planes.h"

#include <cmath>

namespace slt::cuda {

constexpr int DIGIT_THREADS = 256, RUN = 16;  // a thread converts RUN elements at once

// The elements from `first` on; 0 past the end of the vector.
__device__ __forceinline__ void load_run(float (&out)[RUN], const Digits &a, uint32_t vector, int64_t first) {
    const bool wide = a.element == FLOAT32;
    const char *x = static_cast<const char *>(a.x) + (vector * a.length + first) * (wide ? 4 : 2);
    uint32_t word[RUN] = {};
    if (a.aligned) {
        const uint4 *from = reinterpret_cast<const uint4 *>(x);
#pragma unroll
        for (int i = 0; i < RUN; i += 4) {
            if (first >= a.length || (!wide && i >= 8)) continue;
            const uint4 v = __ldg(from + i / 4);
            word[i] = v.x, word[i + 1] = v.y, word[i + 2] = v.z, word[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            if (first + i >= a.length) continue;
            if (wide)
                word[i] = __ldg(reinterpret_cast<const uint32_t *>(x) + i);
            else
                word[i / 2] |= uint32_t(__ldg(reinterpret_cast<const uint16_t *>(x) + i)) << i % 2 * 16;
        }
    }
#pragma unroll
    for (int i = 0; i < RUN; ++i)
        out[i] = wide ? __uint_as_float(word[i]) : float_of(word[i / 2] >> i % 2 * 16 & 0xFFFF, a.element);
}

// The largest of the values of a block's threads, in all of them.
__device__ __forceinline__ uint32_t block_largest(uint32_t value) {
    __shared__ uint32_t largest[DIGIT_THREADS / 32];
    value = __reduce_max_sync(0xFFFFFFFF, value);
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < DIGIT_THREADS / 32; ++i) value = max(value, largest[i]);
    return value;
}

// The largest magnitude, as bits, of a block's piece.
__device__ __forceinline__ uint32_t piece_largest(const Digits &a, uint32_t vector, int64_t first, int64_t end) {
    uint32_t largest = 0;
#pragma unroll 1
    for (int64_t at = first + threadIdx.x * RUN; at < end; at += DIGIT_THREADS * RUN) {
        float x[RUN];
        load_run(x, a, vector, at);
#pragma unroll
        for (int i = 0; i < RUN; ++i) largest = max(largest, __float_as_uint(x[i]) & MAGNITUDE);
    }
    return block_largest(largest);
}

// Where there are several pieces per vector, this comes first.
extern "C" __global__ void __launch_bounds__(DIGIT_THREADS) slt_digits_largest(const __grid_constant__ Digits a) {
    const uint32_t vector = blockIdx.x / a.pieces, piece = blockIdx.x - vector * a.pieces.number;
    const int64_t first = int64_t(piece) * Digits::PIECE;
    const uint32_t largest = piece_largest(a, vector, first, least(first + Digits::PIECE, a.length));
    if (threadIdx.x == 0) a.largest[blockIdx.x] = largest;
}

extern "C" __global__ void __launch_bounds__(DIGIT_THREADS) slt_digits(const __grid_constant__ Digits a) {
    const uint32_t vector = blockIdx.x / a.pieces, piece = blockIdx.x - vector * a.pieces.number;
    const int64_t first = int64_t(piece) * Digits::PIECE, end = least(first + Digits::PIECE, a.pitch);
    uint32_t largest = 0;
    if (a.pieces.number == 1) {
        largest = piece_largest(a, vector, first, least(end, a.length));
    } else {
        for (uint32_t i = threadIdx.x; i < a.pieces.number; i += DIGIT_THREADS)
            largest = max(largest, a.largest[uint64_t(vector) * a.pieces.number + i]);
        largest = block_largest(largest);
    }
    const FixedPoint fixed = fixed_point(largest, a.planes);
    const float2 up = make_float2(fixed.up, fixed.up_again);  // powers of two
    if (piece == 0 && threadIdx.x == 0)
        reinterpret_cast<float2 *>(a.power)[vector] =
            up.x == 0 ? make_float2(NAN, NAN) : make_float2(__frcp_rn(up.x), __frcp_rn(up.y));
#pragma unroll 1
    for (int64_t at = first + threadIdx.x * RUN; at < end; at += DIGIT_THREADS * RUN) {
        float x[RUN];
        load_run(x, a, vector, at);
        uint32_t plane[3][RUN / 4];
#pragma unroll
        for (int i = 0; i < RUN; i += 4) {
            uint32_t v[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t integer = integer_of(x[i + j], up);
                v[j] = a.planes == 3 ? balanced_digits<3>(integer) : balanced_digits<2>(integer);
            }
            const uint32_t low = bytes_of(v[0], v[1], 0x5140), high = bytes_of(v[2], v[3], 0x5140);
            plane[0][i / 4] = bytes_of(low, high, 0x5410);
            plane[1][i / 4] = bytes_of(low, high, 0x7632);
            plane[2][i / 4] = bytes_of(bytes_of(v[0], v[1], 0x0062), bytes_of(v[2], v[3], 0x0062), 0x5410);
        }
        int8_t *to = a.digits + vector * a.pitch + at;
#pragma unroll
        for (int d = 0; d < 3; ++d) {
            const uint4 run = make_uint4(plane[d][0], plane[d][1], plane[d][2], plane[d][3]);
            if (d < a.planes) *reinterpret_cast<uint4 *>(to + d * a.plane) = run;
        }
    }
}

}  // namespace slt::cuda
