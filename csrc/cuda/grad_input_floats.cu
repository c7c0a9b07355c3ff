// Grad_input of signed weights with 16-bit floats: see grad_input.h. Sums are float32.
#include "cuda/grad_input.h"

namespace slt::cuda {

// NAME, then the k and the columns of a tile, and the blocks of a multiprocessor.
#define SLT_KERNEL(NAME, TYPE, K, COLUMNS, RESIDENTS)                                                                  \
    extern "C" __global__ void __launch_bounds__(GRAD_BLOCK_THREADS, RESIDENTS)                                        \
        slt_grad_input_##NAME##_##K##_##COLUMNS(const __grid_constant__ GradInput a) {                                 \
        GradInputKernel<FloatSummands<TYPE, K / 32>, K / 32, COLUMNS>::run(a);                                         \
    }
#define SLT_KERNELS(K, COLUMNS, RESIDENTS)                                                                             \
    SLT_KERNEL(bfloat16, Bfloat16, K, COLUMNS, RESIDENTS)                                                              \
    SLT_KERNEL(float16, Float16, K, COLUMNS, RESIDENTS)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNELS(64, 256, 1)
SLT_KERNELS(128, 128, 1)
SLT_KERNELS(128, 256, 1)
#else
SLT_KERNELS(64, 128, 2)
SLT_KERNELS(128, 64, 2)
SLT_KERNELS(128, 128, 1)  // two would have to spill registers
#endif

extern "C" __global__ void __launch_bounds__(GRAD_THREADS)
    slt_grad_input_add_floats(const __grid_constant__ GradInput a) {
    add_grad_parts<float>(a);
}

}  // namespace slt::cuda
