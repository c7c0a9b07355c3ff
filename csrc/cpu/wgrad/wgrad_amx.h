// The weight gradient on AMX tiles.
//
// A dword of an operand is one pixel of a few samples (`SAMPLES`), so that a tap of the kernel shifts whole dwords for
// every stride and dilation. An element may take several dwords, each in its own plane (`PLANES`). The operands'
// `Number` defines the content of a dword and the product of tiles: bfloat16 (wgrad_amx_bf16.h) or digits
// (wgrad_amx_int8.h).
//
// A step is 16 pixels of SAMPLES samples. Inputs are converted to dwords once. x is [channel / 16][plane] [samples /
// SAMPLES][height][width][channel % 16] with zeros around each image; the zeros after a row or an image are also the
// zeros before the next. dy is tiles of 16 rows x 16 pixels. A block of DEPTH steps goes over the rows with one word of
// columns at a time, whose tiles of x (at most 48 KB) stay in L1.
//
// Without strides, 16 neighbouring pixels at one tap are a tile of x in place if the even channels of a word come
// before the odd channels (`in_place`). The contraction then includes the zeros between images, where dy is zero.
// Otherwise a block first copies its panel of x with the columns in bit order (at most 192 KB, in L2).
#pragma once

#include "cpu/machine/amx.h"
#include "cpu/wgrad/wgrad.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t STEP = 16;         // pixels, of SAMPLES samples
constexpr int64_t TILE = 16 * STEP;  // dwords
static_assert(LANES == STEP);

// Tiles of x for a word of columns, one step after the other.
struct XTiles {
    const uint32_t *at;
    int64_t plane;  // distance to the next plane
    int64_t half;   // distance to the word's other half
};

template <class Number>
class TileContraction {
  public:
    static constexpr int64_t ROWS = 128, ROW_STEP = ROWS;
    static constexpr int64_t DEPTH = Number::DEPTH, SAMPLES = Number::SAMPLES, PLANES = Number::PLANES;
    static constexpr int64_t STRIP = DEPTH * PLANES * TILE + 16;  // one more line: strips must not share cache sets

    // Whether tiles are faster than RegisterContraction: with few pixels or rows most of a tile is empty. Offsets of
    // columns must fit 32 bits.
    static bool suits(const GradScores &a) {
        const int64_t height = a.x.height + 2 * a.window.padding_h, width = a.x.width + 2 * a.window.padding_w;
        return Number::suits(a) && a.dy.samples * a.dy.pixels() >= 32 && a.source.rows / a.window.groups >= 8 &&
               (a.x.channels + 16) * PLANES * ((a.x.samples / SAMPLES + 3) * height * width + 2 * STEP) < INT32_MAX;
    }

    TileContraction(const GradScores &a, int threads, const Number &number, bool may_read_in_place = true)
        : a(a),
          threads(threads),
          number(number),
          in_place(may_read_in_place && pays_in_place(a)),
          height(in_place ? padded_height(a) : a.dy.height),
          width(in_place ? padded_width(a) : a.dy.width),
          bundles(ceil_div(a.dy.samples, SAMPLES)),
          pixels(bundles * height * width),
          steps(ceil_div(pixels, STEP)),
          group_rows(a.source.rows / a.window.groups),
          group_tiles(ceil_div(group_rows, 16)),
          line(least(a.x.channels, 16)),
          row(padded_width(a) * line),
          image(padded_height(a) * row),
          plane(ceil_div(bundles * image + behind(a), TILE) * TILE),
          block(PLANES * plane),
          x(ceil_div(a.x.channels, 16) * block),
          dy(a.window.groups * group_tiles * steps * PLANES * TILE) {
        write_x();
        write_dy();
    }

    // Whether elements of x are multiplied by zeros that dy does not have: NaN and infinity of x may then reach other
    // taps of their channel.
    bool adds_zeros() const { return height * width > a.dy.pixels(); }

    struct Panels {
        Scratch<uint32_t> x;  // [half word][plane][step][16 pixels][16 columns]

        explicit Panels(int64_t) : x(CALL / 16 * STRIP) {}
    };

    // sums [calls][ROWS][128] of the rows from `first_row` on. `between` is called between tile products, which do not
    // use the memory.
    template <class Between>
    void operator()(Panels &panels, int64_t first_row, int64_t rows, const Columns *columns, int calls, float *sums,
                    Between between) const {
        Tiles tiles;
        tiles.configure(16);
        for (int64_t first = 0; first < steps; first += DEPTH) {
            const int64_t count = least(steps - first, DEPTH);
            for (int i = 0; i < calls; ++i) {
                if (!in_place) copy_panel(first * STEP, count * STEP, columns[i], panels.x);
                for (int64_t c = 0; c < CALL; c += WORD) {
                    if (!columns[i].any(c, WORD)) continue;
                    const int64_t *channels = columns[i].channel + c;
                    const int64_t tap = columns[i].h[c] * row + columns[i].w[c] * line;
                    const XTiles tiles = in_place
                                             ? XTiles{x + channels[0] / 16 * block + tap + first * TILE, plane, block}
                                             : XTiles{panels.x + c / 16 * STRIP, DEPTH * TILE, STRIP};
                    number.multiply(tile_of(first_row) + first * PLANES * TILE, steps * PLANES * TILE, tiles, count,
                                    first_row, rows, channels, first > 0, sums + i * ROWS * CALL + c, between);
                }
            }
        }
    }

  private:
    const GradScores &a;
    const int threads;
    const Number &number;
    const bool in_place;
    const int64_t height, width;  // of the contraction in an image: of dy, or of x with the zeros before it
    const int64_t bundles;        // of SAMPLES samples
    const int64_t pixels, steps;
    const int64_t group_rows, group_tiles;
    const int64_t line, row, image, plane, block;  // strides of x
    Scratch<uint32_t> x, dy;

    static int64_t padded_height(const GradScores &a) { return a.x.height + a.window.padding_h; }
    static int64_t padded_width(const GradScores &a) { return a.x.width + a.window.padding_w; }

    // Whether tiles of x need no panel, and copying would take longer than the zeros do.
    static bool pays_in_place(const GradScores &a) {
        const Window &w = a.window;
        const int64_t channels = a.source.fan / taps_of(w);
        return channels % WORD == 0 && w.stride_h == 1 && w.stride_w == 1 && a.dy.height <= padded_height(a) &&
               a.dy.width <= padded_width(a) && 3 * padded_height(a) * padded_width(a) <= 4 * a.dy.pixels();
    }

    // Zeros after the last image: its padding, and the elements that its last step reads past it.
    int64_t behind(const GradScores &a) const {
        const Window &w = a.window;
        const int64_t reach = (w.kernel_h - 1) * w.dilation_h * row + (w.kernel_w - 1) * w.dilation_w * line;
        return greatest(reach, w.padding_h * row + w.padding_w * line) + TILE;
    }

    uint32_t *tile_of(int64_t r) const {
        return dy + (r / group_rows * group_tiles + r % group_rows / 16) * steps * PLANES * TILE;
    }

    void write_x() {
        const int64_t above = a.window.padding_h, before = a.window.padding_w * line;
        parallel_for(threads, ceil_div(a.x.channels, 16) * PLANES, [&](int64_t i) {
            uint32_t *at = x + i * plane;
            const auto clear = [&](int64_t first, int64_t count) { memset(at + first, 0, size_t(count) * sizeof *at); };
            for (int64_t r = 0; r < bundles * padded_height(a) && above + before > 0; ++r)
                clear(r * row, r % padded_height(a) < above ? row : before);
            clear(bundles * image, plane - bundles * image);
        });
        const int64_t at_once = pixels_at_once(a.x), pieces = ceil_div(a.x.pixels(), at_once);
        parallel_for(threads, bundles * pieces, [&](int64_t piece) {
            const int64_t bundle = piece / pieces, from = piece % pieces * at_once;
            const int64_t end = least(from + at_once, a.x.pixels());
            uint32_t *out = x + bundle * image + above * row + before;
            const __mmask16 inside = __mmask16((1u << line) - 1);
            const auto write = [&](const F32 elements[SAMPLES], const Position &p, int64_t c) {
                __m512i dwords[PLANES];
                number.x_dwords(elements, c, dwords);
                uint32_t *to = out + c / 16 * block + p.h * row + p.w * line;
                for (int d = 0; d < PLANES; ++d) {
                    if (in_place)
                        store_parted(to + d * plane, c % WORD, dwords[d]);
                    else
                        _mm512_mask_storeu_epi32(to + d * plane, inside, dwords[d]);
                }
            };
            if (a.x.channels_last) {
                Position p(from, a.x.height, a.x.width);
                for (int64_t i = from; i < end; ++i, p.next())
                    for (int64_t c = 0; c < a.x.channels; c += 16) {
                        F32 elements[SAMPLES];
                        read_elements(a.x, bundle, i, c, a.x.channels, elements);
                        write(elements, p, c);
                    }
            } else {
                for (int64_t c = 0; c < a.x.channels; c += 16) {
                    Position p(from, a.x.height, a.x.width);
                    for (int64_t first = from; first < end; first += STEP) {
                        const int64_t n = least(end - first, STEP);
                        F32 squares[SAMPLES][STEP];
                        read_squares(a.x, bundle, first, n, c, a.x.channels, squares);
                        for (int64_t i = 0; i < n; ++i, p.next()) {
                            F32 elements[SAMPLES];
                            for (int64_t s = 0; s < SAMPLES; ++s) elements[s] = squares[s][i];
                            write(elements, p, c);
                        }
                    }
                }
            }
        });
    }

    // Stores sixteen channels of a word: the even channels in the word's first half, the odd channels in its second.
    // `to`: the place of channels c to c + 15 in their own order.
    SLT_INLINE void store_parted(uint32_t *to, int64_t c, __m512i dwords) const {
        __m512i even, odd;
        part(dwords, dwords, even, odd);
        uint32_t *first = to - c / 16 * block + c / 2;
        store(first, _mm512_castsi512_si256(even));
        store(first + block, _mm512_castsi512_si256(odd));
    }

    // Tiles of 16 rows x 16 pixels: [tile of rows][step][plane][row][pixel]; missing rows and pixels are zeros.
    void write_dy() {
        const int64_t at_once = pixels_at_once(a.dy) / STEP;  // steps
        parallel_for(threads, ceil_div(steps, at_once), [&](int64_t piece) {
            const int64_t end = least((piece + 1) * at_once, steps);
            for (int64_t first = 0; first < a.source.rows; first += group_rows)
                for (int64_t r = first; r < first + group_rows; r += 16)
                    for (int64_t step = piece * at_once; step < end; ++step)
                        write_tile(r, first + group_rows, step, tile_of(r) + step * PLANES * TILE);
        });
    }

    void write_tile(int64_t r, int64_t end, int64_t step, uint32_t *out) const {
        F32 elements[STEP][SAMPLES] = {};
        for (int64_t i = 0, n; i < STEP && step * STEP + i < pixels; i += n) {  // runs of pixels of one bundle
            const int64_t pixel = step * STEP + i, bundle = pixel / (height * width);
            const int64_t h = pixel / width % height, w = pixel % width, first = h * a.dy.width + w;
            const bool exists = h < a.dy.height && w < a.dy.width;
            n = least(STEP - i, !exists ? width - w : width == a.dy.width ? a.dy.pixels() - first : a.dy.width - w);
            if (!exists) continue;
            if (a.dy.channels_last) {
                for (int64_t j = 0; j < n; ++j) read_elements(a.dy, bundle, first + j, r, end, elements[i + j]);
                continue;
            }
            F32 squares[SAMPLES][STEP];
            read_squares(a.dy, bundle, first, n, r, end, squares);
            for (int64_t j = 0; j < n; ++j)
                for (int64_t s = 0; s < SAMPLES; ++s) elements[i + j][s] = squares[s][j];
        }
        S32 planes[PLANES][STEP];
        for (int64_t i = 0; i < STEP; ++i) {
            __m512i dwords[PLANES];
            number.dy_dwords(elements[i], r, dwords);
            for (int d = 0; d < PLANES; ++d) planes[d][i] = (S32)dwords[d];
        }
        for (int d = 0; d < PLANES; ++d) {
            transpose(planes[d]);
            for (int64_t i = 0; i < STEP; ++i) store(out + d * TILE + i * 16, planes[d][i]);
        }
    }

    // Sixteen channels of a pixel of a bundle; samples that do not exist are zeros.
    SLT_INLINE void read_elements(const Images &from, int64_t bundle, int64_t pixel, int64_t c, int64_t end,
                                  F32 out[SAMPLES]) const {
        for (int64_t s = 0; s < SAMPLES; ++s) {
            const int64_t sample = bundle * SAMPLES + s;
            out[s] = sample < from.samples ? read_pixel(from, sample, pixel, c, end) : F32{};
        }
    }

    // The same of `n` pixels from `first` on, of NCHW images.
    static void read_squares(const Images &from, int64_t bundle, int64_t first, int64_t n, int64_t c, int64_t end,
                             F32 out[SAMPLES][STEP]) {
        for (int64_t s = 0; s < SAMPLES; ++s) {
            const int64_t sample = bundle * SAMPLES + s;
            if (sample < from.samples)
                read_pixels(from, sample, first, n, c, end, out[s]);
            else
                memset(out[s], 0, sizeof out[s]);
        }
    }

    // Makes the panel of `count` pixels from `first` on, whole steps; pixels past the last are zeros. Columns of a word
    // are in bit order: the even k, then the odd k.
    void copy_panel(int64_t first, int64_t count, const Columns &columns, uint32_t *panel) const {
        const int64_t exist = least(pixels - first, count);
        int64_t at[DEPTH * STEP];
        Position p(first, a.dy.height, a.dy.width);
        for (int64_t i = 0; i < exist; ++i, p.next())
            at[i] = p.image * image + p.h * a.window.stride_h * row + p.w * a.window.stride_w * line;
        if (line == a.x.channels && a.window.groups == 1 && a.window.dilation_w == 1)
            return copy_runs(at, exist, count, columns, panel);
        for (int64_t w = 0; w < WORDS_PER_CALL; ++w, panel += 2 * STRIP) {
            alignas(64) int32_t offset[WORD];
            for (int64_t i = 0, c = w * WORD; i < WORD; ++i, ++c)
                offset[i] = int32_t(columns.channel[c] / 16 * block + columns.h[c] * row + columns.w[c] * line +
                                    columns.channel[c] % 16);
            const bool together = columns.together[w] && offset[0] % 16 == 0;
            const __m512i low_offset = load<__m512i>(offset), high_offset = load<__m512i>(offset + 16);
            const __mmask16 low_valid = valid(columns, 2 * w), high_valid = valid(columns, 2 * w + 1);
            for (int64_t d = 0; d < PLANES; ++d)
                for (int64_t i = 0; i < count; ++i) {
                    __m512i low = _mm512_setzero_si512(), high = low;
                    if (i < exist) {
                        const uint32_t *from = x + at[i] + d * plane;
                        if (together) {
                            part(load<__m512i>(from + offset[0]), load<__m512i>(from + offset[0] + block), low, high);
                        } else {
                            low = _mm512_mask_i32gather_epi32(low, low_valid, low_offset, from, 4);
                            high = _mm512_mask_i32gather_epi32(high, high_valid, high_offset, from, 4);
                        }
                    }
                    uint32_t *out = panel + (d * DEPTH + i / STEP) * TILE + i % STEP * 16;
                    store(out, low);
                    store(out + STRIP, high);
                }
        }
    }

    // The same for neighbouring pixels of few channels, as those of an RGB image: a row of the kernel's taps is one
    // run, and a pixel's columns are first copied run by run.
    void copy_runs(const int64_t *at, int64_t exist, int64_t count, const Columns &columns, uint32_t *panel) const {
        const int64_t run = a.window.kernel_w * line;
        int32_t from[CALL], to[CALL];  // chunks of 16 dwords; dwords past the end of a run are overwritten by the next
        int chunks = 0;
        const int64_t end = least(columns.first + CALL, a.source.fan);
        for (int64_t k = greatest(columns.first, 0), left; k < end; k += least(left, 16)) {
            left = run - k % run;
            from[chunks] = int32_t(k / run * a.window.dilation_h * row + k % run);
            to[chunks++] = int32_t(k - columns.first);
        }
        __mmask16 inside[CALL / 16];
        for (int h = 0; h < CALL / 16; ++h) inside[h] = valid(columns, h);
        for (int64_t s = 0; s < count; s += STEP)
            for (int64_t d = 0; d < PLANES; ++d) {
                alignas(64) uint32_t pixels_columns[STEP][CALL + 16];
                for (int64_t i = 0; i < STEP && s + i < exist; ++i)
                    for (int c = 0; c < chunks; ++c)
                        store(pixels_columns[i] + to[c], load<U32>(x + at[s + i] + d * plane + from[c]));
                uint32_t *out = panel + (d * DEPTH + s / STEP) * TILE;
                for (int64_t w = 0; w < WORDS_PER_CALL; ++w, out += 2 * STRIP)
                    for (int64_t i = 0; i < STEP; ++i) {
                        const uint32_t *word = pixels_columns[i] + w * WORD;
                        __m512i low = _mm512_setzero_si512(), high = low;
                        if (s + i < exist) part(load<__m512i>(word), load<__m512i>(word + 16), low, high);
                        store(out + i * 16, _mm512_maskz_mov_epi32(inside[2 * w], low));
                        store(out + i * 16 + STRIP, _mm512_maskz_mov_epi32(inside[2 * w + 1], high));
                    }
            }
    }

    // The even and the odd columns of a word.
    static SLT_INLINE void part(__m512i first, __m512i second, __m512i &even, __m512i &odd) {
        const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        even = _mm512_permutex2var_epi32(first, evens, second);
        odd = _mm512_permutex2var_epi32(first, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), second);
    }

    // A bit for each of sixteen columns that is valid.
    static __mmask16 valid(const Columns &columns, int64_t half_word) {
        uint32_t mask = 0;
        for (int i = 0; i < 16; ++i) mask |= uint32_t(columns.valid[half_word * 16 + i]) << i;
        return __mmask16(mask);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
