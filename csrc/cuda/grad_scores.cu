#include "cuda/grad_scores.h"

namespace slt::cuda {

// The sums of three products of float32 need all registers of a block; others leave room for a second block.
#define SLT_KERNEL(NAME, BLOCKS, ...) \
    extern "C" __global__ void __launch_bounds__(GRAD_THREADS, BLOCKS) NAME(const __grid_constant__ GradScores a) { \
        __VA_ARGS__(a); \
    }
#define SLT_GRAD_SCORES(NAME, BLOCKS, T, TERMS) \
    SLT_KERNEL(slt_grad_scores_##NAME##_matrix, BLOCKS, grad_scores<T, TERMS, MATRIX>) \
    SLT_KERNEL(slt_grad_scores_##NAME##_images, BLOCKS, grad_scores<T, TERMS, IMAGES>) \
    SLT_KERNEL(slt_grad_scores_##NAME##_scattered, BLOCKS, grad_scores<T, TERMS, SCATTERED>)

SLT_GRAD_SCORES(bfloat16, 2, __nv_bfloat16, 1)
SLT_GRAD_SCORES(float16, 2, __half, 1)
SLT_GRAD_SCORES(float32, 1, float, 3)
SLT_GRAD_SCORES(tf32, 2, float, 1)

}  // namespace slt::cuda
