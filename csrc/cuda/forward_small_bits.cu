// Linear's forward for few vectors by bit planes: signed weights, up to 64 planes. For tensor cores that multiply bits:
// built for sm_80 and sm_90a only.
#include "cuda/forward_small.h"

namespace slt::cuda {

#define SLT_KERNEL(PLANES, VECTORS, GROUPS, FORM, WORDS) \
    extern "C" __global__ void __launch_bounds__(GROUPS *GROUP_THREADS, 1) \
        slt_forward_small_bits_##PLANES##_##VECTORS##FORM(const __grid_constant__ ForwardSmall a) { \
        if constexpr (BIT_PRODUCTS) forward_small<SignBits<PLANES / 8, VECTORS>, WORDS, GROUPS>(a); \
    }
#define SLT_KERNELS(PLANES, VECTORS, GROUPS, AHEAD) \
    SLT_KERNEL(PLANES, VECTORS, GROUPS, , ResolvedWords<AHEAD>) \
    SLT_KERNEL(PLANES, VECTORS, GROUPS, _compact, CompactWords)

SLT_KERNELS(16, 1, 4, 2)
SLT_KERNELS(16, 2, 4, 2)
SLT_KERNELS(16, 4, FEWER_GROUPS, 1)
SLT_KERNELS(24, 1, 4, 2)
SLT_KERNELS(24, 2, 4, 1)

}  // namespace slt::cuda
