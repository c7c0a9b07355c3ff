// Images as a convolution reads them: a vector for each position of the output, which holds, at each tap of the kernel,
// the channels of one group of one pixel, or zeros beyond the edge.
//
// Images are brought into planes once, [plane][sample][row][pixel][channel]: digits (image_int8.h), or bfloat16 as it
// is (image_bf16.h). How vectors come from there (`Reading`):
//
// - IN_PLACE, with AMX: neighbouring positions, each tap of them a tile whose rows are a pixel apart. For this there are
//   zeros between rows and between samples (`Border`), which count as positions too; their results are dropped. Taps
//   must be whole tiles, and positions neighbours.
// - PACKED, where words would be mostly padding, as those of an RGB image: pixels without any, and zeros around images,
//   so that a whole row of the kernel is copied as one tap.
// - COPIED, elsewhere: tap by tap.
#pragma once

#include "cpu/layout/position.h"
#include "cpu/machine/scratch.h"
#include "cpu/machine/simd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// The taps of a convolution, or of a part of it: where each reads, from its position's first pixel.
struct Taps {
    int64_t count;
    const int64_t *down, *right;
    int64_t length;    // elements that a tap takes
    int64_t first;     // channel
    int64_t channels;  // that exist of `length`; the rest are zeros
};

// A rectangle of positions; position (i, j) reads from pixel (i * step_down + ..., j * step_right + ...).
struct Grid {
    int64_t height, width, step_down, step_right;
};

enum class Reading { IN_PLACE, PACKED, COPIED };

// Zeros around images. Those after a row of pixels, or after a sample, are the ones before the next as well.
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

    // Whether few enough pixels are zeros. (Any padding may come here: the product must not overflow.)
    bool pays(const Images &x) const {
        return rows <= x.height && columns <= x.width && (x.height + rows) * (x.width + columns) <= 2 * x.pixels();
    }

    // Whether positions can be read in place, too: `tile` elements are a row of one.
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

// Where the elements of the planes lie.
template <class Element>
class PlanesOf {
  public:
    const Images x;
    const Border border;
    const Reading reading;
    const int64_t pixel, row, sample, plane;  // strides

    // The first channel of the first pixel of a plane.
    const Element *at(int p) const { return first + p * plane; }

    // Positions of all samples, with those between images where they are read in place.
    int64_t positions(const Grid &grid) const {
        return reading == Reading::IN_PLACE ? x.samples * sample / pixel : x.samples * grid.height * grid.width;
    }

    // Whether positions overlap, so much that what neighbouring `vectors` read of `planes` stays in L1.
    bool overlap(const Taps &taps, int64_t vectors, int64_t planes) const {
        const int64_t rows = border.up + border.down + 1, columns = vectors + border.left + border.right;
        const int64_t bytes = rows * columns * taps.length * planes * int64_t(sizeof(Element));
        return reading == Reading::IN_PLACE && taps.count > 1 && bytes <= 32 << 10;
    }

  protected:
    const Element *first = nullptr;

    // `more` elements may be read behind the last one.
    PlanesOf(const Images &x, const Border &around, Reading reading, int64_t pixel, int64_t more)
        : x(x),
          border(reading == Reading::COPIED ? Border() : around),
          reading(reading),
          pixel(pixel),
          row((x.width + border.columns) * pixel),
          sample((x.height + border.rows) * row),
          plane(before() + x.samples * sample + border.down * row + border.right * pixel + more) {}

    // Runs of rows that a sample is brought here in: one, unless there are fewer samples than work for the threads.
    int64_t parts_of_sample(int threads) const {
        const int64_t wanted = threads == 1 || x.samples == 0 ? 1 : ceil_div(4 * threads, x.samples);
        return least(wanted, x.height);
    }

    // Zeros that a plane begins with.
    int64_t before() const { return border.up * row + border.left * pixel; }

    // Zeros after rows [from, end) of a sample, and after its last one.
    void clear_border(Element *sample, int64_t from, int64_t end) const {
        for (int64_t h = from; h < end; ++h)
            memset(sample + h * row + x.width * pixel, 0, size_t(border.columns * pixel) * sizeof(Element));
        if (end == x.height) memset(sample + end * row, 0, size_t(border.rows * row) * sizeof(Element));
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
