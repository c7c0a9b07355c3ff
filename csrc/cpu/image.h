// Images in digits, and the vectors that a convolution takes from them.
//
// A batch becomes digits once: a fixed point for each sample, planes [digit][sample][row][pixel][channel] whose pixels
// are padded to whole words. A position of the output is then a vector: at each tap of the kernel, the channels of one
// group of one pixel, or zeros beyond the edge. How it is read (`Reading`):
//
// - IN_PLACE, with AMX: sixteen neighbouring positions, each tap of them a tile whose rows are a pixel apart. For this
//   there are zeros between rows and between samples (`Border`), which count as positions too; their results are
//   dropped. Taps must be whole tiles, and positions neighbours.
// - PACKED, where words would be mostly padding, as those of an RGB image: pixels without any, and zeros around images,
//   so that a whole row of the kernel is copied as one tap.
// - COPIED, elsewhere: tap by tap.
#pragma once

#include "parallel.h"
#include "position.h"
#include "product.h"
#include "scratch.h"

namespace slt::SLT_ISA {
namespace {

// Samples whose digits are made at a time: 16 MB of them, so that they stay in a cache that all threads share and in
// memory that the process has already; and enough samples for the threads.
inline int64_t samples_at_once(const Images &x, int digits, int threads) {
    const int64_t bytes = x.pixels() * x.channels * digits * int64_t(sizeof(Digit)), fit = (16 << 20) / (bytes + 1);
    return fit > 4 * threads ? fit : 4 * threads;
}

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

    // Whether few enough pixels are zeros.
    bool pays(const Images &x) const { return (x.height + rows) * (x.width + columns) <= 2 * x.pixels(); }

    // Whether positions can be read in place, too.
    bool pays_in_place(const Images &x, const Taps &taps, const Grid &grid, int64_t skipped) const {
#if defined(__AMX_INT8__)
        return taps.length % 64 == 0 && taps.channels == taps.length && skipped == 0 && grid.step_down == 1 &&
               grid.step_right == 1 && pays(x);
#else
        return false;
#endif
    }

  private:
    static void raise(int64_t &a, int64_t b) { a = a < b ? b : a; }
};

constexpr int64_t COPY = sizeof(U32) / sizeof(Digit);  // digits copied at a time, past the last one too

template <int DIGITS>
class Planes {
  public:
    const Images x;
    const Border border;
    const Reading reading;
    const int64_t pixel, row, sample, digit;  // strides
    Scratch<double> powers;                   // of each sample

    // `layout`: of each pixel's words.
    Planes(const Images &x, const Border &around, Reading reading, Layout layout, int bytes, int threads)
        : x(x),
          border(reading == Reading::COPIED ? Border() : around),
          reading(reading),
          pixel(reading == Reading::PACKED ? x.channels : ceil_div(x.channels, WORD) * WORD),
          row((x.width + border.columns) * pixel),
          sample((x.height + border.rows) * row),
          digit(before() + x.samples * sample + border.down * row + (border.right + MOST_VECTORS) * pixel + COPY),
          powers(x.samples),
          order(layout),
          memory(DIGITS * digit) {
        for (int d = 0; d < DIGITS; ++d) memset(memory + d * digit, 0, size_t(before()) * sizeof(Digit));
        // A sample's largest element must be known before its first digit: one thread does both where there are many.
        const int64_t wanted = threads == 1 || x.samples == 0 ? 1 : ceil_div(4 * threads, x.samples);
        const int64_t parts = wanted < x.height || x.height == 0 ? wanted : x.height;
        Scratch<uint32_t> largest(x.samples * parts);
        const auto write = [&](int64_t piece) {
            const int64_t sample = piece / parts, part = piece % parts;
            uint32_t most = 0;
            for (int64_t p = 0; p < parts; ++p) {
                const uint32_t found = largest[sample * parts + p];
                most = found > most ? found : most;
            }
            const FixedPoint fixed(most, bytes);
            powers[sample] = fixed.power;
            write_rows(sample, x.height * part / parts, x.height * (part + 1) / parts, fixed);
        };
        parallel_for(threads, x.samples * parts, [&](int64_t piece) {
            const int64_t part = piece % parts;
            largest[piece] = largest_of(piece / parts, x.height * part / parts, x.height * (part + 1) / parts);
            if (parts == 1) write(piece);
        });
        if (parts > 1) parallel_for(threads, x.samples * parts, write);
    }

    // The first channel of the first pixel of a digit.
    const Digit *at(int d) const { return memory + d * digit + before(); }

  private:
    const Order order;
    const Scratch<Digit> memory;

    int64_t before() const { return border.up * row + border.left * pixel; }

    uint32_t largest_of(int64_t sample, int64_t first, int64_t end) const {
        const Input in = x.data + sample * x.channels * x.pixels();
        if (x.channels_last)
            return largest_bits(in + first * x.width * x.channels, (end - first) * x.width * x.channels);
        uint32_t most = 0;
        for (int64_t c = 0; c < x.channels; ++c) {
            const uint32_t found = largest_bits(in + c * x.pixels() + first * x.width, (end - first) * x.width);
            most = found > most ? found : most;
        }
        return most;
    }

    // Rows [first, end) of a sample, with the zeros after them.
    void write_rows(int64_t sample_index, int64_t first, int64_t end, const FixedPoint &fixed) const {
        Digit *out = memory + before() + sample_index * sample;
        const Input in = x.data + sample_index * x.channels * x.pixels();
        if (reading == Reading::PACKED) {
            pack_rows(in, first, end, fixed, out);
        } else if (x.channels_last) {
            for (int64_t h = first; h < end; ++h)
                for (int64_t w = 0; w < x.width; ++w)
                    write_vector<DIGITS>(in + (h * x.width + w) * x.channels, x.channels, 0, pixel, fixed, order,
                                         out + h * row + w * pixel, digit);
        } else {
            transpose_rows(in, first, end, fixed, out);
        }
        for (int d = 0; d < DIGITS; ++d, out += digit) {
            for (int64_t h = first; h < end; ++h)
                memset(out + h * row + x.width * pixel, 0, size_t(border.columns * pixel) * sizeof(Digit));
            if (end == x.height) memset(out + end * row, 0, size_t(border.rows * row) * sizeof(Digit));
        }
    }

    // Rows without padding, through a buffer: digits are made by the word.
    void pack_rows(const Input in, int64_t first, int64_t end, const FixedPoint &fixed, Digit *out) const {
        const int64_t count = x.width * x.channels, pitch = ceil_div(count, WORD) * WORD;
        Scratch<float> plane(x.width), together(count);
        Scratch<Digit> digits(DIGITS * pitch);
        for (int64_t h = first; h < end; ++h) {
            Input line = in + h * count;
            if (!x.channels_last) {
                for (int64_t c = 0; c < x.channels; ++c) {
                    read_floats(in + (c * x.pixels() + h * x.width), x.width, plane);
                    for (int64_t w = 0; w < x.width; ++w) together[w * x.channels + c] = plane[w];
                }
                line = {reinterpret_cast<const char *>(together.data), Type::FLOAT32};
            }
            write_vector<DIGITS>(line, count, 0, pitch, fixed, order, digits, pitch);
            for (int d = 0; d < DIGITS; ++d)
                memcpy(out + h * row + d * digit, digits + d * pitch, size_t(count) * sizeof(Digit));
        }
    }

    // Rows whose channels lie planes apart: 32 channels by LANES pixels at a time, transposed.
    void transpose_rows(const Input in, int64_t first, int64_t end, const FixedPoint &fixed, Digit *out) const {
        for (int64_t c = 0; c < x.channels; c += WORD) {
            const int channels = x.channels - c < WORD ? int(x.channels - c) : int(WORD);
            int64_t h = first, w = 0;
            for (int64_t i = first * x.width; i < end * x.width; i += LANES) {
                const int pixels = end * x.width - i < LANES ? int(end * x.width - i) : LANES;
                alignas(64) int32_t integers[LANES][WORD];
                for (int part = 0; part < WORD; part += LANES) {
                    S32 square[LANES];
                    for (int j = 0; j < LANES; ++j) {
                        const Input at = in + (c + part + j) * x.pixels() + i;
                        F32 elements = {};
                        if (part + j < channels) elements = pixels == LANES ? read_floats(at) : read_floats(at, pixels);
                        square[j] = fixed(elements);
                    }
                    transpose(square);
                    for (int l = 0; l < LANES; ++l) store(integers[l] + part, square[l]);
                }
                for (int l = 0; l < pixels; ++l) {
                    write_word<DIGITS>(integers[l], order, out + h * row + w * pixel + c, digit);
                    if (++w < x.width) continue;
                    w = 0;
                    ++h;
                }
            }
        }
    }
};

// Positions of all samples and their vectors, up to MOST_VECTORS at a time.
template <int DIGITS>
class Patches {
  public:
    // Those read last.
    int count = 0;
    int64_t sample[MOST_VECTORS], row[MOST_VECTORS], column[MOST_VECTORS];
    int64_t sums[MOST_VECTORS];  // of a vector's integers; nobody needs them where bytes are signed

    // A vector is `skipped` zeros, the taps, zeros up to `padded`. `layout`: of words that are not in order yet.
    Patches(const Planes<DIGITS> &planes, const Taps &taps, const Grid &grid, int64_t skipped, int64_t padded,
            Layout layout)
        : planes(planes), taps(taps), grid(grid), in_place(planes.reading == Reading::IN_PLACE), skipped(skipped),
          padded(padded),
          pitch(padded + 64 / int64_t(sizeof(Digit))),
          shuffle(layout == Layout::BY_BIT || (layout == Layout::BY_K && !SLT_BYTE_DIGITS)),
          order(layout),
          steps(in_place ? padded / 64 : 0),
          copies(in_place ? 0 : MOST_VECTORS * DIGITS * pitch) {
        for (int64_t s = 0; in_place && s < padded / 64; ++s) {
            const int64_t tap = 64 * s / taps.length;
            // The weights of a step behind the last tap are zeros.
            steps[s] = tap < taps.count ? taps.down[tap] * planes.row + taps.right[tap] * planes.pixel + taps.first +
                                              64 * s % taps.length
                                        : 0;
        }
    }

    // Positions, with those between images.
    static int64_t positions(const Planes<DIGITS> &planes, const Grid &grid) {
        return planes.reading == Reading::IN_PLACE ? planes.x.samples * planes.sample / planes.pixel
                                                   : planes.x.samples * grid.height * grid.width;
    }

    // Those of [from, end), of which there may be none.
    void read(int64_t from, int64_t end) {
        start = from;
        count = 0;
        Position p(from, in_place ? planes.sample / planes.row : grid.height,
                   in_place ? planes.row / planes.pixel : grid.width);
        for (int i = 0; i < MOST_VECTORS && from + i < end; ++i, p.next()) {
            if (p.h >= grid.height || p.w >= grid.width) continue;
            sample[count] = p.image;
            row[count] = p.h;
            column[count] = p.w;
            if (!in_place) copy_vector(count);
            chosen[count++] = i;
        }
    }

    // Their digits from the first-th on, a multiple of 64.
    Vectors vectors(int64_t first) const {
        if (in_place) return {planes.at(0) + start * planes.pixel, planes.pixel, planes.digit, steps + first / 64, chosen};
        return {copies + first, DIGITS * pitch, pitch};
    }

  private:
    const Planes<DIGITS> &planes;
    const Taps taps;
    const Grid grid;
    const bool in_place;
    const int64_t skipped, padded, pitch;
    const bool shuffle;
    const Order order;
    const Scratch<int64_t> steps;
    const Scratch<Digit> copies;
    int64_t start = 0;
    int chosen[MOST_VECTORS];

    void copy_vector(int v) {
        int64_t sum = 0;
        for (int d = DIGITS - 1; d >= 0; --d) {
            Digit *to = copies + (v * DIGITS + d) * pitch;
            copy_taps(planes.at(d) + sample[v] * planes.sample, row[v] * grid.step_down, column[v] * grid.step_right, to);
            if (!SIGNED_BYTES) sum = sum * (1 << DIGIT_BITS) + total(to, padded);
            if (shuffle) shuffle_words(to);
        }
        sums[v] = sum;
    }

    static SLT_INLINE void copy(const Digit *from, int64_t count, Digit *to) {
        for (; count >= COPY; count -= COPY, from += COPY, to += COPY) store(to, load<U32>(from));
        if (count > 0) memcpy(to, from, size_t(count) * sizeof(Digit));
    }

    void copy_taps(const Digit *plane, int64_t down, int64_t right, Digit *to) const {
        const Images &x = planes.x;
        for (int64_t c = 0; c < skipped; c += COPY) store(to + c, U32{});
        int64_t at = skipped;
        for (int64_t t = 0; t < taps.count; ++t, at += taps.length) {
            const int64_t h = down + taps.down[t], w = right + taps.right[t];
            if (planes.reading == Reading::PACKED) {
                const Digit *from = plane + h * planes.row + w * planes.pixel;
                for (int64_t c = 0; c < taps.length; c += COPY) store(to + at + c, load<U32>(from + c));
                continue;
            }
            if (h < 0 || h >= x.height || w < 0 || w >= x.width) {
                memset(to + at, 0, size_t(taps.length) * sizeof(Digit));
                continue;
            }
            copy(plane + h * planes.row + w * planes.pixel + taps.first, taps.channels, to + at);
            if (taps.length > taps.channels)
                memset(to + at + taps.channels, 0, size_t(taps.length - taps.channels) * sizeof(Digit));
        }
        for (; at < padded; at += COPY) store(to + at, U32{});
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

// Results for an image whose channels are planes: collected as [position][lane] in 128 KB, and written as columns once
// there are many, a whole cache line of a plane at a time: lines in parts cost several times as much.
class ToPlanes {
  public:
    const int64_t pitch;

    ToPlanes(int64_t lanes, const Result &y, int64_t plane)
        : pitch(ceil_div(lanes, LANES) * LANES),
          lanes(lanes),
          plane(plane),
          most(pitch > 32768 / MOST ? 32768 / pitch : MOST),
          y(y),
          rows((most + LANES) * pitch) {}

    // Room for the next few, whose places are those of the first lane in y.
    Result add(const int64_t *places, int positions) {
        if (count + positions > most) write();
        memcpy(place + count, places, positions * sizeof *places);
        count += positions;
        return {reinterpret_cast<char *>(rows + (count - positions) * pitch), Type::FLOAT32};
    }

    void write() {
        for (int64_t v = 0, run; v < count; v += run) {
            for (run = 1; v + run < count && place[v + run] == place[v] + run;) ++run;
            for (int64_t lane = 0; lane < lanes; lane += LANES)
                write_run(rows + v * pitch + lane, run, lanes - lane < LANES ? int(lanes - lane) : LANES,
                          y + lane * plane + place[v]);
        }
        count = 0;
    }

  private:
    static constexpr int64_t MOST = 256;
    const int64_t lanes, plane, most;
    const Result y;
    const Scratch<float> rows;  // the last ones are only read
    int64_t place[MOST];
    int64_t count = 0;

    void write_run(const float *from, int64_t run, int lanes_here, const Result &to) const {
        if (run < 4) {
            for (int64_t i = 0; i < run; ++i)
                for (int l = 0; l < lanes_here; ++l) write_floats(from + i * pitch + l, 1, to + (l * plane + i));
            return;
        }
        for (int64_t i = 0, here; i < run; i += here) {
            here = LANES - int64_t(uintptr_t((to + i).data) / to.size() % LANES);  // up to the end of a line
            here = here < run - i ? here : run - i;
            S32 square[LANES];
            for (int j = 0; j < LANES; ++j) square[j] = load<S32>(from + (i + j) * pitch);
            transpose(square);
            if (here == LANES && lanes_here == LANES) {
                SLT_UNROLL for (int l = 0; l < LANES; ++l) write_floats((F32)square[l], LANES, to + (l * plane + i));
            } else {
                for (int l = 0; l < lanes_here; ++l) write_floats((F32)square[l], here, to + (l * plane + i));
            }
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
