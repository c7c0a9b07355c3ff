// im2col: the vectors of positions of images, a few positions at a time.
#pragma once

#include "cpu/conv/geometry.h"
#include "cpu/gemm/gemm.h"

namespace slt::SLT_ISA {
namespace {

template <class Planes>
class Im2col {
  public:
    typedef typename Planes::Element Element;
    static constexpr int MOST = Planes::VECTORS;

    // The positions read last.
    int count = 0;
    int64_t sample[MOST], row[MOST], column[MOST];
    int64_t sums[MOST];  // of each vector's integers; unused with signed bytes

    // im2col vector: `skipped` zeros, the taps, zeros up to `padded`. `together` positions are read at a time, at most
    // MOST.
    Im2col(const Planes &planes, const Taps &taps, const Grid &grid, int64_t skipped, int64_t padded, int together)
        : planes(planes), taps(taps), grid(grid), in_place(planes.reading == Reading::IN_PLACE), skipped(skipped),
          padded(ceil_div(padded, COPY) * COPY),
          pitch(this->padded + 64 / int64_t(sizeof(Element))),  // not a power of two: vectors must not share cache sets
          overlap(planes.overlap(taps, MOST, Planes::PLANES)),
          steps(in_place ? padded / Planes::TILE : 0),
          copies(in_place ? 0 : together * Planes::PLANES * pitch) {
        for (int64_t s = 0; in_place && s < padded / Planes::TILE; ++s) {
            const int64_t tap = Planes::TILE * s / taps.length;
            // The weights of a step past the last tap are zeros.
            steps[s] = tap < taps.count ? taps.down[tap] * planes.row + taps.right[tap] * planes.pixel + taps.first +
                                              Planes::TILE * s % taps.length
                                        : 0;
        }
    }

    // Reads positions [from, end). `count` may be 0: zeros between images are not positions of the output.
    void read(int64_t from, int64_t end) {
        start = from;
        count = 0;
        Position p(from, in_place ? planes.sample / planes.row : grid.height,
                   in_place ? planes.row / planes.pixel : grid.width);
        for (int i = 0; from + i < end; ++i, p.next()) {
            if (p.h >= grid.height || p.w >= grid.width) continue;
            sample[count] = p.image;
            row[count] = p.h;
            column[count] = p.w;
            if (!in_place) copy_vector(count);
            chosen[count++] = i;
        }
    }

    // Elements of the vectors from number `first` on, whole tiles.
    VectorsOf<Element> vectors(int64_t first) const {
        if (in_place)
            return {planes.at(0) + start * planes.pixel, planes.pixel, planes.plane, steps + first / Planes::TILE,
                    chosen, overlap};
        return {copies + first, Planes::PLANES * pitch, pitch};
    }

  private:
    static constexpr int64_t COPY = sizeof(U32) / sizeof(Element);  // elements per store, which may pass the end

    const Planes &planes;
    const Taps taps;
    const Grid grid;
    const bool in_place;
    const int64_t skipped, padded, pitch;
    const bool overlap;
    const Scratch<int64_t> steps;
    const Scratch<Element> copies;
    int64_t start = 0;
    int chosen[MOST];

    void copy_vector(int v) {
        Element *to = copies + v * Planes::PLANES * pitch;
        for (int p = 0; p < Planes::PLANES; ++p)
            copy_taps(planes.at(p) + sample[v] * planes.sample, row[v] * grid.step_down, column[v] * grid.step_right,
                      to + p * pitch);
        sums[v] = planes.sum_of(to, pitch, padded);
    }

    static SLT_INLINE void copy(const Element *from, int64_t count, Element *to) {
        for (; count >= COPY; count -= COPY, from += COPY, to += COPY) store(to, load<U32>(from));
        if (count > 0) memcpy(to, from, size_t(count) * sizeof(Element));
    }

    void copy_taps(const Element *plane, int64_t down, int64_t right, Element *to) const {
        const Images &x = planes.x;
        for (int64_t c = 0; c < skipped; c += COPY) store(to + c, U32{});
        int64_t at = skipped;
        for (int64_t t = 0; t < taps.count; ++t, at += taps.length) {
            const int64_t h = down + taps.down[t], w = right + taps.right[t];
            if (planes.reading == Reading::PACKED) {
                const Element *from = plane + h * planes.row + w * planes.pixel;
                for (int64_t c = 0; c < taps.length; c += COPY) store(to + at + c, load<U32>(from + c));
                continue;
            }
            if (h < 0 || h >= x.height || w < 0 || w >= x.width) {
                memset(to + at, 0, size_t(taps.length) * sizeof(Element));
                continue;
            }
            copy(plane + h * planes.row + w * planes.pixel + taps.first, taps.channels, to + at);
            if (taps.length > taps.channels)
                memset(to + at + taps.channels, 0, size_t(taps.length - taps.channels) * sizeof(Element));
        }
        for (; at < padded; at += COPY) store(to + at, U32{});
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
