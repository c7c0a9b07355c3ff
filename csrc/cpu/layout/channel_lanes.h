// Rows of images, LANES channels of a pixel in one register, with zeros around them.
#pragma once

#include "cpu/layout/pixels.h"
#include "cpu/machine/partial.h"

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
        const int64_t first = greatest(h + top, 0), end = greatest(least(h + top + rows, x.height), first);
        for (int64_t b = 0; b < blocks; ++b) clear_around(x, first - h - top, end - first, rows, out + b * block);
        T *inside = out + ((first - h - top) * pitch + left) * LANES;
        if (!x.channels_last) {
            for (int64_t b = 0; b < blocks; ++b)
                write_transposed(x, sample, c + b * LANES, first * x.width, end * x.width, convert, inside + b * block);
            return;
        }
        const bool whole = x.data.type == Type::FLOAT32 && x.channels - c >= blocks * LANES;
        for (int64_t r = first; r < end; ++r, inside += (pitch - x.width) * LANES)
            for (int64_t w = 0; w < x.width; ++w, inside += LANES) {
                const Input at = x.data + (((sample * x.height + r) * x.width + w) * x.channels + c);
                // Pixels are too far apart for the hardware prefetcher.
                const Input ahead = at + AHEAD * x.channels;
                T *to = inside;
                if (whole) {
                    const int64_t bytes = blocks * int64_t(sizeof(F32));
                    for (int64_t b = 0; b < bytes; b += sizeof(F32), to += block) {
                        __builtin_prefetch(ahead.data + b);
                        convert(load<F32>(at.data + b), to);
                    }
                    continue;
                }
                for (int64_t b = 0; b < blocks; ++b, to += block) {
                    __builtin_prefetch((ahead + b * LANES).data);
                    const int64_t exist = x.channels - c - b * LANES;
                    const Input here = at + b * LANES;
                    convert(exist >= LANES ? read_floats(here) : read_part(here, exist), to);
                }
            }
    }

  private:
    static constexpr int64_t AHEAD = 16;  // pixels
    int64_t last = 0;  // pixels of a row that taps read

    // Clears the zeros around an image: `before` rows are before it, and `rows` are `height` existing and all others.
    template <class T>
    void clear_around(const Images &x, int64_t before, int64_t height, int64_t rows, T *out) const {
        const int64_t row = pitch * LANES, right = (left + x.width) * LANES;
        // Few registers: memset takes longer to start.
        const auto clear = [](T *at, int64_t count) {
            for (int64_t i = 0; i < count; i += sizeof(U32) / sizeof(T)) store(at + i, U32{});
        };
        if (height == 0) return clear(out, rows * row);
        clear(out, before * row + left * LANES);
        out += before * row;
        for (int64_t h = 0; h + 1 < height; ++h, out += row) clear(out + right, row - right + left * LANES);
        clear(out + right, row - right + (rows - before - height) * row);
    }

    // Pixels [first, end) of channels [c, c + LANES) of a sample in NCHW, which begin a row.
    template <class T, class Convert>
    void write_transposed(const Images &x, int64_t sample, int64_t c, int64_t first, int64_t end,
                          const Convert &convert, T *out) const {
        const int64_t exist = least(x.channels - c, LANES);
        int64_t w = 0;
        for (; first < end; first += LANES) {
            const int64_t n = least(end - first, LANES);
            Input at = x.data + ((sample * x.channels + c) * x.pixels() + first);
            S32 square[LANES];
            for (int64_t i = 0; i < LANES; ++i, at = at + x.pixels())
                square[i] = (S32)(i >= exist ? F32{} : n == LANES ? read_floats(at) : read_part(at, n));
            transpose(square);
            for (int64_t i = 0; i < n; ++i, out += LANES) {
                convert((F32)square[i], out);
                if (++w == x.width) {
                    w = 0;
                    out += (pitch - x.width) * LANES;
                }
            }
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
