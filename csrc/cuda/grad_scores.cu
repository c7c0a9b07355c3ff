#include "cuda/grad_scores.h"

namespace slt::cuda {

// BLOCKS that a multiprocessor holds: the sums of three products of float32, and those of 256 rows, leave no room for a
// second one.
#define SLT_KERNEL(NAME, BLOCKS, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(GRAD_THREADS, BLOCKS)                                                 \
        slt_grad_scores_##NAME(const __grid_constant__ GradScores a) {                                                 \
        grad_scores<__VA_ARGS__>(a);                                                                                   \
    }
#define SLT_GRAD_SCORES(NAME, BLOCKS, T, TERMS)                                                                        \
    SLT_KERNEL(NAME##_matrix, BLOCKS, T, TERMS, MATRIX, 128)                                                           \
    SLT_KERNEL(NAME##_images, BLOCKS, T, TERMS, IMAGES, 128)                                                           \
    SLT_KERNEL(NAME##_scattered, BLOCKS, T, TERMS, SCATTERED, 128)

SLT_GRAD_SCORES(bfloat16, 2, __nv_bfloat16, 1)
SLT_GRAD_SCORES(float16, 2, __half, 1)
SLT_GRAD_SCORES(float32, 1, float, 3)
SLT_GRAD_SCORES(tf32, 2, float, 1)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
SLT_KERNEL(bfloat16_matrix_256, 1, __nv_bfloat16, 1, MATRIX, 256)
SLT_KERNEL(bfloat16_images_256, 1, __nv_bfloat16, 1, IMAGES, 256)
SLT_KERNEL(float16_matrix_256, 1, __half, 1, MATRIX, 256)
SLT_KERNEL(float16_images_256, 1, __half, 1, IMAGES, 256)
#endif

}  // namespace slt::cuda
