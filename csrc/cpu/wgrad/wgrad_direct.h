// The weight gradient where few weights are free: in depthwise convolutions, and in those of few channels.
//
// Lanes are neighbouring pixels, in the planes of x and of dy (channel_planes.h). The gradient of a free weight is the
// product of the plane of its row and the plane of its channel, shifted by its tap; frozen weights cost nothing. Lanes
// add up to 256 products in float32, and the rest is added in double.
//
// In depthwise convolutions of channels-last images, and in those with strides, lanes are rows (wgrad_lanes.h); also
// where one channel is the input of all rows.
//
// A piece of work is some samples of a block of groups. The number of pieces does not depend on the number of threads,
// because sums must not.
#pragma once

#include "cpu/layout/channel_planes.h"
#include "cpu/machine/fma.h"
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "cpu/weights/materialize.h"
#include "cpu/wgrad/wgrad_lanes.h"

namespace slt::SLT_ISA {
namespace {

class DirectGradient {
  public:
    DirectGradient(const GradScores &a, int threads)
        : a(a),
          threads(threads),
          taps(taps_of(a.window)),
          inputs(a.source.fan / taps),
          group_rows(a.source.rows / a.window.groups),
          x_planes(a.x, a.window.stride_h, a.window.stride_w),
          dy_planes(a.dy, 1, 1),
          same_inputs(sharing_pays()),
          own_inputs(inputs == 1 && group_rows == 1 &&
                     (a.window.stride_w > 1 || (a.x.channels_last && a.dy.channels_last))) {
        if (greatest(a.window.stride_h, a.window.stride_w) > ChannelPlanes::MOST_STRIDE) return;
        x_planes.include_grid(a.dy.height, a.dy.width);
        for (int64_t t = 0; t < taps; ++t) x_planes.include_tap(down(t), right(t), a.dy.width);
        dy_planes.include_grid(a.dy.height, x_planes.pitch);
        dy_planes.include_tap(0, 0, x_planes.pitch);
    }

    // Whether it is faster than a contraction of matrices.
    bool pays() const {
        if (same_inputs || own_inputs) return true;
        const int64_t free = a.offsets[a.source.rows];
        if (greatest(a.window.stride_h, a.window.stride_w) > ChannelPlanes::MOST_STRIDE) return false;
        if (inputs > 1 && (free > MOST_FREE * a.source.rows || a.dy.pixels() < 4 * LANES)) return false;
        return x_planes.pays() && a.x.pixels() > 1 && x_planes.size(1) * x_planes.count * inputs <= BYTES / 2;
    }

    void run() const {
        const int64_t free = a.offsets[a.source.rows];
        const Scratch<int32_t> columns(free);  // k of each free weight
        find_free(columns);
        if (own_inputs)
            add_lanes<false>(columns);
        else if (same_inputs)
            add_lanes<true>(columns);
        else
            add_planes(columns);
    }

  private:
    void add_planes(const int32_t *columns) const {
        const int64_t free = a.offsets[a.source.rows];
        // Rows of pixels of a piece, and its groups.
        const int64_t group_planes = inputs * x_planes.count;
        const bool together = a.x.channels_last || a.dy.channels_last;
        const int64_t least_groups = together ? ceil_div(LANES, least(inputs, group_rows)) : 1;
        int64_t rows = least(a.dy.height, greatest(MOST_VECTORS_ADDED * LANES / x_planes.pitch, 1));
        while (rows > 1 && x_planes.size(rows) * group_planes * least_groups > BYTES / 4) rows = (rows + 1) / 2;
        const int64_t groups = least(least_groups, a.window.groups), blocks = ceil_div(a.window.groups, groups);
        const int64_t chunks = least(ceil_div(16, blocks), a.dy.samples), chunk = ceil_div(a.dy.samples, chunks);

        const Scratch<int32_t> offsets(free);
        const int64_t size = x_planes.size(rows);
        for (int64_t i = 0; i < free; ++i) {
            const int64_t tap = columns[i] / inputs, input = columns[i] % inputs;
            offsets[i] = int32_t(input * x_planes.count * size + x_planes.offset(down(tap), right(tap), size));
        }
        const Scratch<double> sums(chunks * free);
        parallel_for(threads, chunks * blocks, [&](int64_t piece) {
            const int64_t group = piece % blocks * groups, end = least(group + groups, a.window.groups);
            const int64_t first = piece / blocks * chunk, samples = least(chunk, a.dy.samples - first);
            add_samples(first, samples, group, end, rows, offsets, sums + piece / blocks * free);
        });
        finish(columns, sums, chunks);
    }

    template <bool SAME_INPUTS>
    void add_lanes(const int32_t *columns) const {
        const int64_t free = a.offsets[a.source.rows], blocks = ceil_div(a.source.rows, LANES);
        const int64_t chunks = least(ceil_div(16, blocks), a.dy.samples), chunk = ceil_div(a.dy.samples, chunks);
        const LaneSums<SAME_INPUTS> lane_sums(a);
        const Scratch<double> sums(chunks * free);
        parallel_for(threads, chunks * blocks, [&](int64_t piece) {
            const int64_t first = piece / blocks * chunk, c = piece % blocks * LANES;
            const Scratch<double> all((SAME_INPUTS ? a.source.fan : taps) * LANES);
            lane_sums(first, least(first + chunk, a.dy.samples), c, all);
            for (int64_t r = c; r < least(c + LANES, a.source.rows); ++r)
                for (int64_t i = a.offsets[r]; i < a.offsets[r + 1]; ++i)
                    sums[piece / blocks * free + i] = all[columns[i] * LANES + r - c];
        });
        finish(columns, sums, chunks);
    }

    static constexpr int64_t BYTES = 1 << 20, MOST_VECTORS_ADDED = 256;
#if defined(SLT_AMX)
    static constexpr int64_t MOST_FREE = 48;
#else
    static constexpr int64_t MOST_FREE = 96;
#endif

    const GradScores &a;
    const int threads;
    const int64_t taps, inputs, group_rows;
    ChannelPlanes x_planes, dy_planes;
    // Whether rows are lanes, and all have the same inputs or each has its own.
    const bool same_inputs, own_inputs;

    // Whether lanes that are rows with the same inputs are faster: they multiply frozen weights too, but transpose
    // nothing. The bounds are measured.
    bool sharing_pays() const {
        const int64_t rows = a.source.rows, free = a.offsets[rows];
#if defined(SLT_AMX)
        if (inputs > 1 && free > MOST_FREE * rows) return false;  // tiles are faster
#endif
        if (a.window.groups > 1 || a.source.fan > 160 || a.dy.pixels() < 16) return false;
        if (!a.dy.channels_last || (!a.x.channels_last && inputs > 1)) return false;
        const bool in_place = a.x.data.type == Type::FLOAT32 && a.dy.data.type == Type::FLOAT32;
        return (a.source.fan - (in_place ? 40 : 12)) * rows <= (in_place ? 7 * free / 4 : 2 * free);
    }

    int64_t down(int64_t tap) const { return tap_offset(a.window, tap).down - a.window.padding_h; }
    int64_t right(int64_t tap) const { return tap_offset(a.window, tap).right - a.window.padding_w; }

    // The columns of the free weights, in the order of their enumeration.
    void find_free(int32_t *columns) const {
        const Source &s = a.source;
        const Pattern pattern(s);
        parallel_for(threads, ceil_div(s.rows, LANES), [&](int64_t piece) {
            const int64_t row = piece * LANES, lanes = least(s.rows - row, LANES);
            int64_t next[LANES];
            for (int64_t l = 0; l < lanes; ++l) next[l] = a.offsets[row + l];
            for (int64_t w = 0; w < words_of(s); ++w) {
                U32 free, locked;
                pattern(row, w, free, locked);
                for (int64_t l = 0; l < lanes; ++l)
                    for (uint32_t bits = free[l]; bits; bits &= bits - 1)
                        columns[next[l]++] = int32_t(w * WORD + k_of_bit(__builtin_ctz(bits)));
            }
        });
    }

    // The sums of some samples, for groups [group, end).
    void add_samples(int64_t first, int64_t samples, int64_t group, int64_t end, int64_t rows, const int32_t *offsets,
                     double *sums) const {
        const int64_t group_size = inputs * x_planes.count * x_planes.size(rows), dy_size = dy_planes.size(rows);
        const int64_t block = a.dy.channels_last ? LANES : 1;
        const int64_t first_row = group * group_rows, end_row = end * group_rows;
        int64_t longest = 0;
        for (int64_t r = first_row; r < end_row; ++r) longest = greatest(longest, a.offsets[r + 1] - a.offsets[r]);
        for (int64_t i = a.offsets[first_row]; i < a.offsets[end_row]; ++i) sums[i] = 0;
        const auto convert = [](F32 v, float *at) { store(at, v); };
        const Scratch<float> x((end - group) * group_size), dy(block * dy_size);
        const Scratch<float> lanes(ceil_div(longest, LANES) * LANES * LANES);
        for (int64_t sample = first; sample < first + samples; ++sample)
            for (int64_t top = 0; top < a.dy.height; top += rows) {
                const int64_t count = (least(rows, a.dy.height - top) - 1) * x_planes.pitch + a.dy.width;
                x_planes.write<float>(sample, group * inputs, (end - group) * inputs, top, rows, convert, x.data);
                for (int64_t r = first_row; r < end_row; ++r) {
                    const int64_t in_block = (r - first_row) % block;
                    if (in_block == 0)
                        dy_planes.write<float>(sample, r, least(block, end_row - r), top, rows, convert, dy.data);
                    const int64_t from = a.offsets[r], free = a.offsets[r + 1] - from;
                    const float *of = dy + in_block * dy_size, *by = x + (r / group_rows - group) * group_size;
                    for (int64_t at = 0; at < count; at += MOST_VECTORS_ADDED * LANES)  // parts of a row, if it is long
                        add_row(of + at, by + at, least(count - at, MOST_VECTORS_ADDED * LANES), offsets + from, free,
                                lanes, sums + from);
                }
            }
    }

    // Adds the products of a plane of dy and shifted planes of x.
    static void add_row(const float *dy, const float *x, int64_t count, const int32_t *offsets, int64_t free,
                        float *lanes, double *sums) {
        int64_t i = 0;
        for (; i + 8 <= free; i += 8) dots<8>(dy, x, count, offsets + i, lanes + i * LANES);
        for (; i + 4 <= free; i += 4) dots<4>(dy, x, count, offsets + i, lanes + i * LANES);
        for (; i < free; ++i) dots<1>(dy, x, count, offsets + i, lanes + i * LANES);
        for (i = 0; i < free; i += LANES) {
            S32 square[LANES];
            for (int64_t n = 0; n < LANES; ++n) square[n] = i + n < free ? load<S32>(lanes + (i + n) * LANES) : S32{};
            transpose(square);
            F32 sum = (F32)square[0];
            for (int64_t n = 1; n < LANES; ++n) sum += (F32)square[n];
            for (int64_t n = 0; n < least(free - i, LANES); ++n) sums[i + n] += sum[n];
        }
    }

    // N products, in lanes. Few products have several sums each, because an addition must not wait for the one before.
    template <int N>
    static void dots(const float *dy, const float *x, int64_t count, const int32_t *offsets, float *lanes) {
        constexpr int APART = 8 / N;
        F32 sum[APART][N] = {};
        int64_t i = 0;
        for (; i + (APART - 1) * LANES < count; i += APART * LANES)
            SLT_UNROLL for (int p = 0; p < APART; ++p) {
                const F32 of = load<F32>(dy + i + p * LANES);
                SLT_UNROLL for (int n = 0; n < N; ++n)
                    sum[p][n] = multiply_add(of, load<F32>(x + offsets[n] + i + p * LANES), sum[p][n]);
            }
        for (; i < count; i += LANES) {
            const F32 of = load<F32>(dy + i);
            SLT_UNROLL for (int n = 0; n < N; ++n)
                sum[0][n] = multiply_add(of, load<F32>(x + offsets[n] + i), sum[0][n]);
        }
        SLT_UNROLL for (int n = 0; n < N; ++n) {
            SLT_UNROLL for (int p = 1; p < APART; ++p) sum[0][n] += sum[p][n];
            store(lanes + n * LANES, sum[0][n]);
        }
    }

    // Joins the sums of the chunks; times v, the scale, and the sign of the score.
    void finish(const int32_t *columns, const double *sums, int64_t chunks) const {
        const Source &s = a.source;
        const int64_t free = a.offsets[s.rows], words = words_of(s);
        const Scratch<uint32_t> all(s.rows * words);
        memset(all, 0xFF, size_t(s.rows * words) * sizeof(uint32_t));
        const Weights weights(s, all);
        const Scratch<int8_t> values(s.rows * s.fan);
        parallel_for(threads, ceil_div(s.rows, LANES), [&](int64_t piece) {
            materialize_rows(weights, piece * LANES, values);
            for (int64_t r = piece * LANES; r < least((piece + 1) * LANES, s.rows); ++r)
                for (int64_t i = a.offsets[r]; i < a.offsets[r + 1]; ++i) {
                    double sum = 0;
                    for (int64_t c = 0; c < chunks; ++c) sum += sums[c * free + i];
                    const float grad = float(sum) * values[r * s.fan + columns[i]] * a.scale;
                    a.out[i] = a.scores[i] < 0 ? -grad : grad;
                }
        });
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
