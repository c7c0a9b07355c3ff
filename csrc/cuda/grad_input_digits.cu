// Grad_input by planes of digits: see grad_input.h. Sums are exact.
#include "cuda/grad_input.h"

namespace slt::cuda {

// NAME, then the digits, and the k and the columns of a tile.
#define SLT_KERNEL(NAME, SUMMANDS, DIGITS, K, COLUMNS)                                                                 \
    extern "C" __global__ void __launch_bounds__(GRAD_BLOCK_THREADS, 1)                                                \
        slt_grad_input_##NAME##_##DIGITS##_##K##_##COLUMNS(const __grid_constant__ GradInput a) {                      \
        GradInputKernel<SUMMANDS<DIGITS, K / 32>, K / 32, COLUMNS>::run(a);                                            \
    }
#define SLT_KERNELS(DIGITS, K, COLUMNS)                                                                                \
    SLT_KERNEL(signs, ByteSummands, DIGITS, K, COLUMNS)                                                                \
    SLT_KERNEL(bytes, ValueSummands, DIGITS, K, COLUMNS)

// As many columns as leave registers.
SLT_KERNELS(2, 64, 128)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(2, 128, 128)
#else
SLT_KERNELS(2, 128, 64)
#endif
SLT_KERNELS(3, 64, 128)
SLT_KERNELS(3, 128, 64)

extern "C" __global__ void __launch_bounds__(GRAD_THREADS)
    slt_grad_input_add_digits(const __grid_constant__ GradInput a) {
    add_grad_parts<int64_t>(a);
}

}  // namespace slt::cuda
