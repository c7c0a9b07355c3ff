// Linear's forward for few vectors by bit planes: signed weights, up to 64 planes. For tensor cores that multiply bits.
#include "cuda/forward_small.h"

namespace slt::cuda {

#define SLT_KERNEL(PLANES, VECTORS, FORM, WORDS)                                                                       \
    extern "C" __global__ void __launch_bounds__(4 * GROUP_THREADS, 1)                                                 \
        slt_forward_small_bits_##PLANES##_##VECTORS##FORM(const __grid_constant__ ForwardSmall a) {                    \
        forward_small<SignBits<PLANES / 8, VECTORS>, WORDS, 4>(a);                                                     \
    }
#define SLT_KERNELS(PLANES, VECTORS)                                                                                   \
    SLT_KERNEL(PLANES, VECTORS, , ResolvedWords)                                                                       \
    SLT_KERNEL(PLANES, VECTORS, _compact, CompactWords)

SLT_KERNELS(16, 1)
SLT_KERNELS(16, 2)
SLT_KERNELS(16, 4)
SLT_KERNELS(24, 1)
SLT_KERNELS(24, 2)

}  // namespace slt::cuda
