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

// As many columns as leave registers: with wgmma, consumers take some of the producers'.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(2, 128)
SLT_KERNELS(3, 64)
#else
SLT_KERNELS(2, 64)
SLT_KERNELS(3, 48)
#endif

extern "C" __global__ void __launch_bounds__(ADD_THREADS) slt_product_add_digits(const __grid_constant__ Product a) {
    add_parts<int64_t>(a);
}

}  // namespace slt::cuda
