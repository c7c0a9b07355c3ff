// The weight gradient in vector registers: float32 on any processor, bfloat16 if there are dot products of pairs.
//
// A dword of an operand is one pixel of a few samples (`SAMPLES` of the `Number`), so that a tap of the kernel shifts
// whole dwords. Both operands are converted to dwords once. x is [channel / 32][samples / SAMPLES][height][width][32]
// with zeros around each image and the channels of a word in bit order, so that a word of columns is read in place for
// every stride (`in_place`). dy is in strips as high as the register tile. If words of columns are not words of
// channels, a pixel of x has all its channels together, and a block first copies its panel of x.
//
// Register blocking: MR rows by two registers, 12 x 32 in 24 of AVX-512's 32 registers, 6 x 16 in 12 of AVX2's 16, and
// 8 x 8 in 16 of AArch64's 32, where gcc keeps broadcasts in registers too. A step is 2 loads and MR broadcasts for 2
// MR multiply-adds. With AVX-512, DEPTH steps of a word of x (32 KB) serve all
// rows of a block; their dy (96 KB), the sums (192 KB), and the scores and gradients that are read and written after
// them (384 KB) stay in L2. Sums of DEPTH steps are added in float32, so the error grows with the square root of DEPTH
// and of the number of such sums: 2e-7 at 256 pixels of float32, 4e-7 at 10^5.
#pragma once

#include "cpu/machine/fma.h"
#include "cpu/wgrad/wgrad.h"

namespace slt::SLT_ISA {
namespace {

class Floats {
  public:
    static constexpr int64_t SAMPLES = 1;

    static SLT_INLINE U32 dwords(const F32 elements[SAMPLES]) { return (U32)elements[0]; }

    static SLT_INLINE F32 multiply_add(U32 a, U32 b, F32 sum) {
        return slt::SLT_ISA::multiply_add((F32)a, (F32)b, sum);
    }
};

#if defined(__AVX512BF16__)
// Pairs of samples, whose products are exact. Denormal inputs count as zeros.
class Bfloat16Pairs {
  public:
    static constexpr int64_t SAMPLES = 2;

    static SLT_INLINE U32 dwords(const F32 elements[SAMPLES]) {
        return where(splat(0xFFFF0000), (U32)elements[1], (U32)elements[0] >> 16);
    }

    static SLT_INLINE F32 multiply_add(U32 a, U32 b, F32 sum) {
        return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

template <class Number>
class RegisterContraction {
  public:
#if defined(__AVX512F__)
    static constexpr int64_t DEPTH = 256;
    static constexpr int MR = 12;
#else
    static constexpr int64_t DEPTH = 128;  // half of each word, in half of the sets of L1
#if defined(__aarch64__)
    static constexpr int MR = 8;
#else
    static constexpr int MR = 6;
#endif
#endif
    static constexpr int64_t NR = 2 * LANES, ROWS = 96, ROW_STEP = MR, SAMPLES = Number::SAMPLES;
    static constexpr int EIGHT = MR < 8 ? MR : 8;
    static_assert(ROWS % MR == 0 && ROWS % LANES == 0);

    RegisterContraction(const GradScores &a, int threads)
        : a(a),
          threads(threads),
          in_place(words_are_channels(a)),
          bundles(ceil_div(a.dy.samples, SAMPLES)),
          steps(bundles * a.dy.pixels()),
          depth(least(steps, DEPTH)),
          group_rows(a.source.rows / a.window.groups),
          group_height(ceil_div(group_rows, MR) * MR),
          line(in_place ? WORD : a.x.channels),
          row((a.x.width + 2 * a.window.padding_w) * line),
          image((a.x.height + 2 * a.window.padding_h) * row),
          x(ceil_div(a.x.channels, line) * bundles * image),
          dy(ceil_div(steps, depth) * depth * a.window.groups * group_height) {
        write_x();
        write_dy();
    }

    // The memory of one piece of work.
    struct Panels {
        Scratch<uint32_t> x;  // [4 words][DEPTH][32]
        int64_t at[DEPTH];    // where the steps of a block are in a word of x
        int64_t in_panel[DEPTH];

        explicit Panels(int64_t) : x(CALL * DEPTH) {
            for (int64_t d = 0; d < DEPTH; ++d) in_panel[d] = d * WORD;
        }
    };

    // sums [calls][ROWS][128] of the rows from `first_row` on. `between` is called between parts of the product.
    template <class Between>
    void operator()(Panels &panels, int64_t first_row, int64_t rows, const Columns *columns, int calls, float *sums,
                    Between between) const {
        for (int64_t first = 0; first < steps; first += depth) {
            const int64_t count = least(steps - first, depth);
            const uint32_t *strips = strip_of(first_row, first);
            locate(first, count, panels.at);
            for (int i = 0; i < calls; ++i) {
                if (!in_place) copy_panel(columns[i], panels.at, count, panels.x);
                const int64_t *at = in_place ? panels.at : panels.in_panel;
                for (int64_t c = 0; c < CALL; c += WORD) {
                    if (!columns[i].any(c, WORD)) continue;
                    const int of = c + WORD == CALL && i + 1 < calls ? i + 1 : i;
                    const uint32_t *next = word_of(columns[of], (c + WORD) % CALL, panels);
                    multiply(strips, word_of(columns[i], c, panels), next, at, count, rows, first > 0,
                             sums + i * ROWS * CALL + c, between);
                }
            }
        }
    }

  private:
    const GradScores &a;
    const int threads;
    const bool in_place;
    const int64_t bundles;       // of SAMPLES samples
    const int64_t steps, depth;  // all steps; steps of a block
    const int64_t group_rows, group_height;
    const int64_t line, row, image;  // strides of x
    const Scratch<uint32_t> x, dy;

    // Whether each word of columns is one of channels.
    static bool words_are_channels(const GradScores &a) {
        const bool one_tap = taps_of(a.window) == 1;
        return a.x.channels / a.window.groups % WORD == 0 || (one_tap && a.window.groups == 1);
    }

    // An image of one pixel is channels-last in both formats.
    static Images together(Images x) {
        x.channels_last |= x.pixels() == 1;
        return x;
    }

    // N registers of channels from c on, below `end`, of pixels [first, first + n) of a bundle; n <= LANES.
    template <int N>
    static SLT_INLINE void read(const Images &from, int64_t bundle, int64_t first, int64_t n, int64_t c, int64_t end,
                                U32 out[LANES][N]) {
        for (int j = 0; j < N; ++j, c += LANES) {
            F32 squares[SAMPLES][LANES];
            const int64_t exist = c < end ? least(from.samples - bundle * SAMPLES, SAMPLES) : 0;  // samples
            for (int64_t s = 0; s < exist; ++s) read_pixels(from, bundle * SAMPLES + s, first, n, c, end, squares[s]);
            for (int64_t i = 0; i < n; ++i) {
                F32 elements[SAMPLES];
                for (int64_t s = 0; s < SAMPLES; ++s) elements[s] = s < exist ? squares[s][i] : F32{};
                out[i][j] = Number::dwords(elements);
            }
        }
    }

    void write_x() {
        const Images from = together(a.x);
        const bool padded = a.window.padding_h + a.window.padding_w > 0;
        parallel_for(threads, padded ? ceil_div(from.channels, line) * bundles : 0, [&](int64_t i) {
            clear_around(x + i * image, from.height, from.width, a.window.padding_h, a.window.padding_w, line);
        });
        in_pieces(from, [&](int64_t bundle, int64_t end_bundle, int64_t begin, int64_t end) {
            uint32_t *out = x + a.window.padding_h * row + a.window.padding_w * line;
            for (int64_t c = 0; c < from.channels; c += WORD, out += in_place ? bundles * image : WORD)
                for (int64_t b = bundle; b < end_bundle; ++b) {
                    Position p(begin, from.height, from.width);
                    for (int64_t first = begin; first < end; first += LANES) {
                        const int64_t n = least(end - first, LANES);
                        U32 words[LANES][WORD / LANES];
                        read<WORD / LANES>(from, b, first, n, c, from.channels, words);
                        for (int64_t i = 0; i < n; ++i, p.next()) {
                            uint32_t *to = out + b * image + p.h * row + p.w * line;
                            if (in_place)
                                part(words[i], to);
                            else
                                memcpy(to, words[i], size_t(least(from.channels - c, WORD)) * sizeof *to);
                        }
                    }
                }
        });
    }

    // Stores a word of channels in bit order.
    static SLT_INLINE void part(const void *word, uint32_t *to) {
        uint32_t from[WORD];
        memcpy(from, word, sizeof from);
        for (int i = 0; i < WORD / 2; ++i) {
            to[i] = from[2 * i];
            to[WORD / 2 + i] = from[2 * i + 1];
        }
    }

    uint32_t *strip_of(int64_t r, int64_t step) const {
        const int64_t height = a.window.groups * group_height;
        return dy + step / depth * depth * height + (r / group_rows * group_height + r % group_rows) * depth;
    }

    // Strips of MR rows: [block of steps][row / MR][step][MR]; missing rows are zeros.
    void write_dy() {
        const Images from = together(a.dy);
        in_pieces(from, [&](int64_t bundle, int64_t end_bundle, int64_t begin, int64_t end) {
            for (int64_t group = 0; group < a.source.rows; group += group_rows)
                for (int64_t r = group; r < group + group_rows; r += MR)
                    for (int64_t b = bundle; b < end_bundle; ++b)
                        write_strip(from, r, group + group_rows, b, begin, end);
        });
    }

    void write_strip(const Images &from, int64_t r, int64_t end_row, int64_t bundle, int64_t begin, int64_t end) {
        constexpr int N = (MR + LANES - 1) / LANES;
        const int64_t step = bundle * from.pixels() + begin;
        const int64_t to_next_block = (a.window.groups * group_height - MR) * depth;
        int64_t d = step % depth;
        uint32_t *to = strip_of(r, step) + d * MR;
        for (int64_t first = begin; first < end; first += LANES) {
            const int64_t n = least(end - first, LANES);
            U32 rows[LANES][N];
            read<N>(from, bundle, first, n, r, end_row, rows);
            for (int64_t i = 0; i < n; ++i, ++d, to += MR) {
                if (d == depth) {
                    d = 0;
                    to += to_next_block;
                }
                memcpy(to, rows[i], MR * sizeof(uint32_t));
            }
        }
    }

    // Calls body(bundle, end_bundle, pixel, end_pixel) for pieces of images: runs of pixels of NCHW images, a few
    // pixels of channels-last images, so that channels are read nearly in order. Small images are grouped: separately,
    // their channels would be written far apart, often to the same set of a cache.
    template <class Body>
    void in_pieces(const Images &from, const Body &body) const {
        const int64_t at_once = pixels_at_once(from), pieces = ceil_div(from.pixels(), at_once);
        const int64_t few = ceil_div(8, from.pixels()), run = from.channels_last ? 4 : at_once;
        parallel_for(threads, ceil_div(bundles, few) * pieces, [&](int64_t piece) {
            const int64_t bundle = piece / pieces * few, begin = piece % pieces * at_once;
            const int64_t end = least(begin + at_once, from.pixels());
            for (int64_t first = begin; first < end; first += run)
                body(bundle, least(bundle + few, bundles), first, least(first + run, end));
        });
    }

    void locate(int64_t first, int64_t count, int64_t *at) const {
        Position p(first, a.dy.height, a.dy.width);
        for (int64_t d = 0; d < count; ++d, p.next())
            at[d] = p.image * image + p.h * a.window.stride_h * row + p.w * a.window.stride_w * line;
    }

    // Where the word of columns from c on is, at the first step.
    const uint32_t *word_of(const Columns &columns, int64_t c, const Panels &panels) const {
        if (!in_place) return panels.x + c * DEPTH;
        return x + columns.channel[c] / WORD * bundles * image + columns.h[c] * row + columns.w[c] * line;
    }

    // Copies the panel of a call if x is not in words.
    void copy_panel(const Columns &columns, const int64_t *at, int64_t count, uint32_t *panel) const {
        int64_t offset[CALL];
        for (int c = 0; c < CALL; ++c) offset[c] = columns.h[c] * row + columns.w[c] * line + columns.channel[c];
        for (int64_t c = 0; c < CALL; c += WORD, panel += DEPTH * WORD) {
            if (!columns.any(c, WORD)) continue;
            for (int64_t d = 0; d < count; ++d) {
                const uint32_t *from = x + at[d];
                uint32_t *to = panel + d * WORD;
                if (columns.together[c / WORD])
                    part(from + offset[c], to);
                else
                    for (int i = 0; i < WORD; ++i) to[i] = columns.valid[c + i] ? from[offset[c + i]] : 0;
            }
        }
    }

    // The last rows prefetch the word after this one, which may have left the caches since its last use.
    template <class Between>
    void multiply(const uint32_t *strips, const uint32_t *x, const uint32_t *next, const int64_t *at, int64_t count,
                  int64_t rows, bool add, float *sums, Between &between) const {
        for (int64_t c = 0; c < WORD; c += NR)
            for (int64_t r = 0; r < rows; r += MR) {
                const uint32_t *strip = strips + r * depth;
                float *to = sums + r * CALL + c;
                const int64_t left = rows - r;
                const uint32_t *wanted = left <= MR ? next : x;
                const auto products = left > 8 ? tile<MR> : left > 4 ? tile<EIGHT> : left > 1 ? tile<4> : tile<1>;
                products(strip, x + c, wanted + c, at, count, left, add, to);
                between();
                between();
            }
    }

    // Stores the first `rows` rows of an M x NR tile of sums, or adds them.
    template <int M>
    static void tile(const uint32_t *dy, const uint32_t *x, const uint32_t *wanted, const int64_t *at, int64_t count,
                     int64_t rows, bool add, float *sums) {
        F32 acc[M][2] = {};
        for (int64_t d = 0; d < count; ++d, dy += MR) {
            __builtin_prefetch(wanted + at[d], 0, 2);
            __builtin_prefetch(wanted + at[d] + LANES, 0, 2);
            const U32 x0 = load<U32>(x + at[d]), x1 = load<U32>(x + at[d] + LANES);
            SLT_UNROLL for (int m = 0; m < M; ++m) {
                const U32 y = splat(dy[m]);
                acc[m][0] = Number::multiply_add(y, x0, acc[m][0]);
                acc[m][1] = Number::multiply_add(y, x1, acc[m][1]);
            }
        }
        SLT_UNROLL for (int m = 0; m < M; ++m) {
            if (m >= rows) return;
            float *to = sums + m * CALL;
            store(to, add ? load<F32>(to) + acc[m][0] : acc[m][0]);
            store(to + LANES, add ? load<F32>(to + LANES) + acc[m][1] : acc[m][1]);
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
