// Grad_input by planes of digits: see grad_input.h. Sums are exact.
#include "cuda/grad_input.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, SUMMANDS, DIGITS, COLUMNS)                                                                    \
    extern "C" __global__ void __launch_bounds__(GRAD_THREADS, 1)                                                      \
        slt_grad_input_##NAME##_##DIGITS##_##COLUMNS(const __grid_constant__ GradInput a) {                            \
        GradInputKernel<SUMMANDS<DIGITS>, COLUMNS>::run(a);                                                            \
    }
#define SLT_KERNELS(DIGITS, COLUMNS)                                                                                   \
    SLT_KERNEL(signs, ByteSummands, DIGITS, COLUMNS)                                                                   \
    SLT_KERNEL(bytes, ValueSummands, DIGITS, COLUMNS)

SLT_KERNELS(2, 64)
SLT_KERNELS(3, 64)

extern "C" __global__ void __launch_bounds__(GRAD_THREADS)
    slt_grad_input_add_digits(const __grid_constant__ GradInput a) {
    add_grad_parts<int64_t>(a);
}

}  // namespace slt::cuda
