// Grad_input of signed weights with 16-bit floats: see grad_input.h. Sums are float32.
#include "cuda/grad_input.h"

namespace slt::cuda {

// NAME, then the k and the columns of a tile.
#define SLT_KERNEL(NAME, TYPE, K, COLUMNS)                                                                             \
    extern "C" __global__ void __launch_bounds__(GRAD_THREADS, 2)                                                      \
        slt_grad_input_##NAME##_##K##_##COLUMNS(const __grid_constant__ GradInput a) {                                 \
        GradInputKernel<FloatSummands<TYPE, K / 32>, K / 32, COLUMNS * K / 256>::run(a);                               \
    }
#define SLT_KERNELS(K, COLUMNS)                                                                                        \
    SLT_KERNEL(bfloat16, Bfloat16, K, COLUMNS)                                                                         \
    SLT_KERNEL(float16, Float16, K, COLUMNS)

SLT_KERNELS(64, 128)
SLT_KERNELS(128, 64)
SLT_KERNELS(128, 128)

extern "C" __global__ void __launch_bounds__(GRAD_THREADS)
    slt_grad_input_add_floats(const __grid_constant__ GradInput a) {
    add_grad_parts<float>(a);
}

}  // namespace slt::cuda
