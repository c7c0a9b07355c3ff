// Products by digits of fixed point: see product.h. Sums are exact.
#include "cuda/product.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, ...)                                                                                          \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1) NAME(const __grid_constant__ Product a) {         \
        ProductKernel<__VA_ARGS__>::run(a);                                                                            \
    }
#define SLT_KERNELS(DIGITS, COLUMNS, TWICE)                                                                            \
    SLT_KERNEL(slt_product_signs_##DIGITS##_##COLUMNS, ByteSigns<DIGITS, 128>, COLUMNS)                                \
    SLT_KERNEL(slt_product_signs_##DIGITS##_##COLUMNS##_compact, ByteSigns<DIGITS, 128>, COLUMNS, CompactRow)          \
    SLT_KERNEL(slt_product_signs_##DIGITS##_##TWICE##_64_rows, ByteSigns<DIGITS, 64>, TWICE)                           \
    SLT_KERNEL(slt_product_bytes_##DIGITS##_##COLUMNS, ByteValues<DIGITS, 128>, COLUMNS)

// As many columns as leave registers: with wgmma, consumers take some of the producers'.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(2, 128, 256)
SLT_KERNELS(3, 64, 128)
#else
SLT_KERNELS(2, 64, 128)
SLT_KERNELS(3, 48, 96)
#endif

extern "C" __global__ void __launch_bounds__(ADD_THREADS) slt_product_add_digits(const __grid_constant__ Product a) {
    add_parts<int64_t>(a);
}

}  // namespace slt::cuda
