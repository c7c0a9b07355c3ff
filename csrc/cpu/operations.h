// The operations of the CPU backend, as the functions over raw pointers that each instruction set implements.
// Matrices are contiguous, rows by columns; masks are resolved words unless said otherwise.
#pragma once

#include "../source.h"

namespace slt {

// The masked integer weight v * mask: int8 [rows, fan].
struct Materialize {
    Source source;
    const uint32_t *mask;
    int8_t *out;
    int threads;
};

// y = x W^T + bias: x [batch, fan], y [batch, rows]. `bytes` of fixed point: 3 for "highest", 2 for "high".
struct LinearForward {
    Source source;
    const uint32_t *mask;
    const float *x;
    int64_t batch;
    float scale;
    const float *bias;  // [rows] or null
    float *y;
    int bytes;
    int threads;
};

// dx = dy W: dy [batch, rows], dx [batch, fan].
struct LinearGradInput {
    Source source;
    const uint32_t *mask;
    const float *dy;
    int64_t batch;
    float scale;
    float *dx;
    int bytes;
    int threads;
};

// Every operation: the name of its function, and of the structure that it takes.
#define SLT_OPERATIONS(X) \
    X(materialize, Materialize) \
    X(linear_forward, LinearForward) \
    X(linear_grad_input, LinearGradInput)

// The functions of one instruction set.
struct Operations {
#define SLT_MEMBER(name, Arguments) void (*name)(const Arguments &);
    SLT_OPERATIONS(SLT_MEMBER)
#undef SLT_MEMBER
};

// The instruction sets compiled in that run here, the best last.
struct InstructionSet {
    const char *name;
    const Operations *operations;
};
int instruction_sets(InstructionSet out[8]);

}  // namespace slt
