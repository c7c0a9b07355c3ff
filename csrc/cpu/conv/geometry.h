// Images as a convolution reads them: one vector for each position of the output. It holds the channels of one group of
// a pixel for each tap of the kernel, or zeros beyond the edge.
//
// Images are converted to planes once, [plane][sample][row][pixel][channel]: digits (image_int8.h), or bfloat16
// (image_bf16.h). Vectors are read from planes in one of three ways (`Reading`):
//
// - IN_PLACE, with AMX: each tap of neighbouring positions is a tile whose rows are one pixel apart. The zeros between
//   rows and between samples (`Border`) count as positions too, whose results are dropped. Taps must be whole tiles.
// - PACKED, for images whose words would be mostly padding, as those of an RGB image: pixels have no padding, and zeros
//   are around images, so that a whole row of the kernel is copied as one tap.
// - COPIED, otherwise: tap by tap.
#pragma once

#include "cpu/layout/position.h"
#include "cpu/machine/scratch.h"
#include "cpu/machine/simd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// The taps of a convolution, or of a part of it: where each reads, relative to its position's first pixel.
struct Taps {
    int64_t count;
    const int64_t *down, *right;
    int64_t length;    // elements per tap
    int64_t first;     // first channel
    int64_t channels;  // of a tap's elements; the rest are zeros
};

// A rectangle of positions; position (i, j) reads from pixel (i * step_down + ..., j * step_right + ...).
struct Grid {
    int64_t height, width, step_down, step_right;
};

enum class Reading { IN_PLACE, PACKED, COPIED };

// Zeros around images. The zeros after a row of pixels, or after a sample, are also the zeros before the next.
struct Border {
    int64_t rows = 0, columns = 0;                  // after each sample; after each row
    int64_t up = 0, down = 0, left = 0, right = 0;  // how far taps reach from their position

    void include(const Images &x, const Taps &taps, const Grid &grid) {
        for (int64_t t = 0; t < taps.count; ++t) {
            raise(up, -taps.down[t]);
            raise(down, taps.down[t]);
            raise(left, -taps.right[t]);
            raise(right, taps.right[t]);
        }
        raise(rows, up);
        raise(rows, (grid.height - 1) * grid.step_down + 1 + down - x.height);
        raise(columns, left);
        raise(columns, (grid.width - 1) * grid.step_right + 1 + right - x.width);
    }

    // Whether few enough pixels are zeros. (The padding may be any number: the product must not overflow.)
    bool pays(const Images &x) const {
        return rows <= x.height && columns <= x.width && (x.height + rows) * (x.width + columns) <= 2 * x.pixels();
    }

    // Whether positions can also be read in place; a row of a tile has `tile` elements.
    bool pays_in_place(const Images &x, const Taps &taps, const Grid &grid, int64_t skipped, int64_t tile) const {
#if defined(SLT_AMX)
        return taps.length % tile == 0 && taps.channels == taps.length && skipped == 0 && grid.step_down == 1 &&
               grid.step_right == 1 && pays(x);
#else
        return false;
#endif
    }

  private:
    static void raise(int64_t &a, int64_t b) { a = greatest(a, b); }
};

// The layout of planes.
template <class Element>
class PlanesOf {
  public:
    const Images x;
    const Border border;
    const Reading reading;
    const int64_t pixel, row, sample, plane;  // strides

    // The first channel of the first pixel of a plane.
    const Element *at(int p) const { return first + p * plane; }

    // Positions of all samples, including the zeros between images if they are read in place.
    int64_t positions(const Grid &grid) const {
        return reading == Reading::IN_PLACE ? x.samples * sample / pixel : x.samples * grid.height * grid.width;
    }

    // Whether positions overlap enough that the elements that `vectors` neighbouring positions read of `planes` stay in
    // L1.
    bool overlap(const Taps &taps, int64_t vectors, int64_t planes) const {
        const int64_t rows = border.up + border.down + 1, columns = vectors + border.left + border.right;
        const int64_t bytes = rows * columns * taps.length * planes * int64_t(sizeof(Element));
        return reading == Reading::IN_PLACE && taps.count > 1 && bytes <= 32 << 10;
    }

  protected:
    const Element *first = nullptr;

    // `more` elements may be read behind the last.
    PlanesOf(const Images &x, const Border &around, Reading reading, int64_t pixel, int64_t more)
        : x(x),
          border(reading == Reading::COPIED ? Border() : around),
          reading(reading),
          pixel(pixel),
          row((x.width + border.columns) * pixel),
          sample((x.height + border.rows) * row),
          plane(before() + x.samples * sample + border.down * row + border.right * pixel + more) {}

    // The number of runs of rows in which a sample is converted: one, unless there are too few samples for the threads.
    int64_t parts_of_sample(int threads) const {
        const int64_t wanted = threads == 1 || x.samples == 0 ? 1 : ceil_div(4 * threads, x.samples);
        return least(wanted, x.height);
    }

    // Zeros before the first sample of a plane.
    int64_t before() const { return border.up * row + border.left * pixel; }

    // Clears the zeros after rows [from, end) of a sample, and after its last row.
    void clear_border(Element *sample, int64_t from, int64_t end) const {
        for (int64_t h = from; h < end; ++h)
            memset(sample + h * row + x.width * pixel, 0, size_t(border.columns * pixel) * sizeof(Element));
        if (end == x.height) memset(sample + end * row, 0, size_t(border.rows * row) * sizeof(Element));
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
