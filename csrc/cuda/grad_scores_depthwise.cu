// The scores' gradient of convolutions with one channel per group: each weight is a tap, and a product on tensor cores
// would compute far more than is used.
#include "cuda/floats.h"
#include "cuda/grad_scores_epilogue.h"

namespace slt::cuda {

constexpr int DEPTHWISE_THREADS = 256, DEPTHWISE_WARPS = DEPTHWISE_THREADS / 32, TAPS = 9;

// A block sums 32 rows and up to 9 taps over one part of the columns, which its warps share. A lane has a row, as rows
// and channels follow each other in memory.
template <class T>
__device__ __forceinline__ void depthwise(const GradScores &a) {
    __shared__ float sums[DEPTHWISE_WARPS][TAPS][32];
    const Generator &g = a.generator;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t b = blockIdx.x;
    const uint32_t row = b % a.row_tiles * 32 + lane;
    b /= a.row_tiles;
    const int fan = int(g.source.fan), groups_of_taps = (fan + TAPS - 1) / TAPS;
    const int first_tap = int(b % groups_of_taps) * TAPS;
    const uint32_t part = b / groups_of_taps;
    const int begin = int(part) * a.part_columns, end = min(begin + a.part_columns, a.columns);

    const bool exists = row < g.rows;
    const T *dy = static_cast<const T *>(a.dy) + (exists ? row : 0);
    const char *x = reinterpret_cast<const char *>(static_cast<const T *>(a.x) + (exists ? row / a.group_rows : 0));
    const int pitch = a.x_pitch * int(sizeof(T));
    Tap taps[TAPS];
    float sum[TAPS];
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        taps[t] = tap_of(a.image, first_tap + t);
        if (first_tap + t >= fan) taps[t].down = a.image.height + a.image.padding_h;  // outside, wherever it is added
        sum[t] = 0;
    }
    for (int beside = begin + warp; beside < end; beside += 32 * DEPTHWISE_WARPS) {
        const Origin own = origin_of(a.image, beside + lane * DEPTHWISE_WARPS);  // of one of 32 columns
        const int count = min(32, (end - beside + DEPTHWISE_WARPS - 1) / DEPTHWISE_WARPS);
#pragma unroll 2
        for (int i = 0; i < count; ++i) {
            const Origin origin{__shfl_sync(0xFFFFFFFF, own.y, i), __shfl_sync(0xFFFFFFFF, own.x, i),
                                __shfl_sync(0xFFFFFFFF, own.number, i)};
            const float grad = widened(dy[int64_t(beside + i * DEPTHWISE_WARPS) * a.dy_pitch]);
            const char *from = x + int64_t(origin.number) * pitch;
            T value[TAPS];
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                value[t] = T(0.0f);
                if (inside(a.image, origin, taps[t]))
                    value[t] = *reinterpret_cast<const T *>(from + int64_t(taps[t].number) * pitch);
            }
#pragma unroll
            for (int t = 0; t < TAPS; ++t) sum[t] = __fmaf_rn(grad, widened(value[t]), sum[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < TAPS; ++t) sums[warp][t][lane] = sum[t];
    __syncthreads();
    for (int t = warp; t < TAPS && first_tap + t < fan; t += DEPTHWISE_WARPS) {
        float total = sums[0][t][lane];
#pragma unroll
        for (int w = 1; w < DEPTHWISE_WARPS; ++w) total += sums[w][t][lane];
        const int at = g.skipped * int(WORD) + first_tap + t;
        if (exists) reinterpret_cast<float *>(part_of(a, part, row, 0))[at] = total;
    }
}

#define SLT_DEPTHWISE(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(DEPTHWISE_THREADS)                                                    \
        slt_grad_scores_depthwise_##NAME(const __grid_constant__ GradScores a) {                                       \
        depthwise<T>(a);                                                                                               \
    }

SLT_DEPTHWISE(float32, float)
SLT_DEPTHWISE(bfloat16, __nv_bfloat16)
SLT_DEPTHWISE(float16, __half)

}  // namespace slt::cuda
