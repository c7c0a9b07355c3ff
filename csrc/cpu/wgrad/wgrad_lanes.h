// Sums of the weight gradient of a convolution of few weights per row, with rows in the lanes: for each k and row, the
// products of dy and of the numbers of x that k reads. Either each row has its own input (a depthwise layer), so that
// pixels of x are registers too, or all rows have the same inputs, whose numbers are broadcast.
//
// Float32 channels-last images are read in place. Of others, some rows at a time are copied, one register a pixel.
// Taps that would read outside the image are left out, so nothing is padded.
#pragma once

#include "cpu/layout/pixels.h"
#include "cpu/machine/fma.h"
#include "cpu/machine/scratch.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

template <bool SAME_INPUTS>
class LaneSums {
  public:
    explicit LaneSums(const GradScores &a)
        : a(a),
          inputs(SAME_INPUTS ? a.x.channels : 1),
          taps(taps_of(a.window) * inputs),
          rows(least(a.dy.height, greatest(MOST_ADDED / a.dy.width, 1))),
          all_taps(taps) {
        for (int64_t t = 0; t < taps; ++t) {
            const TapOffset offset = tap_offset(a.window, t / inputs);
            all_taps[t] = {t, offset.down - a.window.padding_h, offset.right - a.window.padding_w, t % inputs};
        }
    }

    // Of samples [first, end) and rows [c, c + LANES): [tap][lane].
    void operator()(int64_t first, int64_t end, int64_t c, double *all) const {
        const bool x_in_place = SAME_INPUTS ? a.x.data.type == Type::FLOAT32 : is_in_place(a.x, c);
        const bool in_place = x_in_place && is_in_place(a.dy, c);
        const int64_t most = (rows - 1) * a.window.stride_h + (a.window.kernel_h - 1) * a.window.dilation_h + 1;
        const Scratch<float> x_copy(in_place ? 0
                                             : least(most, a.x.height) * a.x.width * (SAME_INPUTS ? inputs : LANES));
        const Scratch<float> dy_copy(in_place ? 0 : rows * a.dy.width * LANES);
        const Scratch<Tap> some(taps);
        const Scratch<F32> sums(taps);
        memset(all, 0, size_t(taps * LANES) * sizeof(double));
        for (int64_t t = 0; t < taps; ++t) sums[t] = F32{};
        int64_t added = 0;  // products in each of the sums
        const auto join = [&] {
            for (int64_t t = 0; t < taps; ++t) {
                for (int l = 0; l < LANES; ++l) all[t * LANES + l] += sums[t][l];
                sums[t] = F32{};
            }
            added = 0;
        };
        for (int64_t sample = first; sample < end; ++sample)
            for (int64_t top = 0; top < a.dy.height; top += rows) {
                const int64_t bottom = least(top + rows, a.dy.height);
                const int64_t x_top = greatest(top * a.window.stride_h + all_taps[0].down, 0);
                const int64_t x_bottom =
                    least((bottom - 1) * a.window.stride_h + all_taps[taps - 1].down + 1, a.x.height);
                const Lanes x = in_place      ? lanes_of(a.x, sample, SAME_INPUTS ? 0 : c)
                                : SAME_INPUTS ? copy_inputs(sample, x_top, x_bottom, x_copy)
                                              : copy(a.x, sample, c, x_top, x_bottom, x_copy);
                const Lanes dy = in_place ? lanes_of(a.dy, sample, c) : copy(a.dy, sample, c, top, bottom, dy_copy);
                for (int64_t left = 0; left < a.dy.width; left += MOST_ADDED) {  // parts of rows, if they are long
                    const int64_t right = least(left + MOST_ADDED, a.dy.width), more = (bottom - top) * (right - left);
                    if (added + more > MOST_ADDED) join();
                    add_rows(x, dy, top, bottom, left, right, some, sums);
                    added += more;
                }
            }
        join();
    }

  private:
    static constexpr int64_t MOST_ADDED = 256;  // products in float32
    static constexpr int TOGETHER = 9;  // taps

    // A tap of the kernel, and its input of those that all rows have.
    struct Tap {
        int64_t number, down, right, input;
    };

    // Channels [c, c + LANES) of a sample, or its inputs of all rows; pixel (h, w) is at h * row + w * pixel.
    struct Lanes {
        const float *data;
        int64_t row, pixel;
    };

    const GradScores &a;
    const int64_t inputs;      // that all rows have
    const int64_t taps, rows;  // of a row of the weight; rows of dy whose products are added in float32
    const Scratch<Tap> all_taps;

    static bool is_in_place(const Images &x, int64_t c) {
        return x.channels_last && x.data.type == Type::FLOAT32 && c + LANES <= x.channels;
    }

    static Lanes lanes_of(const Images &x, int64_t sample, int64_t c) {
        const Input at = x.data + (sample * x.pixels() * x.channels + c);
        return {reinterpret_cast<const float *>(at.data), x.width * x.channels, x.channels};
    }

    // Of rows [top, bottom).
    static Lanes copy(const Images &x, int64_t sample, int64_t c, int64_t top, int64_t bottom, float *out) {
        F32 pixels[LANES];
        for (int64_t p = top * x.width; p < bottom * x.width; p += LANES) {
            const int64_t n = least(bottom * x.width - p, LANES);
            read_pixels(x, sample, p, n, c, x.channels, pixels);
            float *to = out + (p - top * x.width) * LANES;
            for (int64_t i = 0; i < n; ++i) store(to + i * LANES, pixels[i]);
        }
        return {out - top * x.width * LANES, x.width * LANES, LANES};
    }

    // Of rows [top, bottom).
    Lanes copy_inputs(int64_t sample, int64_t top, int64_t bottom, float *out) const {
        const int64_t row = a.x.width * inputs;
        read_floats(a.x.data + (sample * a.x.height + top) * row, greatest(bottom - top, 0) * row, out);
        return {out - top * row, row, inputs};
    }

    static int64_t offset_of(const Tap &tap, const Lanes &x) {
        return tap.down * x.row + tap.right * x.pixel + tap.input;
    }

    // Numbers of x, or one of them in all lanes.
    static SLT_INLINE F32 numbers_at(const float *at) {
        if constexpr (SAME_INPUTS) return *at - F32{};
        return load<F32>(at);
    }

    // The taps that reach a row of pixels, and the columns of dy, [first, end) of [left, right), for which all of them
    // reach a pixel.
    struct Reach {
        const Tap *taps;
        int64_t count, first, end;
    };

    // Of the row of dy whose first tap reads row h of x.
    Reach reach(int64_t h, int64_t left, int64_t right, Tap *out) const {
        const int64_t stride = a.window.stride_w;
        int64_t count = 0, first = left, end = right;
        for (int64_t t = 0; t < taps; ++t) {
            const Tap tap = all_taps[t];
            if (h + tap.down < 0 || h + tap.down >= a.x.height) continue;
            out[count++] = tap;
            first = greatest(first, ceil_div(-tap.right, stride));
            end = least(end, ceil_div(a.x.width - tap.right, stride));
        }
        first = least(first, right);
        return {out, count, first, greatest(first, end)};
    }

    // Adds columns [left, right) of rows [top, bottom) of dy.
    void add_rows(const Lanes &x, const Lanes &dy, int64_t top, int64_t bottom, int64_t left, int64_t right, Tap *some,
                  F32 *sums) const {
        const int64_t highest = all_taps[0].down, lowest = all_taps[taps - 1].down;
        Reach row = {nullptr, 0, 0, 0};
        for (int64_t i = top; i < bottom; ++i) {
            const int64_t h = i * a.window.stride_h;
            const bool whole = h + highest >= 0 && h + lowest < a.x.height;
            if (!whole || row.count < taps) row = reach(h, left, right, some);
            const float *from = x.data + h * x.row, *of = dy.data + i * dy.row;
            add_edges(row, from, x, of, dy.pixel, left, row.first, sums);
            add_edges(row, from, x, of, dy.pixel, row.end, right, sums);
            if (row.first == row.end) continue;
            int64_t t = 0;
            for (; t + TOGETHER <= row.count; t += TOGETHER) add_middle<TOGETHER>(row, t, from, x, of, dy.pixel, sums);
            for (; t + 3 <= row.count; t += 3) add_middle<3>(row, t, from, x, of, dy.pixel, sums);
            for (; t < row.count; ++t) add_middle<1>(row, t, from, x, of, dy.pixel, sums);
        }
    }

    // Columns [left, right), where a tap may read outside the image.
    void add_edges(const Reach &row, const float *from, const Lanes &x, const float *of, int64_t dy_pixel, int64_t left,
                   int64_t right, F32 *sums) const {
        if (left == right) return;
        const int64_t stride = a.window.stride_w;
        for (int64_t t = 0; t < row.count; ++t) {
            const Tap &tap = row.taps[t];
            F32 sum = sums[tap.number];
            for (int64_t j = left; j < right; ++j) {
                const int64_t w = j * stride + tap.right;
                if (w < 0 || w >= a.x.width) continue;
                const F32 v = numbers_at(from + offset_of(tap, x) + j * stride * x.pixel);
                sum = multiply_add(load<F32>(of + j * dy_pixel), v, sum);
            }
            sums[tap.number] = sum;
        }
    }

    // What the position below will read first: the hardware's prefetcher does not follow pixels so far apart.
    SLT_INLINE void prefetch_next_row(const float *from, const Lanes &x, const float *dy) const {
        __builtin_prefetch(dy);
        if (SAME_INPUTS) return;  // its pixels are neighbours
        const float *row = from + (all_taps[taps - 1].down + 1) * x.row;
        for (int64_t h = 0; h < a.window.stride_h; ++h, row += x.row)
            for (int64_t w = 0; w < a.window.stride_w; ++w) __builtin_prefetch(row + w * x.pixel);
    }

    // N taps from number t on, for the columns that all taps of the row reach.
    template <int N>
    void add_middle(const Reach &row, int64_t t, const float *from, const Lanes &x, const float *of, int64_t dy_pixel,
                    F32 *sums) const {
        const int64_t step = a.window.stride_w * x.pixel;
        F32 sum[N];
        int64_t offsets[N];
        SLT_UNROLL for (int n = 0; n < N; ++n) {
            const Tap &tap = row.taps[t + n];
            sum[n] = sums[tap.number];
            offsets[n] = offset_of(tap, x);
        }
        from += row.first * step;
        of += row.first * dy_pixel;
        for (int64_t j = row.first; j < row.end; ++j, from += step, of += dy_pixel) {
            const F32 v = load<F32>(of);
            if (t == 0) prefetch_next_row(from, x, of + a.dy.width * dy_pixel);
            SLT_UNROLL for (int n = 0; n < N; ++n) sum[n] = multiply_add(v, numbers_at(from + offsets[n]), sum[n]);
        }
        SLT_UNROLL for (int n = 0; n < N; ++n) sums[row.taps[t + n].number] = sum[n];
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
