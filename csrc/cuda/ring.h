// A ring of stages in shared memory, which producers fill and consumers read.
//
// From sm_90 on its barriers are in shared memory, and warps wait independently. Before, they are the block's named
// barriers 1 to 2 * MOST_STAGES, at which all consumers meet.
#pragma once

#include "cuda/ptx.h"

namespace slt::cuda {

constexpr int MOST_STAGES = 4;

template <int PRODUCERS, int CONSUMERS>
class Ring {
  public:
    struct Barriers {
        uint64_t full[MOST_STAGES], empty[MOST_STAGES];
    };

    int slot = 0;  // of the current stage

    // All threads of the block call this, before a barrier.
    __device__ __forceinline__ Ring(Barriers &barriers, int stages)
        : stages_(stages), full_(shared_address(barriers.full)), empty_(shared_address(barriers.empty)) {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x < stages) {
            init_barrier(full_ + 8 * threadIdx.x, PRODUCERS / 32);
            init_barrier(empty_ + 8 * threadIdx.x, CONSUMERS / 32);
        }
#endif
    }

    __device__ __forceinline__ void advance() {
        if (++slot == stages_) slot = 0, round_ ^= 1;
    }

    // Consumers begin: all stages are empty.
    __device__ __forceinline__ void open() const {
#if __CUDA_ARCH__ < 900
#pragma unroll 1
        for (int i = 0; i < stages_; ++i) release(i);
#endif
    }

    // Producers end, when consumers have released all stages: no arrival is left over.
    __device__ __forceinline__ void drain() const {
#if __CUDA_ARCH__ < 900
#pragma unroll 1
        for (int i = 0; i < stages_; ++i) named_barrier(1 + MOST_STAGES + i, PRODUCERS + CONSUMERS);
#endif
    }

    // Before the stage is filled.
    __device__ __forceinline__ void wait_until_empty() const {
#if __CUDA_ARCH__ >= 900
        wait_for_phase(empty_ + 8 * slot, round_ ^ 1);
#else
        named_barrier(1 + MOST_STAGES + slot, PRODUCERS + CONSUMERS);
#endif
    }

    // A warp has filled a stage.
    __device__ __forceinline__ void fill(int slot) const {
#if __CUDA_ARCH__ >= 900
        __syncwarp();
        arrive(full_ + 8 * slot, threadIdx.x % 32 == 0);
#else
        arrive_at_barrier(1 + slot, PRODUCERS + CONSUMERS);
#endif
    }

    __device__ __forceinline__ void wait_until_full() const {
#if __CUDA_ARCH__ >= 900
        wait_for_phase(full_ + 8 * slot, round_);
#else
        named_barrier(1 + slot, PRODUCERS + CONSUMERS);
#endif
    }

    // A warp has read a stage, if the condition holds.
    __device__ __forceinline__ void release(int slot, bool condition = true) const {
#if __CUDA_ARCH__ >= 900
        __syncwarp();
        arrive(empty_ + 8 * slot, condition && threadIdx.x % 32 == 0);
#else
        if (condition) arrive_at_barrier(1 + MOST_STAGES + slot, PRODUCERS + CONSUMERS);
#endif
    }

  private:
    int stages_;
    uint32_t full_, empty_, round_ = 0;
};

}  // namespace slt::cuda
