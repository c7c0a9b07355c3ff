// Activations as a matrix of pixels by channels: what the contraction of a weight gradient runs over. Linear is the case
// of images of one pixel.
#pragma once

#include "operations.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t SEGMENT = 16;  // pixels that are read together: one cache line of a channel's plane

#if defined(__AVX512F__)
// A matrix of 16 x 16 dwords, its rows in registers.
SLT_INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    SLT_UNROLL for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    SLT_UNROLL for (int i = 0; i < 16; i += 4)  // r[i + j]: column j of each 4 x 4 block of rows i to i + 3
        SLT_UNROLL for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    SLT_UNROLL for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xDD);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xDD);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xDD);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
    SLT_UNROLL for (int i = 0; i < 16; ++i) r[i] = t[i];
}
#endif

// `n` pixels of one row of one image, from `w` on: [n][channels]. Where a pixel's channels lie apart they are copied to
// `buffer`, pixels innermost, since these are the neighbours in memory.
inline const float *read_pixels(const Activations &x, int64_t b, int64_t h, int64_t w, int64_t n, float *buffer) {
    const float *at = x.data + b * x.image + h * x.row + w * x.pixel;
    if (x.channel == 1 && (n == 1 || x.pixel == x.channels)) return at;
    int64_t c = 0;
#if defined(__AVX512F__)
    if (n == 16 && x.pixel == 1)
        for (; c + 16 <= x.channels; c += 16) {
            __m512i block[16];
            for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(at + (c + i) * x.channel);
            transpose(block);
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(buffer + i * x.channels + c, block[i]);
        }
#endif
    for (; c < x.channels; ++c)
        for (int64_t i = 0; i < n; ++i) buffer[i * x.channels + c] = at[c * x.channel + i * x.pixel];
    return buffer;
}

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
