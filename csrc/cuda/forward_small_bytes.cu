// Linear's forward for few vectors by digits: weights that are bytes, up to 128 columns of digits.
#include "cuda/forward_small.h"

namespace slt::cuda {

#define SLT_KERNEL(COLUMNS, GROUPS, FORM, WORDS)                                                                       \
    extern "C" __global__ void __launch_bounds__(GROUPS * GROUP_THREADS, 1)                                            \
        slt_forward_small_bytes_##COLUMNS##FORM(const __grid_constant__ ForwardSmall a) {                              \
        forward_small<ByteDigits<COLUMNS>, WORDS, GROUPS>(a);                                                          \
    }
#define SLT_KERNELS(COLUMNS)                                                                                           \
    SLT_KERNEL(COLUMNS, 4, , ResolvedWords)                                                                            \
    SLT_KERNEL(COLUMNS, 4, _compact, CompactWords)

SLT_KERNELS(8)
SLT_KERNELS(16)
SLT_KERNELS(32)
SLT_KERNEL(64, 4, , ResolvedWords)
SLT_KERNEL(128, 2, , ResolvedWords)

}  // namespace slt::cuda
