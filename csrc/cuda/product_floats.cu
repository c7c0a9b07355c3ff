// Products of signed weights with 16-bit floats: see product.h. Sums are float32.
#include "cuda/product.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, ...)                                                                                          \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1) NAME(const __grid_constant__ Product a) {         \
        ProductKernel<__VA_ARGS__>::run(a);                                                                            \
    }
#define SLT_KERNELS(NAME, ROWS, ...)                                                                                   \
    SLT_KERNEL(slt_product_bfloat16_##NAME, FloatSigns<Bfloat16, ROWS>, __VA_ARGS__)                                   \
    SLT_KERNEL(slt_product_float16_##NAME, FloatSigns<Float16, ROWS>, __VA_ARGS__)

SLT_KERNELS(128, 128, 128)
SLT_KERNELS(128_compact, 128, 128, CompactRow)
SLT_KERNELS(256_64_rows, 64, 256)
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(256, 128, 256)
SLT_KERNELS(256_compact, 128, 256, CompactRow)
#endif

extern "C" __global__ void __launch_bounds__(ADD_THREADS) slt_product_add_floats(const __grid_constant__ Product a) {
    add_parts<float>(a);
}

}  // namespace slt::cuda
