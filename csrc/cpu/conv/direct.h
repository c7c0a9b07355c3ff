// Direct convolution, for outputs that few weights reach: depthwise ones, and those of few channels.
//
// Lanes are neighbouring pixels. The kept weights of an output are a list of terms, made once: where the term reads the
// planes of the input (channel_planes.h), and the weight, if it is not a sign. An output is then the sum of as many
// shifted planes as it has terms. Nothing is multiplied by a dropped weight, and nothing is padded to whole words.
//
// Sums are exact in fixed point: int32 holds the sum of up to 256 signed integers of 24 bits, and double holds any sum.
// 16-bit inputs are added in float, in the order of the terms; the product with a weight is exact.
//
// A piece of work is some rows of positions of some groups of a sample. Its planes stay in the second-level cache.
#pragma once

#include <type_traits>

#include "cpu/conv/sample_fixed_point.h"
#include "cpu/gemm/epilogue.h"
#include "cpu/layout/channel_lanes.h"
#include "cpu/layout/channel_planes.h"
#include "cpu/machine/fma.h"
#include "cpu/weights/materialize.h"

namespace slt::SLT_ISA {
namespace {

// A tap of the kernel: its number, and the pixel that it reads for position (0, 0).
struct DirectTap {
    int64_t number, down, right;
};

// A rectangle of positions; position (i, j) is pixel (first_h + i * step_h, first_w + j * step_w) of the result.
struct DirectGrid {
    int64_t height, width, first_h, first_w;
    int64_t first_tap, taps;
};

struct Direct {
    Images x;
    ResultImages y;
    int64_t groups, inputs, outputs;  // channels of x and y of a group
    // The weight of tap t, input i and output o of group g is number
    // g * group_step + o * output_step + i * input_step + t * tap_step.
    int64_t group_step, output_step, input_step, tap_step;
    int64_t stride_h, stride_w;  // between the pixels of x that neighbouring positions read
    int64_t step_h, step_w;      // between neighbouring positions in y
    int64_t grids;
    const DirectGrid *grid;
    const DirectTap *tap;
    float scale;
    const float *bias;
    int digits;
    int threads;

    int64_t most_taps() const {
        int64_t most = 0;
        for (int64_t g = 0; g < grids; ++g) most = greatest(most, grid[g].taps);
        return most;
    }

    int64_t height() const {
        int64_t most = 0;
        for (int64_t g = 0; g < grids; ++g) most = greatest(most, grid[g].height);
        return most;
    }

    ChannelPlanes planes() const {
        ChannelPlanes p(x, stride_h, stride_w);
        for (int64_t g = 0; g < grids; ++g) {
            p.include_grid(grid[g].height, grid[g].width);
            for (int64_t t = 0; t < grid[g].taps; ++t)
                p.include_tap(tap[grid[g].first_tap + t].down, tap[grid[g].first_tap + t].right, grid[g].width);
        }
        return p;
    }
};

constexpr int64_t DIRECT_BYTES = 256 << 10;      // of a piece's planes, if a row of positions needs no more
constexpr int64_t DIRECT_L1_BYTES = 24 << 10;    // of the planes of several groups

// The most weights that the outputs of a group may have, unless each has one input: with more, a product of vectors is
// faster. Matrix units are faster much earlier, in bfloat16 at once.
inline int64_t most_direct_weights([[maybe_unused]] Type x, [[maybe_unused]] Type y) {
#if defined(SLT_AMX)
    return x == Type::BFLOAT16 && y == x ? 1 << 10 : 9 << 10;
#else
    return 18 << 10;
#endif
}

// Whether it is faster than a product of vectors.
inline bool direct_pays(const Direct &d) {
    if (greatest(d.stride_h, d.stride_w) > ChannelPlanes::MOST_STRIDE) return false;
    const int64_t weights = d.outputs * d.inputs * d.most_taps();
    if (d.inputs > 1 && (weights > most_direct_weights(d.x.data.type, d.y.data.type) || d.x.pixels() < 2 * LANES))
        return false;
    const ChannelPlanes planes = d.planes();
    return planes.pays() && planes.size(1) * planes.count * d.inputs * int64_t(sizeof(double)) <= 2 * DIRECT_BYTES;
}

// The terms of all sums: lists [grid][output channel], each with `capacity` places. Without values, terms to be added
// are at the beginning of a list, and those to be subtracted at its end.
template <class T>
class Terms {
  public:
    static constexpr bool SIGNS = std::is_same_v<T, int32_t>;

    struct List {
        const int32_t *first;
        const T *values;
        int64_t count, subtracted, capacity;
    };

    Terms(const Direct &d, const ChannelPlanes &planes, int64_t size, const int8_t *weights)
        : capacity(greatest(d.inputs * d.most_taps(), 1)),
          channels(d.groups * d.outputs),
          lists(d.grids * channels),
          offsets(lists * capacity),
          values(SIGNS ? 0 : lists * capacity),
          counts(2 * lists) {
        parallel_for(d.threads, ceil_div(channels, LANES), [&](int64_t piece) {
            for (int64_t g = 0; g < d.grids; ++g)
                for (int64_t c = piece * LANES; c < least((piece + 1) * LANES, channels); ++c)
                    fill(d, d.grid[g], planes, size, weights, c, g * channels + c);
        });
    }

    List list(int64_t grid, int64_t channel) const {
        const int64_t i = grid * channels + channel;
        return {offsets + i * capacity, SIGNS ? nullptr : values + i * capacity, counts[2 * i], counts[2 * i + 1],
                capacity};
    }

    // Terms of the longest list.
    int64_t longest() const {
        int64_t most = 0;
        for (int64_t i = 0; i < lists; ++i) most = greatest(most, counts[2 * i] + counts[2 * i + 1]);
        return most;
    }

  private:
    const int64_t capacity, channels, lists;
    const Scratch<int32_t> offsets;
    const Scratch<T> values;
    const Scratch<int64_t> counts;  // added, subtracted

    void fill(const Direct &d, const DirectGrid &grid, const ChannelPlanes &planes, int64_t size, const int8_t *weights,
              int64_t c, int64_t i) const {
        const int8_t *of = weights + c / d.outputs * d.group_step + c % d.outputs * d.output_step;
        int32_t *at = offsets + i * capacity;
        int64_t added = 0, subtracted = 0;
        for (int64_t t = 0; t < grid.taps; ++t) {
            const DirectTap &tap = d.tap[grid.first_tap + t];
            int64_t offset = planes.offset(tap.down, tap.right, size);
            for (int64_t input = 0; input < d.inputs; ++input, offset += planes.count * size) {
                const int v = of[tap.number * d.tap_step + input * d.input_step];
                // Both places are free: the capacity is the number of all weights. No branch: masks are random.
                at[added] = int32_t(offset);
                if constexpr (SIGNS) {
                    at[capacity - 1 - subtracted] = int32_t(offset);
                    added += v > 0;
                    subtracted += v < 0;
                } else {
                    values[i * capacity + added] = T(v);
                    added += v != 0;
                }
            }
        }
        counts[2 * i] = added;
        counts[2 * i + 1] = subtracted;
    }
};

// N registers of the sums of a list's terms, rounded to float.
template <int N>
SLT_INLINE void direct_sums(const int32_t *planes, const Terms<int32_t>::List &list, float *out) {
    U32 sum[N] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const int32_t *at = planes + list.first[i];
        SLT_UNROLL for (int n = 0; n < N; ++n) sum[n] += load<U32>(at + n * LANES);
    }
    for (int64_t i = list.capacity - list.subtracted; i < list.capacity; ++i) {
        const int32_t *at = planes + list.first[i];
        SLT_UNROLL for (int n = 0; n < N; ++n) sum[n] -= load<U32>(at + n * LANES);
    }
    SLT_UNROLL for (int n = 0; n < N; ++n) store(out + n * LANES, __builtin_convertvector((S32)sum[n], F32));
}

template <int N>
SLT_INLINE void direct_sums(const float *planes, const Terms<float>::List &list, float *out) {
    F32 sum[N] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const float *at = planes + list.first[i];
        const F32 v = list.values[i] - F32{};
        SLT_UNROLL for (int n = 0; n < N; ++n) sum[n] = multiply_add(load<F32>(at + n * LANES), v, sum[n]);
    }
    SLT_UNROLL for (int n = 0; n < N; ++n) store(out + n * LANES, sum[n]);
}

template <int N>
SLT_INLINE void direct_sums(const double *planes, const Terms<double>::List &list, float *out) {
    typedef float Half __attribute__((vector_size(2 * LANES)));
    F64 sum[2 * N] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const double *at = planes + list.first[i];
        const F64 v = list.values[i] - F64{};
        SLT_UNROLL for (int n = 0; n < 2 * N; ++n)
            sum[n] = multiply_add(load<F64>(at + n * LANES / 2), v, sum[n]);
    }
    SLT_UNROLL for (int n = 0; n < 2 * N; ++n) store(out + n * LANES / 2, __builtin_convertvector(sum[n], Half));
}

// The sums of `count` positions; whole registers are written.
template <class T>
inline void direct_sums(const T *planes, const typename Terms<T>::List &list, int64_t count, float *out) {
    constexpr int MOST = sizeof(T) == 8 ? 4 : 8;
    int64_t i = 0;
    for (; i + (MOST - 1) * LANES < count; i += MOST * LANES) direct_sums<MOST>(planes + i, list, out + i);
    for (; i + LANES < count; i += 2 * LANES) direct_sums<2>(planes + i, list, out + i);
    if (i < count) direct_sums<1>(planes + i, list, out + i);
}

// The end of `rounded_sum` of the contract, and the bias.
struct DirectEpilogue {
    double power;
    float scale;
    bool plain;
    float exact;

    DirectEpilogue(double power, float scale)
        : power(power), scale(scale), plain(exact_in_float(power)), exact(float(plain ? power : 1)) {}

    SLT_INLINE F32 operator()(F32 v, const float *bias) const {
        if (plain) {
            v = v * exact * scale;
        } else {
            for (int l = 0; l < LANES; ++l) v[l] = rounded_sum(double(v[l]), power, scale);
        }
        return bias ? v + *bias : v;
    }
};

// Writes the results of sums of `channels` channels from c on, [channel][apart], as rows [first, first + rows) of a
// grid.
inline void write_direct(const float *sums, int64_t apart, int64_t pitch, const DirectEpilogue &epilogue,
                         const Direct &d, const DirectGrid &grid, int64_t sample, int64_t c, int64_t channels,
                         int64_t first, int64_t rows) {
    const ResultImages &y = d.y;
    if (!y.channels_last && d.step_w == 1) {
        for (int64_t n = 0; n < channels; ++n) {
            const float *bias = d.bias ? d.bias + c + n : nullptr, *from = sums + n * apart;
            Result to = y.data + ((sample * y.channels + c + n) * y.pixels() +
                                  (grid.first_h + first * d.step_h) * y.width + grid.first_w);
            for (int64_t i = 0; i < rows; ++i, from += pitch, to = to + d.step_h * y.width) {
                int64_t j = 0;
                for (; j + LANES <= grid.width; j += LANES)
                    write_floats(epilogue(load<F32>(from + j), bias), LANES, to + j);
                if (j < grid.width) write_part(epilogue(load<F32>(from + j), bias), grid.width - j, to + j);
            }
        }
        return;
    }
    for (int64_t i = 0; i < rows; ++i, sums += pitch) {
        const int64_t pixel = (grid.first_h + (first + i) * d.step_h) * y.width + grid.first_w;
        for (int64_t j = 0; j < grid.width; j += LANES) {
            const int64_t here = least(grid.width - j, LANES);
            S32 square[LANES];
            for (int64_t n = 0; n < channels; ++n) {
                const F32 v = epilogue(load<F32>(sums + n * apart + j), d.bias ? d.bias + c + n : nullptr);
                square[n] = (S32)v;
                if (y.channels_last) continue;
                const Result to = y.data + ((sample * y.channels + c + n) * y.pixels() + pixel + j * d.step_w);
                alignas(64) char numbers[sizeof(F32)];
                write_floats(v, LANES, {numbers, to.type});
                for (int64_t l = 0; l < here; ++l)
                    memcpy((to + l * d.step_w).data, numbers + l * to.size(), size_t(to.size()));
            }
            if (!y.channels_last) continue;
            for (int64_t n = channels; n < LANES; ++n) square[n] = S32{};
            transpose(square);
            for (int64_t l = 0; l < here; ++l)
                write_part((F32)square[l], channels,
                             y.data + ((sample * y.pixels() + pixel + (j + l) * d.step_w) * y.channels + c));
        }
    }
}

// Converts a register of pixels.
struct ToDirect {
    FixedPoint fixed;

    SLT_INLINE void operator()(F32 v, float *out) const { store(out, v); }
    SLT_INLINE void operator()(F32 v, int32_t *out) const { store(out, fixed_integers(fixed, v)); }
    SLT_INLINE void operator()(F32 v, double *out) const {
        const S32 integers = fixed_integers(fixed, v);
        for (int l = 0; l < LANES; ++l) out[l] = integers[l];
    }
};

// Returns whether the sums are exact; if not, nothing is computed.
template <class T>
bool run_direct(const Direct &d, const int8_t *weights) {
    const ChannelPlanes planes = d.planes();
    constexpr bool EXACT = !std::is_same_v<T, float>;
    // Rows of positions that fit, and then groups; fewer if there are too few pieces for the threads.
    const int64_t height = d.height(), group_planes = d.inputs * greatest(planes.count, 1);
    const bool together = d.x.channels_last || d.y.channels_last;
    const int64_t least_groups = least(together ? ceil_div(LANES, least(d.inputs, d.outputs)) : 1, d.groups);
    const auto bytes = [&](int64_t rows) { return planes.size(rows) * group_planes * int64_t(sizeof(T)); };
    int64_t rows = height;
    while (rows > 1 && bytes(rows) * least_groups > DIRECT_BYTES) rows = (rows + 1) / 2;
    const int64_t fit = DIRECT_L1_BYTES / bytes(rows) / least_groups * least_groups;
    int64_t groups = least(greatest(fit, least_groups), d.groups);
    const auto pieces_of_sample = [&] { return ceil_div(d.groups, groups) * ceil_div(height, rows); };
    const int64_t wanted = d.threads == 1 ? 1 : ceil_div(4 * d.threads, d.x.samples);
    while (pieces_of_sample() < wanted && groups > least_groups)
        groups = greatest(groups / 2 / least_groups, 1) * least_groups;
    while (pieces_of_sample() < wanted && rows > 8) rows = (rows + 1) / 2;

    const int64_t size = planes.size(rows), pieces = pieces_of_sample(), bands = ceil_div(height, rows);
    const Terms<T> terms(d, planes, size, weights);
    if (Terms<T>::SIGNS && !small_sums(terms.longest(), SIGNED_CONSTANT, d.digits)) return false;
    const int64_t block = d.y.channels_last ? LANES : 1;
    const int64_t apart = ceil_div(rows * planes.pitch, LANES) * LANES + 8 * LANES;

    // Some samples at a time, which stay in a cache from the first reading to the second.
    const int64_t sample_bytes = d.x.channels * d.x.pixels() * d.x.data.size();
    const int64_t step = EXACT ? greatest((1 << 20) / (sample_bytes + 1), 2 * d.threads) : greatest(d.x.samples, 1);
    Scratch<FixedPoint> fixed(EXACT ? least(step, d.x.samples) : 0);
    for (int64_t from = 0; from < d.x.samples; from += step) {
        const int64_t samples = least(step, d.x.samples - from);
        if (EXACT) fixed_points(d.x.part(from, samples), d.digits, d.threads, fixed);
        parallel_for(d.threads, samples * pieces, [&](int64_t piece) {
            const int64_t in_step = piece / pieces, sample = from + in_step;
            const int64_t group = piece % pieces / bands * groups, first = piece % bands * rows;
            const int64_t here = least(groups, d.groups - group);
            Scratch<T> numbers(here * group_planes * size);
            Scratch<float> sums(block * apart);
            const ToDirect convert = {EXACT ? fixed[in_step] : FixedPoint{1, 1, 1}};
            const DirectEpilogue epilogue(convert.fixed.power, d.scale);
            planes.template write<T>(sample, group * d.inputs, here * d.inputs, first, rows, convert, numbers.data);
            for (int64_t g = 0; g < d.grids; ++g) {
                const DirectGrid &grid = d.grid[g];
                const int64_t height = least(rows, grid.height - first);
                if (height <= 0) continue;
                const int64_t count = (height - 1) * planes.pitch + grid.width, end = (group + here) * d.outputs;
                for (int64_t c = group * d.outputs; c < end; c += block) {
                    const int64_t channels = least(block, end - c);
                    for (int64_t n = 0; n < channels; ++n)
                        direct_sums<T>(numbers + ((c + n) / d.outputs - group) * group_planes * size,
                                       terms.list(g, c + n), count, sums + n * apart);
                    write_direct(sums, apart, planes.pitch, epilogue, d, grid, sample, c, channels, first, height);
                }
            }
        });
    }
    return true;
}

// The weights of LANES channels at one tap. int32: -x is ~x + 1, and the ones are added once.
template <class T>
struct LaneWeights {
    U32 keep, flip;

    SLT_INLINE void set(int lane, int v) {
        keep[lane] = v ? ~0u : 0;
        flip[lane] = v < 0 ? ~0u : 0;
    }
    static SLT_INLINE U32 start(const U32 &subtracted) { return subtracted; }
    SLT_INLINE U32 add(U32 sum, const int32_t *x) const { return sum + ((load<U32>(x) ^ flip) & keep); }
    static SLT_INLINE F32 rounded(U32 sum) { return __builtin_convertvector((S32)sum, F32); }
};

template <>
struct LaneWeights<float> {
    F32 value;

    SLT_INLINE void set(int lane, int v) { value[lane] = float(v); }
    static SLT_INLINE F32 start(const U32 &) { return F32{}; }
    SLT_INLINE F32 add(F32 sum, const float *x) const { return multiply_add(load<F32>(x), value, sum); }
    static SLT_INLINE F32 rounded(F32 sum) { return sum; }
};

// Depthwise, of channels-last images to channels-last images with as many channels: lanes are channels, and neither is
// transposed. Returns whether it suits; if not, nothing is computed.
template <class T>
bool run_depthwise_lanes(const Direct &d, const int8_t *weights) {
    constexpr bool EXACT = !std::is_same_v<T, float>;
    constexpr int PIXELS = 4;
    ChannelLanes lanes(d.x);
    int64_t taps = 0;
    for (int64_t g = 0; g < d.grids; ++g)
        for (int64_t t = 0; t < d.grid[g].taps; ++t, ++taps) {
            const DirectTap &tap = d.tap[d.grid[g].first_tap + t];
            lanes.include_tap(tap.down, tap.right, d.grid[g].width, d.stride_w);
        }
    if (!lanes.pays(d.x)) return false;

    const int64_t blocks = ceil_div(d.groups, LANES), all_rows = d.height();
    const Scratch<LaneWeights<T>> of(taps * blocks);
    const Scratch<U32> subtracted(d.grids * blocks);
    const Scratch<int64_t> offsets(taps);
    for (int64_t g = 0; g < d.grids; ++g)
        for (int64_t b = 0; b < blocks; ++b) {
            subtracted[g * blocks + b] = U32{};
            for (int64_t i = d.grid[g].first_tap; i < d.grid[g].first_tap + d.grid[g].taps; ++i) {
                offsets[i] = lanes.pixel(d.tap[i].down, d.tap[i].right) * LANES;
                for (int l = 0; l < LANES; ++l) {
                    const int64_t c = b * LANES + l;
                    const int v = c < d.groups ? weights[c * d.group_step + d.tap[i].number * d.tap_step] : 0;
                    of[i * blocks + b].set(l, v);
                    subtracted[g * blocks + b][l] += v < 0;
                }
            }
        }

    // Rows of positions whose pixels fit L1.
    const int64_t row_bytes = lanes.pitch * int64_t(sizeof(U32));
    int64_t rows = all_rows;
    while (rows > 4 && lanes.height(rows, d.stride_h) * row_bytes > DIRECT_L1_BYTES) rows = (rows + 1) / 2;
    // Channels that are read together: pixels are then read in order.
    const int64_t block_size = lanes.height(rows, d.stride_h) * lanes.pitch * LANES;
    const int64_t most = greatest(DIRECT_BYTES / 2 / (block_size * int64_t(sizeof(T))), 1);
    const int64_t parts = ceil_div(blocks, least(most, blocks)), together = ceil_div(blocks, parts);
    const int64_t bands = ceil_div(all_rows, rows), pieces = parts * bands;
    const int64_t sample_bytes = d.x.channels * d.x.pixels() * d.x.data.size();
    const int64_t step = EXACT ? greatest((1 << 20) / (sample_bytes + 1), 2 * d.threads) : greatest(d.x.samples, 1);
    const Scratch<FixedPoint> fixed(EXACT ? least(step, d.x.samples) : 0);
    for (int64_t from = 0; from < d.x.samples; from += step) {
        const int64_t samples = least(step, d.x.samples - from);
        if (EXACT) fixed_points(d.x.part(from, samples), d.digits, d.threads, fixed);
        parallel_for(d.threads, samples * pieces, [&](int64_t piece) {
            const int64_t in_step = piece / pieces, sample = from + in_step;
            const int64_t first_block = piece % pieces / bands * together, first = piece % bands * rows;
            const int64_t here = least(together, blocks - first_block), row = lanes.pitch * LANES;
            const ToDirect convert = {EXACT ? fixed[in_step] : FixedPoint{1, 1, 1}};
            const DirectEpilogue epilogue(convert.fixed.power, d.scale);
            const Scratch<T> numbers(here * block_size);
            lanes.write(d.x, sample, first_block * LANES, here, first * d.stride_h, lanes.height(rows, d.stride_h),
                        convert, numbers.data);
            for (int64_t each = 0; each < here * d.grids; ++each) {
                const int64_t b = first_block + each / d.grids, g = each % d.grids, c = b * LANES;
                const T *x = numbers + (b - first_block) * block_size;
                const int64_t channels = least(d.groups - c, LANES);
                const F32 bias =
                    d.bias ? read_part({reinterpret_cast<const char *>(d.bias + c), Type::FLOAT32}, channels) : F32{};
                const DirectGrid &grid = d.grid[g];
                const LaneWeights<T> *w = of + grid.first_tap * blocks + b;
                const auto start = LaneWeights<T>::start(subtracted[g * blocks + b]);
                for (int64_t i = 0; i < least(rows, grid.height - first); ++i)
                    for (int64_t j = 0; j < grid.width; j += PIXELS) {
                        const T *at = x + i * d.stride_h * row + j * d.stride_w * LANES;
                        const int64_t pixel =
                            (grid.first_h + (first + i) * d.step_h) * d.y.width + grid.first_w + j * d.step_w;
                        const Result y = d.y.data + ((sample * d.y.pixels() + pixel) * d.y.channels + c);
                        // Pixels past the end of a row repeat the first.
                        int64_t next[PIXELS];
                        for (int p = 0; p < PIXELS; ++p) next[p] = j + p < grid.width ? p * d.stride_w * LANES : 0;
                        for (int p = 0; p < PIXELS; ++p)  // pixels are too far apart for the hardware prefetcher
                            __builtin_prefetch((y + (2 * PIXELS + p) * d.step_w * d.y.channels).data, 1);
                        auto sum0 = start, sum1 = start, sum2 = start, sum3 = start;
                        for (int64_t t = 0; t < grid.taps; ++t) {
                            const T *tap = at + offsets[grid.first_tap + t];
                            const LaneWeights<T> &v = w[t * blocks];
                            sum0 = v.add(sum0, tap);
                            sum1 = v.add(sum1, tap + next[1]);
                            sum2 = v.add(sum2, tap + next[2]);
                            sum3 = v.add(sum3, tap + next[3]);
                        }
                        const decltype(sum0) sums[PIXELS] = {sum0, sum1, sum2, sum3};
                        SLT_UNROLL for (int p = 0; p < PIXELS; ++p) {
                            if (j + p >= grid.width) break;
                            F32 v = epilogue(LaneWeights<T>::rounded(sums[p]), nullptr);
                            if (d.bias) v += bias;
                            write_part(v, channels, y + p * d.step_w * d.y.channels);
                        }
                    }
            }
        });
    }
    return true;
}

// `mask`: resolved words.
inline void direct_convolution(const Direct &d, const Source &s, const uint32_t *mask) {
    Scratch<int8_t> values(s.rows * s.fan);
    const Weights weights(s, mask);
    parallel_for(d.threads, ceil_div(s.rows, LANES),
                 [&](int64_t piece) { materialize_rows(weights, piece * LANES, values); });
    const bool signs = s.weight == SIGNED_CONSTANT, narrow = d.x.data.type != Type::FLOAT32 && d.digits != 1;
    if (d.x.channels_last && d.y.channels_last && d.inputs == 1 && d.outputs == 1) {
        if (narrow ? run_depthwise_lanes<float>(d, values)
                   : signs && small_sums(d.most_taps(), s.weight, d.digits) && run_depthwise_lanes<int32_t>(d, values))
            return;
    }
    if (narrow)
        run_direct<float>(d, values);
    else if (!signs || !run_direct<int32_t>(d, values))
        run_direct<double>(d, values);
}

}  // namespace
}  // namespace slt::SLT_ISA
