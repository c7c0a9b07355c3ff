// Activations as a matrix of pixels by channels: what the contraction of a weight gradient runs over. Linear is the case
// of images of one pixel.
#pragma once

#include "numbers.h"
#include "parallel.h"
#include "scratch.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t SEGMENT = 16;  // pixels that are read together: one cache line of a channel's plane

// `n` pixels of one row of one image, from `w` on, as float32: [n][channels]. They are copied to `buffer` unless they
// are that already.
inline const float *read_pixels(const Activations &x, int64_t b, int64_t h, int64_t w, int64_t n, float *buffer) {
    const Input at = x.data + (b * x.image + h * x.row + w * x.pixel);
    if (x.channel == 1) {
        if (x.data.type == Type::FLOAT32 && (n == 1 || x.pixel == x.channels))
            return reinterpret_cast<const float *>(at.data);
        for (int64_t i = 0; i < n; ++i) read_floats(at + i * x.pixel, x.channels, buffer + i * x.channels);
    } else if (x.pixel == 1) {
        // Up to the end of the plane there are pixels to read, if rows follow each other.
        const int64_t left = x.planes() ? (x.height - h) * x.width - w : n;
        for (int64_t c = 0; c < x.channels; c += LANES)
            for (int64_t i = 0; i < n; i += LANES) {
                const int64_t channels = x.channels - c < LANES ? x.channels - c : LANES;
                const int64_t pixels = n - i < LANES ? n - i : LANES;
                S32 block[LANES] = {};
                for (int64_t j = 0; j < channels; ++j) {
                    const Input some = at + ((c + j) * x.channel + i);
                    block[j] = (S32)(left - i >= LANES ? read_floats(some) : read_floats(some, pixels));
                }
                transpose(block);
                float *to = buffer + i * x.channels + c;
                if (channels == LANES)
                    for (int64_t j = 0; j < pixels; ++j, to += x.channels) store(to, block[j]);
                else
                    for (int64_t j = 0; j < pixels; ++j, to += x.channels)
                        memcpy(to, &block[j], size_t(channels) * sizeof(float));
            }
    } else {
        for (int64_t c = 0; c < x.channels; ++c)
            for (int64_t i = 0; i < n; ++i)
                read_floats(at + (c * x.channel + i * x.pixel), 1, buffer + i * x.channels + c);
    }
    return buffer;
}

// Images whose pixels hold their channels together, with zeros around them: a view where they are that already, or
// else a copy.
class Pixels {
  public:
    const float *data;
    int64_t image, row, pixel;  // strides

    Pixels(const Activations &x, int64_t padding_h, int64_t padding_w, int threads)
        : data(reinterpret_cast<const float *>(x.data.data)), image(x.image), row(x.row), pixel(x.pixel),
          copy(size_of(x, padding_h, padding_w)) {
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
        return x.data.type == Type::FLOAT32 && x.channel == 1 && padding_h == 0 && padding_w == 0;
    }
    static int64_t size_of(const Activations &x, int64_t padding_h, int64_t padding_w) {
        if (is_view(x, padding_h, padding_w)) return 0;
        return x.count * x.channels * (x.height + 2 * padding_h) * (x.width + 2 * padding_w);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
