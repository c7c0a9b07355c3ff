// Direct convolution of depthwise layers whose lanes are channels: strides, dilation and the size of the image change
// addresses only. Channels-last images are read and written as they are, others are transposed in registers.
//
// With signed constants the integers X are split into pairs of int16, so that one instruction multiplies X by a weight
// and adds it; other numbers are floats.
#pragma once

#include <type_traits>

#include "cpu/conv/direct_shape.h"
#include "cpu/layout/channel_lanes.h"
#include "cpu/machine/fma.h"
#include "cpu/weights/materialize.h"

namespace slt::SLT_ISA {
namespace {

// X and weights of -1, 0 or 1 as operands: X = high * 2^14 + low, and a weight v as v * 2^14 and v.
SLT_INLINE S32 lane_operand([[maybe_unused]] S32 x, int32_t *) {
#if defined(__SSE2__)
    return (S32)(where(splat(0xFFFF0000), (U32)x << 2, (U32)x) & 0xFFFF3FFF);
#else
    return x;
#endif
}

SLT_INLINE S32 lane_weight(S32 v, int32_t *) {
#if defined(__SSE2__)
    return (S32)where(splat(0xFFFF0000), (U32)v << 30, (U32)v);
#else
    return v;
#endif
}

// The first of two weights in a lane.
SLT_INLINE S32 lane_weight(S32 v, int16_t *) { return v & 0xFFFF; }

SLT_INLINE F32 lane_weight(S32 v, float *) { return __builtin_convertvector(v, F32); }

SLT_INLINE S32 add_product(S32 sum, S32 x, S32 v) {
#if defined(__AVX512VNNI__)
    return (S32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)v, (__m512i)x);
#elif defined(__AVX512F__)
    return sum + (S32)_mm512_madd_epi16((__m512i)x, (__m512i)v);
#elif defined(__AVXVNNI__)
    asm(SLT_VEX "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(v), "x"(x));
    return sum;
#elif defined(__AVX2__)
    return sum + (S32)_mm256_madd_epi16((__m256i)x, (__m256i)v);
#elif defined(__SSE2__)
    return sum + (S32)_mm_madd_epi16((__m128i)x, (__m128i)v);
#else
    return sum + x * v;
#endif
}

SLT_INLINE F32 add_product(F32 sum, F32 x, F32 v) { return multiply_add(x, v, sum); }

SLT_INLINE F32 rounded(S32 sum) { return __builtin_convertvector(sum, F32); }
SLT_INLINE F32 rounded(F32 sum) { return sum; }

// Depthwise. T: int32_t for exact sums of signed constants, float for sums of 16-bit numbers.
template <class T>
class DepthwiseLanes {
    static constexpr bool EXACT = !std::is_same_v<T, float>;
    static constexpr int TOGETHER = 8;  // positions
    static constexpr int LONG_RUN = 7;  // taps
    typedef std::conditional_t<EXACT, S32, F32> V;

    // A grid with the taps that reach a pixel.
    struct Grid {
        int64_t height, width, first, taps;  // the first tap
        int64_t run;                         // length of runs of neighbouring taps in a row of pixels; 1 if they differ
        const int64_t *reads, *writes;       // of each position of a band: where tap (0, 0) reads; where its sum goes
    };

    const Direct &d;
    ChannelLanes lanes;
    int64_t count = 0;  // taps
    const Scratch<DirectTap> taps;
    const Scratch<Grid> grids;

  public:
    explicit DepthwiseLanes(const Direct &d) : d(d), lanes(d.x), taps(d.grids * d.most_taps()), grids(d.grids) {
        for (int64_t g = 0; g < d.grids; ++g) {
            const DirectGrid &of = d.grid[g];
            grids[g] = {of.height, of.width, count, 0, 1, nullptr, nullptr};
            for (int64_t t = of.first_tap; t < of.first_tap + of.taps; ++t) {
                const DirectTap &tap = d.tap[t];
                if (tap.down >= d.x.height || (of.height - 1) * d.stride_h + tap.down < 0 || tap.right >= d.x.width ||
                    (of.width - 1) * d.stride_w + tap.right < 0)
                    continue;
                taps[count++] = tap;
                ++grids[g].taps;
                lanes.include_tap(tap.down, tap.right, of.width, d.stride_w);
            }
        }
    }

    bool pays() { return lanes.pays(d.x) && lanes.height(1, d.stride_h) * lanes.pitch * LANES * 4 <= 2 * DIRECT_BYTES; }

    void run(const Weights &source) {
        const ResultImages &y = d.y;
        const int64_t blocks = ceil_div(d.groups, LANES);
        // Rows of positions whose numbers are read from L2 once: those of a few rows fit L1.
        const auto bytes = [&](int64_t n) {
            const int64_t results = y.channels_last ? 0 : least(n * d.step_h, y.height) * y.width;
            return (lanes.height(n, d.stride_h) * lanes.pitch + results) * int64_t(sizeof(V));
        };
        int64_t rows = d.height();  // of positions, in a band
        while (rows > 1 && bytes(rows) > 2 * DIRECT_L1_BYTES) rows = (rows + 1) / 2;
        // Channels that are read together: the pixels of channels-last images are then read in order.
        int64_t most = d.x.channels_last ? least(greatest(DIRECT_BYTES / bytes(rows), 1), blocks) : 1;
        // Fewer if there are too few pieces for the threads.
        const int64_t wanted = d.threads == 1 ? 1 : ceil_div(4 * d.threads, d.x.samples);
        while (most > 1 && ceil_div(blocks, most) * ceil_div(d.height(), rows) < wanted) most /= 2;
        while (rows > 4 && ceil_div(blocks, most) * ceil_div(d.height(), rows) < wanted) rows = (rows + 1) / 2;
        const int64_t parts = ceil_div(blocks, most), together = ceil_div(blocks, parts);
        const int64_t bands = ceil_div(d.height(), rows);

        const Scratch<V> weights(blocks * count);
        Scratch<int64_t> offsets(count);
        for (int64_t t = 0; t < count; ++t) offsets[t] = lanes.pixel(taps[t].down, taps[t].right) * LANES;
        for (int64_t g = 0; g < d.grids; ++g) grids[g].run = run_of(offsets + grids[g].first, grids[g].taps);
        make_weights(source, weights);
        const Places places(d, rows, TOGETHER, lanes.pitch, LANES, y.channels_last ? y.channels : LANES);
        for (int64_t g = 0; g < d.grids; ++g) {
            grids[g].reads = places.reads(g);
            grids[g].writes = places.writes(g);
        }

        const int64_t band = least(rows * d.step_h, y.height) * y.width;  // pixels of y
        for_pieces<EXACT>(d, parts * bands, [&](int64_t sample, int64_t piece, const FixedPoint &fixed) {
            const int64_t first_block = piece / bands * together, here = least(together, blocks - first_block);
            const int64_t first = piece % bands * rows, height = lanes.height(rows, d.stride_h);
            const int64_t block_size = height * lanes.pitch * LANES;
            const Scratch<T, DIRECT_L1_BYTES> numbers(here * block_size);
            const Scratch<float, DIRECT_L1_BYTES> results(y.channels_last ? 0 : band * LANES);
            const DirectEpilogue epilogue(fixed.power, d.scale);
            lanes.write(
                d.x, sample, first_block * LANES, here, first * d.stride_h, height,
                [&](F32 v, T *out) {
                    if constexpr (EXACT)
                        store(out, lane_operand(fixed_integers(fixed, v), out));
                    else
                        store(out, v);
                },
                numbers.data);
            const int64_t first_pixel = first * d.step_h * y.width;
            for (int64_t b = 0; b < here; ++b) {
                const int64_t c = (first_block + b) * LANES, channels = least(d.groups - c, LANES);
                const V *of = weights + (first_block + b) * count;
                F32 bias = NO_BIAS - F32{};
                if (d.bias) bias = read_part({reinterpret_cast<const char *>(d.bias + c), Type::FLOAT32}, channels);
                const Result to = y.channels_last ? y.data + ((sample * y.pixels() + first_pixel) * y.channels + c)
                                                  : Result{reinterpret_cast<char *>(results.data), Type::FLOAT32};
                const bool whole = to.type == Type::FLOAT32 && (channels == LANES || !y.channels_last);
                for (int64_t g = 0; g < d.grids; ++g) {
                    const Grid &grid = grids[g];
                    const int64_t n = least(rows, grid.height - first) * grid.width;
                    for (int64_t p = 0; p < n; p += TOGETHER) {
                        F32 v[TOGETHER];
                        sums(grid, of + grid.first, offsets + grid.first, p, numbers + b * block_size, v);
                        epilogue(v, bias);
                        const int64_t *at = grid.writes + p;
                        if (whole && p + TOGETHER <= n) {
                            SLT_UNROLL for (int i = 0; i < TOGETHER; ++i) store((to + at[i]).data, v[i]);
                        } else {
                            // No index that varies: sums would be kept in memory.
                            SLT_UNROLL for (int i = 0; i < TOGETHER; ++i)
                                if (p + i < n) write_part(v[i], y.channels_last ? channels : LANES, to + at[i]);
                        }
                    }
                }
                if (!y.channels_last)
                    write_channels(results, channels, least(band, y.pixels() - first_pixel),
                                   y.data + ((sample * y.channels + c) * y.pixels() + first_pixel));
            }
        });
    }

  private:
    // The length of the runs of offsets that are LANES apart, or 1 if it differs.
    static int64_t run_of(const int64_t *offsets, int64_t taps) {
        int64_t run = 1;
        while (run < taps && offsets[run] == offsets[run - 1] + LANES) ++run;
        for (int64_t t = 0; t < taps; ++t)
            if (t % run && offsets[t] != offsets[t - 1] + LANES) return 1;
        return taps % run ? 1 : run;
    }

    // [block][tap]
    void make_weights(const Weights &source, V *out) const {
        const Scratch<int8_t> values(source.source.rows * source.source.fan);
        parallel_for(d.threads, ceil_div(d.groups, LANES), [&](int64_t block) {
            materialize_rows(source, block * LANES, values);
            const int64_t c = block * LANES, channels = least(d.groups - c, LANES);
            for (int64_t t = 0; t < count; ++t) {
                int32_t v[LANES] = {};
                const int8_t *of = values + c * d.group_step + taps[t].number * d.tap_step;
                for (int64_t l = 0; l < channels; ++l) v[l] = of[l * d.group_step];
                out[block * count + t] = lane_weight(load<S32>(v), static_cast<T *>(nullptr));
            }
        });
    }

    // The rounded sums of positions [p, p + TOGETHER).
    static SLT_INLINE void sums(const Grid &grid, const V *weights, const int64_t *offsets, int64_t p, const T *x,
                                F32 (&out)[TOGETHER]) {
        V sum[TOGETHER] = {};
        const int64_t *reads = grid.reads + p;
        if (grid.run == LONG_RUN && reads[TOGETHER - 1] - reads[0] == (TOGETHER - 1) * LANES) {
            add_runs(grid, weights, offsets, x + reads[0], sum);
        } else {
            const T *at[TOGETHER];
            SLT_UNROLL for (int i = 0; i < TOGETHER; ++i) at[i] = x + reads[i];
            for (int64_t t = 0; t < grid.taps; ++t) {
                const V v = weights[t];
                const int64_t offset = offsets[t];
                SLT_UNROLL for (int i = 0; i < TOGETHER; ++i)
                    sum[i] = add_product(sum[i], load<V>(at[i] + offset), v);
            }
        }
        SLT_UNROLL for (int i = 0; i < TOGETHER; ++i) out[i] = rounded(sum[i]);
    }

    // The same of neighbouring positions, for taps in runs: a pixel is loaded once for all taps of a run. (In runs of
    // three it is no faster.)
    static SLT_INLINE void add_runs(const Grid &grid, const V *weights, const int64_t *offsets, const T *x,
                                    V (&sum)[TOGETHER]) {
        for (int64_t t = 0; t < grid.taps; t += LONG_RUN) {
            const T *at = x + offsets[t];
            V v[LONG_RUN];
            SLT_UNROLL for (int r = 0; r < LONG_RUN; ++r) v[r] = weights[t + r];
            SLT_UNROLL for (int w = 0; w < TOGETHER - 1 + LONG_RUN; ++w) {
                const V pixel = load<V>(at + w * LANES);
                SLT_UNROLL for (int r = 0; r < LONG_RUN; ++r)
                    if (w >= r && w - r < TOGETHER) sum[w - r] = add_product(sum[w - r], pixel, v[r]);
            }
        }
    }

    // Results [pixel][LANES] as a run of `pixels` pixels of each channel.
    void write_channels(const float *results, int64_t channels, int64_t pixels, Result out) const {
        for (int64_t p = 0; p < pixels; p += LANES) {
            const int64_t n = least(pixels - p, LANES);
            S32 square[LANES];
            for (int64_t i = 0; i < LANES; ++i) square[i] = i < n ? load<S32>(results + (p + i) * LANES) : S32{};
            transpose(square);
            Result to = out + p;
            for (int64_t c = 0; c < channels; ++c, to = to + d.y.pixels())
                if (n == LANES)
                    write_floats((F32)square[c], LANES, to);
                else
                    write_part((F32)square[c], n, to);
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
