// The operations and their arguments, the same for every backend in C++. A backend passes what its machine needs (a
// number of threads, a stream) beside them.
//
// Pointers are to memory of the backend's device. Matrices are contiguous, rows by columns; masks are resolved words
// unless said otherwise.
#pragma once

#include "contract/source.h"
#include "contract/window.h"

namespace slt {

// Element types of tensors. Kernels compute in float32.
enum class Type : int { FLOAT32, BFLOAT16, FLOAT16 };

template <class Byte>
struct Numbers {
    Byte *data;
    Type type;

    int64_t size() const { return type == Type::FLOAT32 ? 4 : 2; }  // bytes of an element
    Numbers operator+(int64_t n) const { return {data + n * size(), type}; }
};
using Input = Numbers<const char>;
using Result = Numbers<char>;

// A batch of images, [samples, channels, height, width] or channels-last; height and width are at least 1. A matrix is
// images of one pixel.
template <class Byte>
struct ImagesOf {
    Numbers<Byte> data;
    int64_t samples, channels, height, width;
    bool channels_last;

    int64_t pixels() const { return height * width; }
    int64_t bytes() const { return samples * channels * pixels() * data.size(); }

    // At most `count` samples, beginning with `first`.
    ImagesOf part(int64_t first, int64_t count) const {
        ImagesOf some = *this;
        some.data = data + first * channels * pixels();
        some.samples = least(samples - first, count);
        return some;
    }
};
using Images = ImagesOf<const char>;
using ResultImages = ImagesOf<char>;

// The masked integer weight v * mask: int8 [rows, fan].
struct Materialize {
    Source source;
    const uint32_t *mask;
    int8_t *out;
};

// y = x W^T + bias: x [batch, fan], y [batch, rows], each of any type.
struct LinearForward {
    Source source;
    const uint32_t *mask;
    const uint32_t *signs;  // [rows, words], 1 for -1: the SIGN words of signed_constant; null to generate them
    Input x;
    int64_t batch;
    float scale;
    const float *bias;  // [rows] or null
    Result y;
    int digits;  // of fixed point, base 256: 3 for "highest", 2 for "high"; here and below. Forward: 1 for int8 x
};

// dx = dy W: dy [batch, rows], dx [batch, fan].
struct LinearGradInput {
    Source source;
    const uint32_t *mask;
    Input dy;
    int64_t batch;
    float scale;
    Result dx;
    int digits;
};

// y, whose channels are the source's rows, from x.
struct Conv2dForward {
    Source source;
    Window window;
    const uint32_t *mask;
    Images x;
    float scale;
    const float *bias;  // [rows] or null
    ResultImages y;
    int digits;
};

// dx from dy, whose channels are the source's rows.
struct Conv2dGradInput {
    Source source;
    Window window;
    const uint32_t *mask;
    Images dy;
    float scale;
    ResultImages dx;
    int digits;
};

// dL/dW * v * scale * sign(score) at each free weight, from x and dy, whose channels are the source's rows.
struct GradScores {
    Source source;
    Window window;
    Images dy, x;
    const float *scores;
    float scale;
    const int64_t *offsets;  // as CountFrozen makes them; here and below
    float *out;
    int digits;  // where the backend uses fixed point
};

// y [count, fan]: scale * v * mask of the rows `index` [count]. The mask is compact if there are `offsets`.
struct EmbeddingForward {
    Source source;
    const uint32_t *mask;
    const int64_t *offsets;  // or null
    const int64_t *index;
    int64_t count;
    float scale;
    Result y;
};

// dL/dW * v * scale * sign(score) at the free weights of the rows `index` [count], which are distinct; other rows are
// not written. The gradients of row index[n] are rows order[starts[n]] to order[starts[n + 1] - 1] of dy, added in that
// order, in double.
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
};

// Where the free weights of each row start in the layer's enumeration: offsets [rows + 1]; and the number of locked
// weights.
struct CountFrozen {
    Source source;
    int64_t *offsets, *locked;
};

// A compact mask to a resolved one.
struct Expand {
    Source source;
    const uint32_t *compact;
    const int64_t *offsets;
    uint32_t *out;
};

// The bits of the rank-th smallest magnitude of `tensors` tensors with `counts` float32 scores each; 1 <= rank <= the
// number of all scores.
struct Select {
    const uint32_t *const *scores;
    const int64_t *counts;
    int64_t tensors, rank;
    uint32_t *out;
};

// The mask of the scores above a threshold, resolved or compact, and the number of weights that it keeps.
struct Pack {
    Source source;
    const uint32_t *scores;  // bits of float32
    uint32_t threshold;      // bits of a float32
    const int64_t *offsets;
    int64_t locked;
    bool compact;
    uint32_t *out;
    int64_t *kept;
};

// Every operation: the name of its function, and its arguments.
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

}  // namespace slt
