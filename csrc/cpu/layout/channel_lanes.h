// Rows of channels-last images, LANES channels of a pixel in one register, with zeros around them.
#pragma once

#include "cpu/layout/pixels.h"

namespace slt::SLT_ISA {
namespace {

// Where taps read, in pixels from those of their position; a row has `left` zeros before it and others behind it.
struct ChannelLanes {
    int64_t top = 0, bottom = 0, left = 0;
    int64_t pitch;  // pixels from one row to the next

    explicit ChannelLanes(const Images &x) : pitch(x.width) {}

    // Makes room for a tap of a grid of positions `stride_w` pixels apart. All taps, before the first use.
    void include_tap(int64_t down, int64_t right, int64_t grid_width, int64_t stride_w) {
        top = least(top, down);
        bottom = greatest(bottom, down);
        left = greatest(left, -right);
        last = greatest(last, (grid_width - 1) * stride_w + right + 1);
    }

    // Whether the zeros around images are few enough. (The padding may be any number: sizes must not overflow.)
    bool pays(const Images &x) {
        pitch = left + greatest(x.width, last);
        return pitch <= 4 * x.width + 32 && bottom - top <= 4 * x.height + 32;
    }

    // Rows of pixels for `rows` rows of positions.
    int64_t height(int64_t rows, int64_t stride_h) const { return (rows - 1) * stride_h + 1 + bottom - top; }

    // The pixel that a tap reads for the first position of a grid.
    int64_t pixel(int64_t down, int64_t right) const { return (down - top) * pitch + left + right; }

    // Writes `rows` rows from row h + top on, for channels [c, c + blocks * LANES): [block][row][pixel][LANES].
    // `convert(v, at)` stores a register.
    template <class T, class Convert>
    void write(const Images &x, int64_t sample, int64_t c, int64_t blocks, int64_t h, int64_t rows,
               const Convert &convert, T *out) const {
        const int64_t block = rows * pitch * LANES;
        for (int64_t r = h + top; r < h + top + rows; ++r) {
            const bool exists = r >= 0 && r < x.height;
            for (int64_t w = -left; w < pitch - left; ++w, out += LANES)
                for (int64_t b = 0; b < blocks; ++b) {
                    // Pixels are too far apart for the hardware prefetcher.
                    const int64_t ahead = sample * x.pixels() + r * x.width + w + AHEAD, at = c + b * LANES;
                    if (exists) __builtin_prefetch((x.data + (ahead * x.channels + at)).data);
                    convert(exists && w >= 0 && w < x.width ? read_pixel(x, sample, r * x.width + w, at, x.channels)
                                                            : F32{},
                            out + b * block);
                }
        }
    }

  private:
    static constexpr int64_t AHEAD = 16;  // pixels
    int64_t last = 0;  // pixels of a row that taps read
};

}  // namespace
}  // namespace slt::SLT_ISA
