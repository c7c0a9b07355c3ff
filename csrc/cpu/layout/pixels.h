// Images as a matrix of pixels by channels. A matrix is images of one pixel.
#pragma once

#include "cpu/machine/dtype.h"

namespace slt::SLT_ISA {
namespace {

// Channels [c, c + LANES) of a pixel of channels-last images; lanes of channels from `end` on are zeros.
SLT_INLINE F32 read_pixel(const Images &x, int64_t sample, int64_t pixel, int64_t c, int64_t end) {
    const Input at = x.data + ((sample * x.pixels() + pixel) * x.channels + c);
    return end - c >= LANES ? read_floats(at) : read_floats(at, end - c);
}

// The same of pixels [first, first + n) of images in either format, n <= LANES, one pixel per register.
SLT_INLINE void read_pixels(const Images &x, int64_t sample, int64_t first, int64_t n, int64_t c, int64_t end,
                            F32 out[LANES]) {
    if (x.channels_last) {
        for (int64_t i = 0; i < n; ++i) out[i] = read_pixel(x, sample, first + i, c, end);
        return;
    }
    const int64_t left = x.pixels() - first;
    Input at = x.data + ((sample * x.channels + c) * x.pixels() + first);
    S32 square[LANES];
    for (int64_t i = 0; i < LANES; ++i, at = at + x.pixels())
        square[i] = (S32)(c + i >= end ? F32{} : left >= LANES ? read_floats(at) : read_floats(at, n));
    transpose(square);
    for (int64_t i = 0; i < LANES; ++i) out[i] = (F32)square[i];
}

// The number of pixels, with all channels, that a piece of work reads. In NCHW it is a run of several cache lines of
// each channel, because every channel is in another page.
inline int64_t pixels_at_once(const Images &x) { return x.channels_last ? LANES : 256; }

// Writes the zeros around an image, whose inside is written later; a pixel has `pixel` elements.
template <class Element>
void clear_around(Element *image, int64_t height, int64_t width, int64_t padding_h, int64_t padding_w, int64_t pixel) {
    const int64_t row = (width + 2 * padding_w) * pixel, side = padding_w * pixel;
    const auto clear = [](Element *at, int64_t count) { memset(at, 0, size_t(count) * sizeof(Element)); };
    clear(image, padding_h * row + side);
    Element *end = image + padding_h * row + side + width * pixel;  // end of the first row's inside
    for (int64_t h = 0; h + 1 < height; ++h, end += row) clear(end, 2 * side);
    clear(end, side + padding_h * row);
}

}  // namespace
}  // namespace slt::SLT_ISA
