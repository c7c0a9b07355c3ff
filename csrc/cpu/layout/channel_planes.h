// Images with a plane for each channel, whose lanes are neighbouring pixels.
//
// A plane has zeros around its image, so that a tap of the kernel shifts all pixels by one offset: position (i, j) of
// the output reads element i * pitch + j + offset. The zeros after a row are also those before the next. Positions run
// on through them; what is computed there is dropped, or multiplied by zero.
//
// With strides, pixels of the same remainders (h mod stride_h, w mod stride_w) have a plane of their own: neighbouring
// positions then read neighbouring elements. Only planes that a tap reads exist.
#pragma once

#include "cpu/layout/pixels.h"
#include "cpu/machine/partial.h"
#include "cpu/machine/scratch.h"

namespace slt::SLT_ISA {
namespace {

class ChannelPlanes {
  public:
    static constexpr int64_t MOST_STRIDE = 4;

    const Images x;
    int64_t count = 0;  // planes of a channel
    int64_t pitch;      // elements from one row to the next

    ChannelPlanes(const Images &x, int64_t stride_h, int64_t stride_w)
        : x(x), pitch(ceil_div(x.width, stride_w)), stride_h(stride_h), stride_w(stride_w), width(pitch) {
        for (int8_t &n : number) n = -1;
    }

    // Makes room for the positions of a grid.
    void include_grid(int64_t grid_height, int64_t grid_width) {
        high = greatest(high, grid_height);
        pitch = greatest(pitch, grid_width);
    }

    // Makes room for a tap, which reads pixel (i * stride_h + down, j * stride_w + right) for position (i, j) of a
    // grid.
    void include_tap(int64_t down_by, int64_t right_by, int64_t grid_width) {
        const int64_t h = shift(down_by, stride_h), w = shift(right_by, stride_w);
        int8_t &plane = number[(down_by - h * stride_h) * MOST_STRIDE + right_by - w * stride_w];
        if (plane < 0) plane = int8_t(count++);
        up = greatest(up, -h);
        down = greatest(down, h);
        left = greatest(left, -w);
        pitch = greatest(pitch, greatest(width + left, grid_width + w));
    }

    // Whether the zeros around images are few enough. (The padding may be any number: sizes must not overflow.)
    bool pays() const { return pitch <= 4 * width + 32 && up + down <= 4 * high + 32; }

    // Elements of a plane for `rows` rows of positions. One more register may be read behind the last position.
    int64_t size(int64_t rows) const { return ceil_div(left + (rows + up + down) * pitch, LANES) * LANES + LANES; }

    // Where a tap reads for the first position of a plane of `size` elements, from the first plane of the channel.
    int64_t offset(int64_t down_by, int64_t right_by, int64_t size) const {
        const int64_t h = shift(down_by, stride_h), w = shift(right_by, stride_w);
        const int64_t plane = number[(down_by - h * stride_h) * MOST_STRIDE + right_by - w * stride_w];
        return plane * size + (up + h) * pitch + left + w;
    }

    // Writes the planes of channels [c, c + channels) of a sample, for positions of rows [first, first + rows):
    // [channel][plane][size]. `convert(v, at)` stores a register of pixels.
    template <class T, class Convert>
    void write(int64_t sample, int64_t c, int64_t channels, int64_t first, int64_t rows, const Convert &convert,
               T *out) const {
        const int64_t size = this->size(rows), all_rows = rows + up + down;
        const int64_t line = ceil_div(x.width, 2 * LANES) * 2 * LANES;
        if (stride_h == 1 && stride_w == 1 && !x.channels_last && number[0] == 0) {
            for (int64_t i = 0; i < channels; ++i)
                write_plane(sample * x.channels + c + i, first - up, all_rows, convert, out + i * size, size);
            return;
        }
        const int64_t together = x.channels_last ? LANES : 1;
        Scratch<T> lines(stride_w > 1 ? together * line : 0);
        for (int64_t at = 0; at < channels; at += together) {
            const int64_t n = least(channels - at, together);
            T *planes = out + at * count * size;
            for (int64_t p = 0; p < n * count; ++p) clear(planes + p * size, left);
            for (int64_t q = 0; q < all_rows; ++q)
                for (int64_t rest = 0; rest < stride_h; ++rest) {
                    const int8_t *in_row = number + rest * MOST_STRIDE;
                    const int64_t h = (first + q - up) * stride_h + rest;
                    T *to = planes + left + q * pitch;
                    if (h >= 0 && h < x.height && stride_w == 1 && in_row[0] >= 0)
                        read_row(sample, c + at, n, h, convert, to + in_row[0] * size, count * size);
                    else if (h >= 0 && h < x.height && stride_w > 1 && any(in_row))
                        read_row(sample, c + at, n, h, convert, lines.data, line);
                    for (int64_t b = 0; b < stride_w; ++b) {
                        if (in_row[b] < 0) continue;
                        const int64_t exist = h < 0 || h >= x.height ? 0 : (x.width - b + stride_w - 1) / stride_w;
                        for (int64_t i = 0; i < n; ++i) {
                            T *plane = to + (i * count + in_row[b]) * size;
                            if (stride_w == 2)
                                b == 0 ? take_second<false>(lines + i * line, exist, plane)
                                       : take_second<true>(lines + i * line, exist, plane);
                            else if (stride_w > 2)
                                for (int64_t j = 0; j < exist; ++j) plane[j] = lines[i * line + stride_w * j + b];
                            for (int64_t j = exist; j < pitch; j += LANES) clear_register(plane + j);
                        }
                    }
                }
            for (int64_t p = 0; p < n * count; ++p)
                clear(planes + p * size + left + all_rows * pitch, size - left - all_rows * pitch);
        }
    }

  private:
    const int64_t stride_h, stride_w, width;
    int64_t up = 0, down = 0, left = 0, high = 0;
    int8_t number[MOST_STRIDE * MOST_STRIDE];  // of the plane of each pair of remainders, or -1

    // How many rows or columns of a plane a tap reads further on: rounded down.
    static int64_t shift(int64_t by, int64_t stride) { return by >= 0 ? by / stride : -((stride - 1 - by) / stride); }

    static bool any(const int8_t *in_row) {
        for (int64_t b = 0; b < MOST_STRIDE; ++b)
            if (in_row[b] >= 0) return true;
        return false;
    }

    // LANES elements.
    template <class T>
    static SLT_INLINE void clear_register(T *at) {
        char *bytes = reinterpret_cast<char *>(at);
        for (size_t i = 0; i < LANES * sizeof(T); i += sizeof(U32)) store(bytes + i, U32{});
    }

    // `count` even or odd elements; whole registers are read and written.
    template <bool ODD, class T>
    static void take_second(const T *from, int64_t count, T *to) {
        if constexpr (sizeof(T) == sizeof(uint32_t))
            for (int64_t j = 0; j < count; j += LANES)
                store(to + j, every_second<ODD>(load<U32>(from + 2 * j), load<U32>(from + 2 * j + LANES)));
        else
            for (int64_t j = 0; j < count; ++j) to[j] = from[2 * j + ODD];
    }

    template <class T>
    static void clear(T *at, int64_t count) {
        if (count > 0) memset(at, 0, size_t(count) * sizeof(T));
    }

    // The plane of one channel without strides, from row h on: `write`, without what its loops cost for each row.
    template <class T, class Convert>
    void write_plane(int64_t channel, int64_t h, int64_t rows, const Convert &convert, T *out, int64_t size) const {
        const int64_t before = least(greatest(-h, 0), rows), end = greatest(least(rows, x.height - h), before);
        clear(out, left + before * pitch);
        T *to = out + left + before * pitch;
        const int64_t start = (channel * x.height + h + before) * x.width, exist = x.samples * x.channels * x.pixels();
        Input from = x.data + start;
        for (int64_t q = before; q < end; ++q, from = from + x.width, to += pitch) {
            // Whole registers are read, except at the end of the images.
            const bool inside = start + (q - before) * x.width + ceil_div(x.width, LANES) * LANES <= exist;
            const int64_t whole = inside ? x.width : x.width / LANES * LANES;
            int64_t w = 0;
            for (; w < whole; w += LANES) convert(read_floats(from + w), to + w);
            if (w < x.width) convert(read_part(from + w, x.width - w), to + w);
            for (int64_t j = x.width; j < pitch; j += LANES) clear_register(to + j);
        }
        clear(to, size - (to - out));
    }

    // Row h of channels [c, c + n), `apart` elements apart. Whole registers are written, past the end of the row too.
    template <class T, class Convert>
    void read_row(int64_t sample, int64_t c, int64_t n, int64_t h, const Convert &convert, T *out,
                  int64_t apart) const {
        if (x.channels_last) {
            for (int64_t w = 0; w < x.width; w += LANES) {
                S32 square[LANES];
                for (int64_t i = 0; i < LANES; ++i)
                    square[i] = w + i < x.width ? (S32)read_pixel(x, sample, h * x.width + w + i, c, c + n) : S32{};
                transpose(square);
                for (int64_t i = 0; i < n; ++i) convert((F32)square[i], out + i * apart + w);
            }
            return;
        }
        for (int64_t i = 0; i < n; ++i) {
            const int64_t start = ((sample * x.channels + c + i) * x.height + h) * x.width;
            const int64_t left = x.samples * x.channels * x.pixels() - start;
            for (int64_t w = 0; w < x.width; w += LANES)
                convert(left - w >= LANES ? read_floats(x.data + (start + w))
                                          : read_part(x.data + (start + w), left - w),
                        out + i * apart + w);
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
