// The argument of each kernel: one struct, which host and device share. Pointers are to memory of the device, unless
// said otherwise; masks are resolved words [rows, words].
#pragma once

#include "contract/source.h"
#include "cuda/calls.h"

namespace slt::cuda {

// int8 [rows, fan]: the masked integer weight.
struct Materialize {
    Source source;
    Calls calls;  // of SIGN, or of VALUE where weights are bytes
    const uint32_t *mask;
    int8_t *out;
};

// y [batch, rows] = x W^T + bias, for few vectors: forward_small.h.
struct ForwardSmall {
    Source source;
    Calls calls;   // of SIGN, or of VALUE where weights are bytes
    Calls freeze;  // of FREEZE
    const uint32_t *mask;
    const int64_t *row_starts;  // of the free weights; null for a resolved mask
    const int32_t *call_starts;
    const void *x;  // [batch, fan]
    const float *scale;
    const float *bias;  // may be null
    void *y;
    int64_t batch;
    int32_t element;      // of x and y: 0 float32, 1 bfloat16, 2 float16
    int32_t digits;       // of fixed point: 2 or 3
    int32_t tiles;        // of 64 rows that a block has: 1, 2 or 4
    int32_t cluster;      // blocks that share k
    int32_t block_steps;  // of 512 k that a block has
    int32_t chunk_steps;  // that are in shared memory at once: a multiple of 4 / tiles
};

}  // namespace slt::cuda
