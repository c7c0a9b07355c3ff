// Images in digits, and the vectors that a convolution takes from them.
//
// A batch becomes digits once: a fixed point for each sample, planes [sample][digit][pixel][channel] whose pixels are
// padded to whole words. A position of the output is then a vector: at each tap of the kernel, the channels of one
// group of one pixel, or zeros beyond the edge.
#pragma once

#include "parallel.h"
#include "product.h"
#include "scratch.h"

namespace slt::SLT_ISA {
namespace {

// A batch of images in memory: [samples, channels, height, width], or its channels-last form.
struct Images {
    const float *data;
    int64_t samples, channels, height, width;
    bool channels_last;

    int64_t pixels() const { return height * width; }
};

template <int DIGITS>
struct Planes {
    int64_t pitch;  // digits of a pixel
    int64_t plane;  // digits of a plane
    Scratch<Digit> digits;
    Scratch<double> powers;  // of each sample

    // `layout`: of each pixel's words.
    Planes(const Images &x, Layout layout, int bytes, int threads)
        : pitch(ceil_div(x.channels, WORD) * WORD),
          plane(x.pixels() * pitch),
          digits(x.samples * DIGITS * plane),
          powers(x.samples) {
        const int64_t elements = x.channels * x.pixels();
        const Order order(layout);
        Scratch<FixedPoint> fixed(x.samples);
        parallel_for(threads, x.samples, [&](int64_t sample) {
            fixed[sample] = FixedPoint(largest_bits(x.data + sample * elements, elements), bytes);
            powers[sample] = fixed[sample].power;
        });
        parallel_for(threads, x.samples * x.height, [&](int64_t piece) {
            const int64_t sample = piece / x.height, pixel = piece % x.height * x.width;
            Digit *out = digits + sample * DIGITS * plane + pixel * pitch;
            const float *in = x.data + sample * elements;
            if (x.channels_last) {
                for (int64_t i = 0; i < x.width; ++i)
                    write_vector<DIGITS>(in + (pixel + i) * x.channels, x.channels, 0, pitch, fixed[sample], order,
                                         out + i * pitch, plane);
            } else {
                write_row(in + pixel, x, fixed[sample], order, out);
            }
        });
    }

  private:
    // One row of pixels whose channels lie planes apart: 32 channels by LANES pixels at a time, transposed.
    void write_row(const float *in, const Images &x, const FixedPoint &fixed, const Order &order, Digit *out) const {
        for (int64_t c = 0; c < x.channels; c += WORD)
            for (int64_t i = 0; i < x.width; i += LANES) {
                const int pixels = x.width - i < LANES ? int(x.width - i) : LANES;
                const int channels = x.channels - c < WORD ? int(x.channels - c) : int(WORD);
                alignas(64) int32_t integers[LANES][WORD];
                for (int part = 0; part < WORD; part += LANES) {
                    S32 square[LANES];
                    for (int j = 0; j < LANES; ++j) {
                        alignas(64) float row[LANES] = {};
                        const float *at = in + (c + part + j) * x.pixels() + i;
                        if (part + j < channels) memcpy(row, at, size_t(pixels) * sizeof(float));
                        square[j] = fixed(load<F32>(row));
                    }
                    transpose(square);
                    for (int l = 0; l < LANES; ++l) store(integers[l] + part, square[l]);
                }
                for (int l = 0; l < pixels; ++l)
                    write_word<DIGITS>(integers[l], order, out + (i + l) * pitch + c, plane);
            }
    }
};

// The taps of a convolution, or of a part of it: where each reads, from its position's first pixel.
struct Taps {
    int64_t count;
    const int64_t *down, *right;
    int64_t length;    // digits that a tap takes
    int64_t first;     // channel
    int64_t channels;  // that exist of `length`; the rest are zeros
};

// A rectangle of positions; position (i, j) reads from pixel (i * step_down + ..., j * step_right + ...).
struct Grid {
    int64_t height, width, step_down, step_right;
};

// Makes the vectors of positions [from, from + count) of all samples: [position][DIGITS][pitch], each `skipped` zeros,
// the taps, zeros up to `padded`. `layout`: into which to bring the words on the way.
template <int DIGITS>
class Gather {
  public:
    Gather(const Images &x, const Planes<DIGITS> &planes, const Taps &taps, const Grid &grid, int64_t skipped,
           int64_t padded, Layout layout)
        : x(x), planes(planes), taps(taps), grid(grid), skipped(skipped), padded(padded),
          shuffle(layout == Layout::BY_BIT || (layout == Layout::BY_K && !SLT_BYTE_DIGITS)), order(layout) {}

    // Sums are those of the vectors' integers.
    void operator()(int64_t from, int64_t count, Digit *out, int64_t pitch, int64_t *sums) const {
        const int64_t positions = grid.height * grid.width;
        for (int64_t v = 0; v < count; ++v) {
            const int64_t sample = (from + v) / positions, position = (from + v) % positions;
            const int64_t down = position / grid.width * grid.step_down;
            const int64_t right = position % grid.width * grid.step_right;
            int64_t sum = 0;
            for (int d = DIGITS - 1; d >= 0; --d) {
                Digit *to = out + (v * DIGITS + d) * pitch;
                row(planes.digits + (sample * DIGITS + d) * planes.plane, down, right, to);
                sum = sum * (1 << DIGIT_BITS) + total(to, padded);
                if (shuffle) shuffle_words(to);
            }
            sums[v] = sum;
        }
    }

  private:
    const Images &x;
    const Planes<DIGITS> &planes;
    const Taps &taps;
    const Grid &grid;
    const int64_t skipped, padded;
    const bool shuffle;
    const Order order;

    static SLT_INLINE void copy(const Digit *from, int64_t count, Digit *to) {
        constexpr int64_t step = sizeof(U32) / sizeof(Digit);
        for (; count >= step; count -= step, from += step, to += step) store(to, load<U32>(from));
        if (count > 0) memcpy(to, from, size_t(count) * sizeof(Digit));
    }

    void row(const Digit *plane, int64_t down, int64_t right, Digit *to) const {
        memset(to, 0, size_t(skipped) * sizeof(Digit));
        int64_t at = skipped;
        for (int64_t t = 0; t < taps.count; ++t, at += taps.length) {
            const int64_t h = down + taps.down[t], w = right + taps.right[t];
            if (h < 0 || h >= x.height || w < 0 || w >= x.width) {
                memset(to + at, 0, size_t(taps.length) * sizeof(Digit));
                continue;
            }
            copy(plane + (h * x.width + w) * planes.pitch + taps.first, taps.channels, to + at);
            if (taps.length > taps.channels)
                memset(to + at + taps.channels, 0, size_t(taps.length - taps.channels) * sizeof(Digit));
        }
        memset(to + at, 0, size_t(padded - at) * sizeof(Digit));
    }

    void shuffle_words(Digit *digits) const {
        for (int64_t at = 0; at < padded; at += WORD) {
#if defined(__AVX512VBMI__)
            store(digits + at, _mm256_permutexvar_epi8(load<__m256i>(order.k), load<__m256i>(digits + at)));
#else
            Digit word[WORD];
            memcpy(word, digits + at, sizeof word);
            for (int p = 0; p < WORD; ++p) digits[at + p] = word[order.k[p]];
#endif
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
