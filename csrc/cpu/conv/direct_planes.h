// Direct convolution whose lanes are neighbouring pixels.
//
// The kept weights of an output are a list of terms, made once: where the term reads the planes of the input
// (channel_planes.h), and the weight, if it is not a sign. An output is then the sum of as many shifted planes as it
// has terms. Nothing is multiplied by a dropped weight, and nothing is padded to whole words.
//
// A piece of work is some rows of positions of some groups of a sample. Its planes stay in the second-level cache.
#pragma once

#include <type_traits>

#include "cpu/conv/direct_shape.h"
#include "cpu/layout/channel_planes.h"
#include "cpu/machine/fma.h"

namespace slt::SLT_ISA {
namespace {

inline ChannelPlanes planes_of(const Direct &d) {
    ChannelPlanes p(d.x, d.stride_h, d.stride_w);
    for (int64_t g = 0; g < d.grids; ++g) {
        p.include_grid(d.grid[g].height, d.grid[g].width);
        for (int64_t t = 0; t < d.grid[g].taps; ++t)
            p.include_tap(d.tap[d.grid[g].first_tap + t].down, d.tap[d.grid[g].first_tap + t].right, d.grid[g].width);
    }
    return p;
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
        const int64_t taps = d.most_taps();
        Scratch<int64_t> starts(d.grids * taps);
        for (int64_t g = 0; g < d.grids; ++g)
            for (int64_t t = 0; t < d.grid[g].taps; ++t) {
                const DirectTap &tap = d.tap[d.grid[g].first_tap + t];
                starts[g * taps + t] = planes.offset(tap.down, tap.right, size);
            }
        parallel_for(d.threads, ceil_div(channels, LANES), [&](int64_t piece) {
            for (int64_t g = 0; g < d.grids; ++g)
                for (int64_t c = piece * LANES; c < least((piece + 1) * LANES, channels); ++c)
                    fill(d, d.grid[g], starts + g * taps, planes.count * size, weights, c, g * channels + c);
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

    // `starts`: where each tap reads the first input, whose planes have `size` elements.
    void fill(const Direct &d, const DirectGrid &grid, const int64_t *starts, int64_t size, const int8_t *weights,
              int64_t c, int64_t i) const {
        const int8_t *of = weights + c / d.outputs * d.group_step + c % d.outputs * d.output_step;
        int32_t *at = offsets + i * capacity;
        int64_t added = 0, subtracted = 0;
        for (int64_t t = 0; t < grid.taps; ++t) {
            const int8_t *of_tap = of + d.tap[grid.first_tap + t].number * d.tap_step;
            int64_t offset = starts[t];
            for (int64_t input = 0; input < d.inputs; ++input, offset += size) {
                const int v = of_tap[input * d.input_step];
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

// The rounded sums of a list's terms: ROWS x COLUMNS registers, with rows `pitch` apart.
template <int ROWS, int COLUMNS>
SLT_INLINE void direct_sums(const int32_t *planes, int64_t pitch, const Terms<int32_t>::List &list,
                            F32 (&out)[ROWS * COLUMNS]) {
    U32 sum[ROWS][COLUMNS] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const int32_t *at = planes + list.first[i];
        SLT_UNROLL for (int r = 0; r < ROWS; ++r, at += pitch)
            SLT_UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] += load<U32>(at + c * LANES);
    }
    for (int64_t i = list.capacity - list.subtracted; i < list.capacity; ++i) {
        const int32_t *at = planes + list.first[i];
        SLT_UNROLL for (int r = 0; r < ROWS; ++r, at += pitch)
            SLT_UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] -= load<U32>(at + c * LANES);
    }
    SLT_UNROLL for (int r = 0; r < ROWS; ++r)
        SLT_UNROLL for (int c = 0; c < COLUMNS; ++c)
            out[r * COLUMNS + c] = __builtin_convertvector((S32)sum[r][c], F32);
}

template <int ROWS, int COLUMNS>
SLT_INLINE void direct_sums(const float *planes, int64_t pitch, const Terms<float>::List &list,
                            F32 (&out)[ROWS * COLUMNS]) {
    F32 sum[ROWS][COLUMNS] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const float *at = planes + list.first[i];
        const F32 v = list.values[i] - F32{};
        SLT_UNROLL for (int r = 0; r < ROWS; ++r, at += pitch)
            SLT_UNROLL for (int c = 0; c < COLUMNS; ++c)
                sum[r][c] = multiply_add(load<F32>(at + c * LANES), v, sum[r][c]);
    }
    SLT_UNROLL for (int r = 0; r < ROWS; ++r)
        SLT_UNROLL for (int c = 0; c < COLUMNS; ++c) out[r * COLUMNS + c] = sum[r][c];
}

template <int ROWS, int COLUMNS>
SLT_INLINE void direct_sums(const double *planes, int64_t pitch, const Terms<double>::List &list,
                            F32 (&out)[ROWS * COLUMNS]) {
    typedef float Half __attribute__((vector_size(2 * LANES)));
    F64 sum[ROWS][2 * COLUMNS] = {};
    for (int64_t i = 0; i < list.count; ++i) {
        const double *at = planes + list.first[i];
        const F64 v = list.values[i] - F64{};
        SLT_UNROLL for (int r = 0; r < ROWS; ++r, at += pitch)
            SLT_UNROLL for (int c = 0; c < 2 * COLUMNS; ++c)
                sum[r][c] = multiply_add(load<F64>(at + c * (LANES / 2)), v, sum[r][c]);
    }
    SLT_UNROLL for (int r = 0; r < ROWS; ++r)
        SLT_UNROLL for (int c = 0; c < COLUMNS; ++c) {
            const Half halves[2] = {__builtin_convertvector(sum[r][2 * c], Half),
                                    __builtin_convertvector(sum[r][2 * c + 1], Half)};
            out[r * COLUMNS + c] = load<F32>(halves);
        }
}

// The registers of sums that fit.
template <class T>
constexpr int MOST_SUMS = sizeof(T) == 8 ? 4 : 8;

template <int N, class T>
SLT_INLINE void store_sums(const T *planes, const typename Terms<T>::List &list, float *out) {
    F32 v[N];
    direct_sums<1, N>(planes, 0, list, v);
    SLT_UNROLL for (int n = 0; n < N; ++n) store(out + n * LANES, v[n]);
}

// The sums of `count` neighbouring positions; whole registers are written.
template <class T>
inline void store_sums(const T *planes, const typename Terms<T>::List &list, int64_t count, float *out) {
    constexpr int MOST = MOST_SUMS<T>;
    int64_t i = 0;
    for (; i + (MOST - 1) * LANES < count; i += MOST * LANES) store_sums<MOST>(planes + i, list, out + i);
    for (; i + LANES < count; i += 2 * LANES) store_sums<2>(planes + i, list, out + i);
    if (i < count) store_sums<1>(planes + i, list, out + i);
}

// Whether sums are written as they are made: rows of y are neighbouring positions, and most lanes are used.
inline bool writes_rows(const Direct &d, const DirectGrid &grid, int64_t pitch) {
    return !d.y.channels_last && d.step_w == 1 &&
           (pitch == grid.width || grid.width % LANES == 0 || grid.width % LANES > LANES / 2);
}

// ROWS x COLUMNS registers of results, of `width` columns; `pitch`: between rows of the planes, `apart`: of y.
template <int ROWS, int COLUMNS, class T>
SLT_INLINE void write_block(const T *planes, int64_t pitch, const typename Terms<T>::List &list, int64_t width,
                            const DirectEpilogue &epilogue, F32 bias, Result to, int64_t apart) {
    F32 v[ROWS * COLUMNS];
    direct_sums<ROWS, COLUMNS>(planes, pitch, list, v);
    epilogue(v, bias);
    const bool whole = to.type == Type::FLOAT32 && width >= COLUMNS * LANES;
    SLT_UNROLL for (int r = 0; r < ROWS; ++r, to = to + apart)
        SLT_UNROLL for (int c = 0; c < COLUMNS; ++c) {
            if (whole)
                store((to + c * LANES).data, v[r * COLUMNS + c]);
            else
                write_part(v[r * COLUMNS + c], least(width - c * LANES, LANES), to + c * LANES);
        }
}

// Columns [0, COLUMNS * LANES) of `rows` rows of an output.
template <int COLUMNS, class T>
inline void write_columns(const T *planes, int64_t pitch, const typename Terms<T>::List &list, int64_t rows,
                          int64_t width, const DirectEpilogue &epilogue, F32 bias, Result to, int64_t apart) {
    constexpr int ROWS = MOST_SUMS<T> / COLUMNS;
    int64_t i = 0;
    if (rows >= ROWS)
        for (; i < rows; i += ROWS) {
            i = least(i, rows - ROWS);  // the last rows may be computed twice
            write_block<ROWS, COLUMNS>(planes + i * pitch, pitch, list, width, epilogue, bias, to + i * apart, apart);
        }
    for (; i < rows; ++i)
        write_block<1, COLUMNS>(planes + i * pitch, pitch, list, width, epilogue, bias, to + i * apart, apart);
}

// `count` results that neighbours in the planes have.
template <class T>
inline void write_run(const T *planes, const typename Terms<T>::List &list, int64_t count,
                      const DirectEpilogue &epilogue, F32 bias, Result to) {
    constexpr int MOST = MOST_SUMS<T>;
    int64_t i = 0;
    const auto write = [&]<int N>() { write_block<1, N>(planes + i, 0, list, count - i, epilogue, bias, to + i, 0); };
    for (; i + (MOST - 1) * LANES < count; i += MOST * LANES) write.template operator()<MOST>();
    for (; i + 3 * LANES < count; i += 4 * LANES) write.template operator()<4>();
    for (; i + LANES < count; i += 2 * LANES) write.template operator()<2>();
    if (i < count) write.template operator()<1>();
}

// Rows [first, first + rows) of a grid, of channel c.
template <class T>
inline void write_rows(const T *planes, int64_t pitch, const typename Terms<T>::List &list,
                       const DirectEpilogue &epilogue, const Direct &d, const DirectGrid &grid, int64_t sample,
                       int64_t c, int64_t first, int64_t rows) {
    const ResultImages &y = d.y;
    const Result to = y.data + ((sample * y.channels + c) * y.pixels() +
                                (grid.first_h + first * d.step_h) * y.width + grid.first_w);
    const F32 bias = (d.bias ? d.bias[c] : NO_BIAS) - F32{};
    const int64_t apart = d.step_h * y.width;
    int64_t j = 0;
    if (pitch == grid.width && apart == grid.width) return write_run(planes, list, rows * pitch, epilogue, bias, to);
    for (; j + LANES < grid.width; j += 2 * LANES)
        write_columns<2>(planes + j, pitch, list, rows, grid.width - j, epilogue, bias, to + j, apart);
    if (j < grid.width)
        write_columns<1>(planes + j, pitch, list, rows, grid.width - j, epilogue, bias, to + j, apart);
}

// Writes the results of sums of `channels` channels from c on, [channel][apart], as rows [first, first + rows) of a
// grid.
inline void write_direct(const float *sums, int64_t apart, int64_t pitch, const DirectEpilogue &epilogue,
                         const Direct &d, const DirectGrid &grid, int64_t sample, int64_t c, int64_t channels,
                         int64_t first, int64_t rows) {
    const ResultImages &y = d.y;
    const auto finish = [&](F32 v, int64_t n) {
        v = epilogue(v);
        return d.bias ? v + d.bias[c + n] : v;
    };
    if (!y.channels_last && d.step_w == 1) {
        for (int64_t n = 0; n < channels; ++n) {
            const float *from = sums + n * apart;
            Result to = y.data + ((sample * y.channels + c + n) * y.pixels() +
                                  (grid.first_h + first * d.step_h) * y.width + grid.first_w);
            for (int64_t i = 0; i < rows; ++i, from += pitch, to = to + d.step_h * y.width)
                for (int64_t j = 0; j < grid.width; j += LANES)
                    write_part(finish(load<F32>(from + j), n), least(grid.width - j, LANES), to + j);
        }
        return;
    }
    for (int64_t i = 0; i < rows; ++i, sums += pitch) {
        const int64_t pixel = (grid.first_h + (first + i) * d.step_h) * y.width + grid.first_w;
        for (int64_t j = 0; j < grid.width; j += LANES) {
            const int64_t here = least(grid.width - j, LANES);
            S32 square[LANES];
            for (int64_t n = 0; n < channels; ++n) {
                const F32 v = finish(load<F32>(sums + n * apart + j), n);
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
    const ChannelPlanes planes = planes_of(d);
    constexpr bool EXACT = !std::is_same_v<T, float>;
    // Rows of positions that fit, and then groups; fewer if there are too few pieces for the threads.
    const int64_t height = d.height(), group_planes = d.inputs * greatest(planes.count, 1);
    const bool together = d.x.channels_last || d.y.channels_last;
    const int64_t least_groups = least(together ? ceil_div(LANES, least(d.inputs, d.outputs)) : 1, d.groups);
    const auto bytes = [&](int64_t rows) { return planes.size(rows) * group_planes * int64_t(sizeof(T)); };
    int64_t rows = height;
    // Every output reads the planes of all inputs: they stay in L1, unless a term then has few registers to add to.
    while (d.outputs > 1 && rows > 1 && rows * planes.pitch >= 16 * LANES &&
           bytes(rows) * least_groups > DIRECT_L1_BYTES)
        rows = (rows + 1) / 2;
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

    for_pieces<EXACT>(d, pieces, [&](int64_t sample, int64_t piece, const FixedPoint &fixed) {
        const int64_t group = piece / bands * groups, first = piece % bands * rows;
        const int64_t here = least(groups, d.groups - group);
        const Scratch<T, DIRECT_L1_BYTES> numbers(here * group_planes * size);
        const DirectEpilogue epilogue(fixed.power, d.scale);
        planes.template write<T>(sample, group * d.inputs, here * d.inputs, first, rows, ToDirect{fixed}, numbers.data);
        for (int64_t g = 0; g < d.grids; ++g) {
            const DirectGrid &grid = d.grid[g];
            const int64_t height = least(rows, grid.height - first);
            if (height <= 0) continue;
            const int64_t count = (height - 1) * planes.pitch + grid.width, end = (group + here) * d.outputs;
            const auto planes_of = [&](int64_t c) { return numbers + (c / d.outputs - group) * group_planes * size; };
            if (writes_rows(d, grid, planes.pitch)) {
                for (int64_t c = group * d.outputs; c < end; ++c)
                    write_rows<T>(planes_of(c), planes.pitch, terms.list(g, c), epilogue, d, grid, sample, c, first,
                                  height);
                continue;
            }
            const Scratch<float> sums(block * apart);
            for (int64_t c = group * d.outputs; c < end; c += block) {
                const int64_t channels = least(block, end - c);
                for (int64_t n = 0; n < channels; ++n)
                    store_sums<T>(planes_of(c + n), terms.list(g, c + n), count, sums + n * apart);
                write_direct(sums, apart, planes.pitch, epilogue, d, grid, sample, c, channels, first, height);
            }
        }
    });
    return true;
}

}  // namespace
}  // namespace slt::SLT_ISA
