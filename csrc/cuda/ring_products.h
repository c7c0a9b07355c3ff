// Products of the stages of a ring, each a step, by a warpgroup: wgmma, with the weights in registers.
#pragma once

#include "cuda/ring.h"

namespace slt::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Adds the products of some steps with SPAN columns of a stage to the sums of the warpgroup's 64 rows.
//
// Weights: what a lane multiplies. `load(address, half)` reads that of half a step, and `operand(number, registers)`
// makes the registers of one product.
// STAGE, COLUMNS: bytes and columns of a stage, which begins with the lines of its columns.
// weights_place, columns_place: where in a stage the lane's weights are, and the lines of the first column.
//
// Products of half a step are under way while the next half's registers are made. So a stage is released in the middle
// of the next one, and the ring has at least three.
template <class Weights, int STAGE, int COLUMNS, int SPAN, class Stages, class Sum>
__device__ __forceinline__ void multiply_stages(Stages &ring, uint32_t stages, int steps, uint32_t weights_place,
                                                uint32_t columns_place, Sum (&sums)[Weights::SUMS][SPAN / 2]) {
    constexpr int PRODUCTS = Weights::PRODUCTS / 2, LINE = 128;  // of half a step, bytes of a line
    constexpr bool HALVES = Weights::SIZE == 2;                  // whether half a step has lines of its own
    int last = -1;                                               // the stage before, which products may still read
#pragma unroll 1
    for (; steps > 0; --steps) {
        const uint32_t stage = stages + ring.slot * STAGE;
        const uint64_t lines = swizzled_descriptor(stage + columns_place);  // its lowest field is address / 16
        ring.wait_until_full();
        Weights weights;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            weights.load(stage + weights_place, half);
            uint32_t operand[PRODUCTS][4];
#pragma unroll
            for (int n = 0; n < PRODUCTS; ++n) weights.operand(half * PRODUCTS + n, operand[n]);
#pragma unroll
            for (int n = 0; n < PRODUCTS; ++n) pin(operand[n]);
            begin_products();
#pragma unroll
            for (int n = 0; n < PRODUCTS; ++n)
#pragma unroll
                for (int s = 0; s < Weights::SUMS; ++s) {
                    const int line = HALVES ? half : s, from = (HALVES ? n : half * PRODUCTS + n) * 32;
                    Weights::template multiply_async<SPAN>(sums[s], operand[n],
                                                           lines + ((line * COLUMNS * LINE + from) >> 4));
                }
            commit_products();
            wait_for_products<1>();
            if (half == 0) ring.release(last, last >= 0);
        }
        last = ring.slot;
        ring.advance();
    }
    wait_for_products<0>();
    ring.release(last, last >= 0);
#pragma unroll
    for (int s = 0; s < Weights::SUMS; ++s) pin(sums[s]);
}

#endif

}  // namespace slt::cuda
