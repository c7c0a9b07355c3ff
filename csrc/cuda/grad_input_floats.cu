// Grad_input of signed weights with 16-bit floats: see grad_input.h. Sums are float32.
#include "cuda/grad_input.h"

namespace slt::cuda {

#define SLT_KERNEL(NAME, TYPE, COLUMNS)                                                                                \
    extern "C" __global__ void __launch_bounds__(GRAD_THREADS, 2)                                                      \
        slt_grad_input_##NAME##_##COLUMNS(const __grid_constant__ GradInput a) {                                       \
        GradInputKernel<FloatSummands<TYPE>, COLUMNS>::run(a);                                                         \
    }

SLT_KERNEL(bfloat16, Bfloat16, 64)
SLT_KERNEL(float16, Float16, 64)

extern "C" __global__ void __launch_bounds__(GRAD_THREADS)
    slt_grad_input_add_floats(const __grid_constant__ GradInput a) {
    add_grad_parts<float>(a);
}

}  // namespace slt::cuda
