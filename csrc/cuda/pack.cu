// Pack: scores and a threshold to the words of a mask, and how many weights it keeps. A warp reads 32 scores at a time,
// and a vote makes a word of them; a lane has one word of 32.
#include "contract/scores.h"
#include "cuda/arguments.h"
#include "cuda/words.h"

namespace slt::cuda {

constexpr int WARPS = 8;

// Adds the counts of all threads to `kept`, with an atomic operation per block; writes it where there is one block.
__device__ __forceinline__ void add_kept(int64_t *kept, int count, int64_t more) {
    __shared__ int counts[WARPS];
    count = __reduce_add_sync(0xFFFFFFFF, count);
    if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = count;
    __syncthreads();
    if (threadIdx.x > 0) return;
    int64_t sum = blockIdx.x == 0 ? more : 0;
    for (int warp = 0; warp < WARPS; ++warp) sum += counts[warp];
    if (gridDim.x == 1)
        *kept = sum;
    else
        atomicAdd(reinterpret_cast<unsigned long long *>(kept), static_cast<unsigned long long>(sum));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    slt_pack_compact(const __grid_constant__ PackCompact a) {
    const Kept above = kept_above(*a.threshold);
    const int lane = threadIdx.x % 32;
    const int64_t first = (int64_t(blockIdx.x) * WARPS + threadIdx.x / 32) * 32, at = first * WORD + lane;
    uint32_t mine = 0;
#pragma unroll 16
    for (int word = 0; word < 32; ++word) {
        const int64_t i = at + word * WORD;
        const bool kept = i < a.count && is_kept(above, a.scores[i]);
        const uint32_t bits = __ballot_sync(0xFFFFFFFF, kept);
        mine = word == lane ? bits : mine;
    }
    if ((first + lane) * WORD < a.count) a.mask[first + lane] = mine;
    add_kept(a.kept, __popc(mine), a.locked);
}

template <int PLANES>
__device__ __forceinline__ void pack_resolved(const PackResolved &a) {
    const Generator &g = a.generator;
    const Kept above = kept_above(*a.threshold);
    const int lane = threadIdx.x % 32;
    const Place at = place_of(g, blockIdx.x * (32 * WARPS / WORDS_PER_CALL));
    const uint64_t index = WORDS_PER_CALL * call_index(g, at.row, at.call) + lane % WORDS_PER_CALL;
    const FrozenWord frozen = frozen_word<PLANES>(g, index, valid_word(g, at.word));
    // The warp's words follow each other in the enumeration, whatever rows they are of.
    const int count = __popc(frozen.free);
    int before = count;
    for (int by = 1; by < 32; by *= 2) {
        const int lower = __shfl_up_sync(0xFFFFFFFF, before, by);
        before += lane >= by ? lower : 0;
    }
    before -= count;
    const uint32_t row = __shfl_sync(0xFFFFFFFF, at.row, 0), call = __shfl_sync(0xFFFFFFFF, at.call, 0);
    const uint32_t *scores = a.scores;
    if (row < g.rows) scores += free_start<PLANES>(g, a.segment_starts, a.call_starts, row, call);
    uint32_t mine = 0;
#pragma unroll 8
    for (int word = 0; word < 32; ++word) {
        const uint32_t free = __shfl_sync(0xFFFFFFFF, frozen.free, word);
        const int start = __shfl_sync(0xFFFFFFFF, before, word);
        const bool kept = free >> lane & 1 && is_kept(above, scores[start + __popc(free & ((1u << lane) - 1))]);
        const uint32_t bits = __ballot_sync(0xFFFFFFFF, kept);
        mine = word == lane ? bits : mine;
    }
    mine |= frozen.locked;
    if (uint32_t(at.word) < g.words) a.mask[uint64_t(at.row) * g.words + at.word] = mine;
    add_kept(a.kept, __popc(mine), 0);
}

#define SLT_PACK_RESOLVED(PLANES)                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        slt_pack_resolved_##PLANES(const __grid_constant__ PackResolved a) {                                           \
        pack_resolved<PLANES>(a);                                                                                      \
    }
SLT_PACK_RESOLVED(0)
SLT_PACK_RESOLVED(4)
SLT_PACK_RESOLVED(8)

}  // namespace slt::cuda
