#include "cuda/depthwise.h"

namespace slt::cuda {

#define SLT_DEPTHWISE(NAME, T, SUM) \
    extern "C" __global__ void __launch_bounds__(NARROW_THREADS) \
        slt_depthwise_##NAME(const __grid_constant__ Depthwise a) { \
        convolve_narrow<T, SUM>(a); \
    }

SLT_DEPTHWISE(int32, float, int32_t)
SLT_DEPTHWISE(int64, float, int64_t)
SLT_DEPTHWISE(bfloat16, __nv_bfloat16, float)
SLT_DEPTHWISE(float16, __half, float)

}  // namespace slt::cuda
