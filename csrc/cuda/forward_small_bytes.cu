// Linear's forward for few vectors by digits: weights that are bytes, up to 128 columns of digits.
#include "cuda/forward_small.h"

namespace slt::cuda {

#define SLT_KERNEL(COLUMNS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        slt_forward_small_bytes_##COLUMNS(const __grid_constant__ ForwardSmall a) {                          \
        forward_small<ByteDigits<COLUMNS>, Resolved>(a);                                        \
    }

SLT_KERNEL(8)
SLT_KERNEL(16)
SLT_KERNEL(32)
SLT_KERNEL(64)
SLT_KERNEL(128)

}  // namespace slt::cuda
