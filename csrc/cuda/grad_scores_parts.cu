// The scores' gradient: sums over parts of the columns are added.
#include "cuda/grad_scores_epilogue.h"

namespace slt::cuda {

extern "C" __global__ void __launch_bounds__(ADD_THREADS)
    slt_grad_scores_parts_add(const __grid_constant__ GradScores a) {
    add_grad_parts(a);
}

}  // namespace slt::cuda
