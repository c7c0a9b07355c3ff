// Clear: zeros, for what other launches add to.
#include "cuda/arguments.h"

namespace slt::cuda {

extern "C" __global__ void __launch_bounds__(256) slt_clear(const __grid_constant__ Clear a) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (at < a.count) a.words[at] = 0;
}

}  // namespace slt::cuda
