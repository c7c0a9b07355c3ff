// Products of signed weights with 16-bit floats: see product.h. Sums are float32.
#include "cuda/product.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, TYPE, COLUMNS)                                                                                \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)                                                   \
        slt_product_##NAME##_##COLUMNS(const __grid_constant__ Product a) {                                            \
        ProductKernel<FloatSigns<TYPE>, COLUMNS>::run(a);                                                              \
    }
#define SLT_KERNELS(COLUMNS)                                                                                           \
    SLT_KERNEL(bfloat16, Bfloat16, COLUMNS)                                                                            \
    SLT_KERNEL(float16, Float16, COLUMNS)

SLT_KERNELS(128)
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(256)
#endif

extern "C" __global__ void __launch_bounds__(ADD_THREADS) slt_product_add_floats(const __grid_constant__ Product a) {
    add_parts<float>(a);
}

}  // namespace slt::cuda
