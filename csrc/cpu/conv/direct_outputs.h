// Direct convolution of channels-last images whose lanes are neighbouring outputs: those of a pixel are stored as they
// are computed. For layers that sum few products for each output, and whose outputs fill registers.
//
// The rows of pixels that a band of positions reads are converted once, with zeros around the image; a number of x is
// then broadcast to all lanes. An X of three digits is a pair of int16, so that one instruction multiplies it by a
// weight of a signed constant and adds it (direct_lanes.h). Fewer digits are one int16, and an instruction multiplies
// two neighbours by their weights. Without dot products of pairs, 16-bit numbers are floats.
#pragma once

#include <type_traits>

#include "cpu/conv/direct_lanes.h"

namespace slt::SLT_ISA {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool PAIRS_OF_INPUTS = true;
#else
constexpr bool PAIRS_OF_INPUTS = false;
#endif

// T: int32_t for X of three digits, int16_t for fewer, float for sums of 16-bit numbers.
template <class T>
class DirectOutputs {
    static constexpr bool EXACT = !std::is_same_v<T, float>;
    static constexpr int AT_ONCE = std::is_same_v<T, int16_t> ? 2 : 1;  // products of a lane in an instruction
    typedef std::conditional_t<EXACT, S32, F32> V;
#if defined(__AVX512F__) || defined(__aarch64__)
    static constexpr int SUMS = 24, MOST_TOGETHER = 8;  // registers of sums; positions
#else
    static constexpr int SUMS = 8, MOST_TOGETHER = 4;
#endif

    static constexpr int MOST_REGISTERS = 3;  // of outputs
    template <int R>
    static constexpr int TOGETHER = SUMS / R < MOST_TOGETHER ? SUMS / R : MOST_TOGETHER;

    // Neighbouring taps: `count` products, whose first numbers are at `offset`. The last instruction may multiply one
    // number more, by 0.
    struct Run {
        int64_t offset, count;
    };

    struct Grid {
        int64_t height, width, first_run, runs;
        int64_t terms;       // instructions of an output
        int64_t first_term;  // of all grids before
        const int64_t *reads, *writes;  // where each position of a band reads and writes
    };

    const Direct &d;
    const int64_t registers;  // of the outputs of a group
    const int64_t block;      // registers that are computed together
    int64_t terms = 0;        // of all grids
    ChannelLanes image;       // the zeros around it; its pixels have their own channels, not LANES
    const Scratch<Grid> grids;
    const Scratch<Run> runs;

  public:
    explicit DirectOutputs(const Direct &d)
        : d(d),
          registers(ceil_div(d.outputs, LANES)),
          block(ceil_div(registers, ceil_div(registers, MOST_REGISTERS))),
          image(d.x),
          grids(d.grids),
          runs(d.grids * d.most_taps()) {
        for (int64_t g = 0; g < d.grids; ++g)
            for (int64_t t = 0; t < d.grid[g].taps; ++t)
                image.include_tap(tap_of(g, t).down, tap_of(g, t).right, d.grid[g].width, d.stride_w);
    }

    // Whether the images suit it.
    bool suits() {
        return d.x.channels_last && d.y.channels_last && d.x.pixels() > 1 && d.x.samples * d.x.pixels() >= 64 &&
               2 * d.outputs >= LANES && image.pays(d.x);
    }

    void run(const int8_t *values) {
        const int64_t pixel = d.x.channels, pitch = image.pitch * pixel;
        int64_t count = 0;
        for (int64_t g = 0; g < d.grids; ++g) {
            grids[g] = {d.grid[g].height, d.grid[g].width, count, 0, 0, terms, nullptr, nullptr};
            for (int64_t t = 0; t < d.grid[g].taps; ++t) {
                const int64_t offset = image.pixel(tap_of(g, t).down, tap_of(g, t).right) * pixel;
                Run *before = grids[g].runs > 0 ? &runs[count - 1] : nullptr;
                if (before && before->offset + before->count == offset && d.inputs == pixel) {
                    before->count += d.inputs;
                } else {
                    runs[count++] = {offset, d.inputs};
                    ++grids[g].runs;
                }
            }
            for (int64_t r = grids[g].first_run; r < count; ++r) grids[g].terms += ceil_div(runs[r].count, AT_ONCE);
            terms += grids[g].terms;
        }
        const Scratch<V> weights(d.groups * registers * terms);
        make_weights(values, weights);

        int64_t rows = d.height();  // of positions, in a band
        const auto height = [&](int64_t n) { return image.height(n, d.stride_h); };
        const int64_t wanted = d.threads == 1 ? 1 : ceil_div(4 * d.threads, d.x.samples);
        while (rows > 1 &&
               (height(rows) * pitch * int64_t(sizeof(T)) > DIRECT_L1_BYTES || ceil_div(d.height(), rows) < wanted))
            rows = (rows + 1) / 2;
        const Places places(d, rows, MOST_TOGETHER, image.pitch, pixel, d.y.channels);
        for (int64_t g = 0; g < d.grids; ++g) {
            grids[g].reads = places.reads(g);
            grids[g].writes = places.writes(g);
        }

        for_pieces<EXACT>(d, ceil_div(d.height(), rows), [&](int64_t sample, int64_t band, const FixedPoint &fixed) {
            const int64_t first = band * rows;
            const Scratch<T, DIRECT_L1_BYTES> numbers(height(rows) * pitch + AT_ONCE - 1);
            write_numbers(sample, first * d.stride_h + image.top, height(rows), pitch, fixed, numbers);
            const DirectEpilogue epilogue(fixed.power, d.scale);
            const Result y = d.y.data + (sample * d.y.pixels() + first * d.step_h * d.y.width) * d.y.channels;
            for (int64_t g = 0; g < d.grids; ++g) {
                const int64_t here = (least(first + rows, grids[g].height) - first) * grids[g].width;
                for (int64_t group = 0; group < d.groups; ++group)
                    for (int64_t r = 0; r < registers; r += block) {
                        const int64_t channel = group * d.outputs + r * LANES;
                        const Band of = {grids[g],
                                         runs + grids[g].first_run,
                                         here,
                                         numbers + group * d.inputs,
                                         weights_of(weights, grids[g], group, r),
                                         y + channel,
                                         d.bias ? d.bias + channel : nullptr,
                                         d.outputs - r * LANES,
                                         epilogue};
                        const int64_t count = least(registers - r, block);
                        if (count == 1) add_band<1>(of);
                        if (count == 2) add_band<2>(of);
                        if (count == 3) add_band<3>(of);
                    }
            }
        });
    }

  private:
    const DirectTap &tap_of(int64_t grid, int64_t t) const { return d.tap[d.grid[grid].first_tap + t]; }

    // [group][block][term][register]
    V *weights_of(V *weights, const Grid &grid, int64_t group, int64_t first) const {
        const int64_t here = least(registers - first, block);
        return weights + (group * registers + first) * terms + here * grid.first_term;
    }

    void make_weights(const int8_t *values, V *weights) const {
        parallel_for(d.threads, d.groups * registers, [&](int64_t piece) {
            const int64_t group = piece / registers, r = piece % registers, first = r / block * block;
            const int64_t here = least(registers - first, block), lanes = least(d.outputs - r * LANES, LANES);
            for (int64_t g = 0; g < d.grids; ++g) {
                V *to = weights_of(weights, grids[g], group, first) + r - first;
                const Run *run = &runs[grids[g].first_run];
                int64_t done = 0;  // products of the run
                for (int64_t t = 0; t < d.grid[g].taps; ++t)
                    for (int64_t i = 0; i < d.inputs; ++i) {
                        const int8_t *of = values + group * d.group_step + r * LANES * d.output_step +
                                           i * d.input_step + tap_of(g, t).number * d.tap_step;
                        int32_t v[LANES] = {};
                        for (int64_t l = 0; l < lanes; ++l) v[l] = of[l * d.output_step];
                        const V weight = lane_weight(load<S32>(v), static_cast<T *>(nullptr));
                        *to = done % AT_ONCE ? with_second(*to, weight) : weight;
                        const bool ends = ++done == run->count;
                        if (ends || done % AT_ONCE == 0) to += here;
                        if (ends) ++run, done = 0;
                    }
            }
        });
    }

    // The weights of two numbers in a lane.
    static V with_second(V first, V second) {
        if constexpr (AT_ONCE == 2)
            return (V)((U32)first | (U32)second << 16);
        else
            return first;
    }

    // Rows [h, h + height) of a sample, with zeros around the image: [row][pixel][channel].
    void write_numbers(int64_t sample, int64_t h, int64_t height, int64_t pitch, const FixedPoint &fixed,
                       T *out) const {
        const int64_t count = d.x.width * d.x.channels, before = image.left * d.x.channels;
        for (int64_t r = h; r < h + height; ++r, out += pitch) {
            const bool exists = r >= 0 && r < d.x.height;
            memset(out, 0, size_t(exists ? before : pitch) * sizeof(T));
            if (!exists) continue;
            const Input from = d.x.data + (sample * d.x.height + r) * count;
            for (int64_t i = 0; i < count; i += LANES) {
                const int64_t n = least(count - i, LANES);
                const F32 v = n == LANES ? read_floats(from + i) : read_part(from + i, n);
                const auto numbers = numbers_of(fixed, v);
                n == LANES ? store(out + before + i, numbers)
                           : (void)memcpy(out + before + i, &numbers, size_t(n) * sizeof(T));
            }
            memset(out + before + count, 0, size_t(pitch - before - count) * sizeof(T));
        }
        memset(out, 0, (AT_ONCE - 1) * sizeof(T));
    }

    static SLT_INLINE auto numbers_of([[maybe_unused]] const FixedPoint &fixed, F32 v) {
        typedef int16_t Narrow __attribute__((vector_size(2 * LANES)));
        if constexpr (AT_ONCE == 2)
            return __builtin_convertvector(fixed_integers(fixed, v), Narrow);
        else if constexpr (EXACT)
            return lane_operand(fixed_integers(fixed, v), static_cast<T *>(nullptr));
        else
            return v;
    }

    // The positions of a band, for a block of outputs.
    struct Band {
        const Grid &grid;
        const Run *runs;
        int64_t positions;
        const T *numbers;
        const V *weights;
        Result y;           // the first of these outputs, of the first row
        const float *bias;  // of these outputs, or null
        int64_t lanes;      // that exist, from the first on
        const DirectEpilogue &epilogue;
    };

    static SLT_INLINE V broadcast_numbers(const T *at) {
        if constexpr (AT_ONCE == 2) {
            int32_t both;
            memcpy(&both, at, sizeof both);
            return both - V{};
        } else {
            return *at - V{};
        }
    }

    template <int R>
    static void add_band(const Band &band) {
        for (int64_t p = 0; p < band.positions; p += TOGETHER<R>) add<R>(band, p);
    }

    // TOGETHER positions from `first` on, some of which may be behind the band.
    template <int R>
    __attribute__((noinline)) static void add(const Band &band, int64_t first) {
        constexpr int P = TOGETHER<R>;
        const T *x[P];
        SLT_UNROLL for (int p = 0; p < P; ++p)
            x[p] = band.numbers + band.grid.reads[first + p];
        V sum[P][R] = {};
        const V *weights = band.weights;
        for (const Run *run = band.runs; run < band.runs + band.grid.runs; ++run)
            for (int64_t at = run->offset; at < run->offset + run->count; at += AT_ONCE, weights += R) {
                V w[R];
                SLT_UNROLL for (int r = 0; r < R; ++r) w[r] = weights[r];
                SLT_UNROLL for (int p = 0; p < P; ++p) {
                    const V v = broadcast_numbers(x[p] + at);
                    SLT_UNROLL for (int r = 0; r < R; ++r) sum[p][r] = add_product(sum[p][r], v, w[r]);
                }
            }
        const int64_t *at = band.grid.writes + first;
        SLT_UNROLL for (int r = 0; r < R; ++r) {
            const int64_t lanes = least(band.lanes - r * LANES, LANES);
            F32 bias = NO_BIAS - F32{};
            if (band.bias)
                bias = read_part({reinterpret_cast<const char *>(band.bias + r * LANES), Type::FLOAT32}, lanes);
            F32 v[P];
            SLT_UNROLL for (int p = 0; p < P; ++p) v[p] = rounded(sum[p][r]);
            band.epilogue(v, bias);
            const Result y = band.y + r * LANES;
            const bool whole = lanes == LANES && first + P <= band.positions;
            if (whole && y.type == Type::FLOAT32) {
                SLT_UNROLL for (int p = 0; p < P; ++p) store((y + at[p]).data, v[p]);
            } else if (whole && y.type == Type::BFLOAT16) {
                SLT_UNROLL for (int p = 0; p < P; ++p) store((y + at[p]).data, to_bfloat16(v[p]));
            } else {
                SLT_UNROLL for (int p = 0; p < P; ++p)
                    if (first + p < band.positions) write_part(v[p], lanes, y + at[p]);
            }
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
