// The operations of the CPU backend, as the functions over raw pointers that each instruction set implements.
// Matrices are contiguous, rows by columns; masks are resolved words unless said otherwise.
#pragma once

#include "contract/source.h"

namespace slt {

// Throws std::bad_alloc: the only exception of the kernels, which frees what they have allocated.
[[noreturn]] void out_of_memory();

// work(context, i) with the default floating-point control. Returns whether there was memory enough: no exception may
// leave a thread's part of a loop.
bool run_piece(void (*work)(const void *context, int64_t i), const void *context, int64_t i);

// Numbers as tensors hold them. As values all of them are float32, which kernels compute with.
enum class Type : int { FLOAT32, BFLOAT16, FLOAT16 };

template <class Byte>
struct Numbers {
    Byte *data;
    Type type;

    int64_t size() const { return type == Type::FLOAT32 ? 4 : 2; }
    Numbers operator+(int64_t n) const { return {data + n * size(), type}; }
};
using Input = Numbers<const char>;
using Result = Numbers<char>;

// A batch of images: [samples, channels, height, width], or its channels-last form; height and width are at least 1. A
// matrix is images of one pixel.
template <class Byte>
struct ImagesOf {
    Numbers<Byte> data;
    int64_t samples, channels, height, width;
    bool channels_last;

    int64_t pixels() const { return height * width; }
    int64_t bytes() const { return samples * channels * pixels() * data.size(); }

    // At most `count` samples from `first` on.
    ImagesOf part(int64_t first, int64_t count) const {
        return {data + first * channels * pixels(), least(samples - first, count), channels, height, width, channels_last};
    }
};
using Images = ImagesOf<const char>;
using ResultImages = ImagesOf<char>;

// The masked integer weight v * mask: int8 [rows, fan].
struct Materialize {
    Source source;
    const uint32_t *mask;
    int8_t *out;
    int threads;
};

// y = x W^T + bias: x [batch, fan], y [batch, rows] of any types. `bytes` of fixed point: 3 for "highest", 2 for "high".
struct LinearForward {
    Source source;
    const uint32_t *mask;
    Input x;
    int64_t batch;
    float scale;
    const float *bias;  // [rows] or null
    Result y;
    int bytes;
    int threads;
};

// dx = dy W: dy [batch, rows], dx [batch, fan].
struct LinearGradInput {
    Source source;
    const uint32_t *mask;
    Input dy;
    int64_t batch;
    float scale;
    Result dx;
    int bytes;
    int threads;
};

// y, whose channels are the source's rows, from as many samples x.
struct Conv2dForward {
    Source source;
    Window window;
    const uint32_t *mask;
    Images x;
    float scale;
    const float *bias;  // [rows] or null
    ResultImages y;
    int bytes;
    int threads;
};

// dx from dy, whose channels are the source's rows.
struct Conv2dGradInput {
    Source source;
    Window window;
    const uint32_t *mask;
    Images dy;
    float scale;
    ResultImages dx;
    int bytes;
    int threads;
};

// dL/dW * v * scale * sign(score) at each free weight, from dy, whose channels are the source's rows, and x.
struct GradScores {
    Source source;
    Window window;
    Images dy, x;
    const float *scores;
    float scale;
    const int64_t *offsets;  // as of CountFrozen, here and below
    float *out;
    int bytes;  // of fixed point, where that is used: 3 for "highest", 2 for "high"
    int threads;
};

// y [count, fan]: scale * v * mask of the rows `index` [count]. The mask is compact where there are `offsets`.
struct EmbeddingForward {
    Source source;
    const uint32_t *mask;
    const int64_t *offsets;  // or null
    const int64_t *index;
    int64_t count;
    float scale;
    Result y;
    int threads;
};

// dL/dW * v * scale * sign(score) at the free weights of the rows `index` [count], each once; others are not written.
// Their gradients are rows order[starts[n]] to order[starts[n + 1] - 1] of dy, added in that order, in double.
struct EmbeddingGradScores {
    Source source;
    const int64_t *index;
    int64_t count;
    const int64_t *starts, *order;
    Input dy;
    const float *scores;
    float scale;
    const int64_t *offsets;
    float *out;
    int threads;
};

// Where the free weights of each row start in the layer's enumeration: offsets [rows + 1]; and one number of locked ones.
struct CountFrozen {
    Source source;
    int64_t *offsets, *locked;
    int threads;
};

// A compact mask to a resolved one.
struct Expand {
    Source source;
    const uint32_t *compact;
    const int64_t *offsets;
    uint32_t *out;
    int threads;
};

// The bits of the rank-th smallest magnitude of `tensors` tensors with `counts` float32 scores each; 1 <= rank <= all.
struct Select {
    const uint32_t *const *scores;
    const int64_t *counts;
    int64_t tensors, rank;
    uint32_t *out;
    int threads;
};

// The mask of the scores above a threshold, resolved or compact, and how many weights it keeps.
struct Pack {
    Source source;
    const uint32_t *scores;  // the bits of float32
    uint32_t threshold;      // the same
    const int64_t *offsets;
    int64_t locked;
    bool compact;
    uint32_t *out;
    int64_t *kept;
    int threads;
};

// Every operation: the name of its function, and of the structure that it takes.
#define SLT_OPERATIONS(X) \
    X(materialize, Materialize) \
    X(linear_forward, LinearForward) \
    X(linear_grad_input, LinearGradInput) \
    X(conv2d_forward, Conv2dForward) \
    X(conv2d_grad_input, Conv2dGradInput) \
    X(grad_scores, GradScores) \
    X(embedding_forward, EmbeddingForward) \
    X(embedding_grad_scores, EmbeddingGradScores) \
    X(count_frozen, CountFrozen) \
    X(expand, Expand) \
    X(select, Select) \
    X(pack, Pack)

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
