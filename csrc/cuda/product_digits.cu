// Products by digits of fixed point: see product.h. Sums are exact.
#include "cuda/product.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, WEIGHTS, DIGITS, COLUMNS)                                                                     \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)                                                   \
        slt_product_##NAME##_##DIGITS##_##COLUMNS(const __grid_constant__ Product a) {                                 \
        ProductKernel<WEIGHTS<DIGITS>, COLUMNS>::run(a);                                                               \
    }
#define SLT_KERNELS(DIGITS, COLUMNS)                                                                                   \
    SLT_KERNEL(signs, ByteSigns, DIGITS, COLUMNS)                                                                      \
    SLT_KERNEL(bytes, ByteValues, DIGITS, COLUMNS)

SLT_KERNELS(2, 64)
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(2, 128)
SLT_KERNELS(3, 64)
#endif
#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(3, 48)  // the sums of more columns leave too few registers to warps that have no others' to take
#endif

extern "C" __global__ void __launch_bounds__(ADD_THREADS) slt_product_add_digits(const __grid_constant__ Product a) {
    add_parts<int64_t>(a);
}

}  // namespace slt::cuda
