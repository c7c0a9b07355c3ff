// Activations as a matrix of pixels by channels: what the contraction of a weight gradient runs over. Linear is the case
// of images of one pixel.
#pragma once

#include "operations.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"

namespace slt::SLT_ISA {
namespace {

// `n` pixels of one row of one image, from `w` on: [n][channels]. Where a pixel's channels lie apart they are copied to
// `buffer`, pixels innermost, since these are the neighbours in memory.
inline const float *read_pixels(const Activations &x, int64_t b, int64_t h, int64_t w, int64_t n, float *buffer) {
    const float *at = x.data + b * x.image + h * x.row + w * x.pixel;
    if (x.channel == 1 && (n == 1 || x.pixel == x.channels)) return at;
    for (int64_t c = 0; c < x.channels; ++c)
        for (int64_t i = 0; i < n; ++i) buffer[i * x.channels + c] = at[c * x.channel + i * x.pixel];
    return buffer;
}

constexpr int64_t SEGMENT = 16;  // pixels that are read together: one cache line of a channel's plane

// Images whose pixels hold their channels together, with zeros around them: a view where they are that already, or
// else a copy.
class Pixels {
  public:
    const float *data;
    int64_t image, row, pixel;  // strides

    Pixels(const Activations &x, int64_t padding_h, int64_t padding_w, int threads)
        : data(x.data), image(x.image), row(x.row), pixel(x.pixel), copy(size_of(x, padding_h, padding_w)) {
        if (is_view(x, padding_h, padding_w)) return;
        pixel = x.channels;
        row = (x.width + 2 * padding_w) * pixel;
        image = (x.height + 2 * padding_h) * row;
        data = copy;
        parallel_for(threads, x.count * x.height, [&](int64_t piece) {
            const int64_t b = piece / x.height, h = piece % x.height;
            float *out = copy + b * image + (h + padding_h) * row;
            if (h == 0) memset(copy + b * image, 0, padding_h * row * sizeof(float));
            if (h == x.height - 1) memset(out + row, 0, padding_h * row * sizeof(float));
            memset(out, 0, padding_w * pixel * sizeof(float));
            memset(out + (padding_w + x.width) * pixel, 0, padding_w * pixel * sizeof(float));
            for (int64_t w = 0; w < x.width; w += SEGMENT) {
                const int64_t n = x.width - w < SEGMENT ? x.width - w : SEGMENT;
                float *to = out + (padding_w + w) * pixel;
                const float *from = read_pixels(x, b, h, w, n, to);
                if (from != to) memcpy(to, from, n * pixel * sizeof(float));
            }
        });
    }

  private:
    Scratch<float> copy;

    static bool is_view(const Activations &x, int64_t padding_h, int64_t padding_w) {
        return x.channel == 1 && padding_h == 0 && padding_w == 0;
    }
    static int64_t size_of(const Activations &x, int64_t padding_h, int64_t padding_w) {
        if (is_view(x, padding_h, padding_w)) return 0;
        return x.count * x.channels * (x.height + 2 * padding_h) * (x.width + 2 * padding_w);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
