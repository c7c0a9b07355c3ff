// Linear's forward for few vectors by bit planes: signed weights, up to 64 planes. For tensor cores that multiply bits.
#include "cuda/forward_small.h"

namespace slt::cuda {

#define SLT_KERNEL(PLANES, VECTORS)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        slt_forward_small_bits_##PLANES##_##VECTORS(const __grid_constant__ ForwardSmall a) {                          \
        forward_small<SignBits<PLANES / 8, VECTORS>, Resolved>(a);                                                     \
    }

SLT_KERNEL(16, 1)
SLT_KERNEL(16, 2)
SLT_KERNEL(16, 4)
SLT_KERNEL(24, 1)
SLT_KERNEL(24, 2)

}  // namespace slt::cuda
