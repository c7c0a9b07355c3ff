// Select: the exact rank-th smallest magnitude of many tensors, without a sort or a copy.
//
// The bits of magnitudes, as integers, are in the order of the magnitudes. Three passes find 11, 10 and 10 of the 31
// bits: each counts, among the scores with the prefix found so far, how often each value of the next bits occurs. The
// last block of a pass to finish finds the value that holds the rank. Counts are integers, so no order matters.
#include "contract/scores.h"
#include "cuda/arguments.h"

namespace slt::cuda {

constexpr int THREADS = 512;
constexpr uint32_t NO_SCORE = 0xFFFFFFFF;  // no magnitude has that prefix
// Scores are alike, so that many lanes count the same value: neighbouring lanes count in histograms of their own.
constexpr int COPIES = 4;

// The tensor of a piece.
__device__ __forceinline__ int tensor_of(const ScoreTensors &all, uint32_t piece) {
    int first = 0, last = all.tensors - 1;
    while (first < last) {
        const int middle = (first + last + 1) / 2;
        if (all.first_piece[middle] <= piece)
            first = middle;
        else
            last = middle - 1;
    }
    return first;
}

// Finds the value of the wanted bits: that of the score of number `rank`, from 1 on, among those counted.
template <int PASS, int BITS>
__device__ __forceinline__ void descend(const Select &a, uint32_t prefix, int64_t below) {
    constexpr int EACH = (1 << BITS) / THREADS;  // values per thread
    __shared__ int64_t sums[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t counts[EACH], own = 0;
    for (int i = 0; i < EACH; ++i) {
        counts[i] = int64_t(__ldcg(&a.state->histogram[PASS][threadIdx.x * EACH + i]));
        own += counts[i];
    }
    int64_t sum = own;
    for (int by = 1; by < 32; by *= 2) {
        const int64_t lower = __shfl_up_sync(0xFFFFFFFF, sum, by);
        sum += lane >= by ? lower : 0;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    below += sum - own;
    for (int w = 0; w < warp; ++w) below += sums[w];
    for (int i = 0; i < EACH; ++i) {
        if (below < a.rank && a.rank <= below + counts[i]) {  // in one thread
            prefix = prefix << BITS | (threadIdx.x * EACH + i);
            a.state->prefix = prefix;
            a.state->below = below;
            if (PASS == SelectState::PASSES - 1) *a.out = prefix;
            return;
        }
        below += counts[i];
    }
}

template <int PASS, int SHIFT, int BITS>
__device__ __forceinline__ void select(const Select &a) {
    __shared__ uint32_t histogram[(1 << BITS) * COPIES];
    __shared__ bool last;
    for (int i = threadIdx.x; i < (1 << BITS) * COPIES; i += THREADS) histogram[i] = 0;
    const uint32_t prefix = PASS ? a.state->prefix : 0;
    const int64_t below = PASS ? a.state->below : 0;
    __syncthreads();
    const ScoreTensors &all = a.tensors;
    const uint32_t pieces = all.first_piece[all.tensors];
    for (uint32_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const int tensor = tensor_of(all, piece);
        const int64_t start = int64_t(piece - all.first_piece[tensor]) * all.PIECE;
        const uint32_t *scores = all.scores[tensor] + start;
        const int count = int(least(all.PIECE, all.counts[tensor] - start));
        constexpr int EACH = ScoreTensors::PIECE / THREADS;
        uint32_t magnitude[EACH];  // all are loaded before the first is counted
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int at = i * THREADS + threadIdx.x;
            magnitude[i] = at < count ? scores[at] & MAGNITUDE : NO_SCORE;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const uint32_t digit = magnitude[i] >> SHIFT;
            if (PASS == 0 ? magnitude[i] != NO_SCORE : digit >> BITS == prefix)
                atomicAdd(histogram + ((digit & ((1 << BITS) - 1)) * COPIES + threadIdx.x % COPIES), 1);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 1 << BITS; i += THREADS) {
        uint32_t count = 0;
        for (int copy = 0; copy < COPIES; ++copy) count += histogram[i * COPIES + copy];
        if (count) atomicAdd(&a.state->histogram[PASS][i], count);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();  // the block's counts are seen before it counts as done, and those of others after that
        last = atomicAdd(&a.state->done[PASS], 1) == a.blocks - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    descend<PASS, BITS>(a, prefix, below);
}

#define SLT_SELECT(PASS, SHIFT, BITS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) slt_select_##PASS(const __grid_constant__ Select a) {        \
        select<PASS, SHIFT, BITS>(a);                                                                                  \
    }
SLT_SELECT(0, 20, 11)
SLT_SELECT(1, 10, 10)
SLT_SELECT(2, 0, 10)

}  // namespace slt::cuda
