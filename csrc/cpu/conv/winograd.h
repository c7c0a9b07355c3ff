// Winograd's F(2 x 2, 3 x 3) in integers, for 3x3 kernels of signed constants without strides and dilation (Lavin and
// Gray, 2016, arXiv:1509.09308, section 4.1).
//
// A tile is 2 x 2 outputs; it reads 4 x 4 pixels. Additions transform the pixels of each input, and the nine weights of
// each input and output, into 16 numbers each. Products of numbers of the same place are summed over the inputs, and
// additions make the four outputs of the 16 sums: 16 multiplications in place of 36. The weights' transform is taken
// twice in each dimension, so that it has no fractions: sums are four times the contract's, exactly, and have its bits.
//
// Products are dot products of pairs of int16. The transformed weights are at most 9. A transformed integer has two
// bits more than X: it is split into a high part and LOW_BITS of a low part. bfloat16 images have one part: the largest
// element of a sample becomes NARROW_LIMIT, so the others are rounded to 2^-14 of it.
#pragma once

#include "cpu/conv/direct_shape.h"

namespace slt::SLT_ISA {
namespace {

// Whether there are dot products of pairs of int16, as wide as those of bytes, and no matrix unit.
#if defined(__AVX512VNNI__) && !defined(SLT_AMX)
#define SLT_WINOGRAD 1
#else
#define SLT_WINOGRAD 0
#endif

#if SLT_WINOGRAD

struct Winograd {
    Images x;
    ResultImages y;
    int64_t groups, inputs, outputs;  // channels of x and y of a group
    int64_t padding_h, padding_w;
    bool turned;  // outputs are the columns of the weight, and its taps are in reverse order
    float scale;
    const float *bias;
    int digits;
    int threads;

    int64_t tile_rows() const { return ceil_div(y.height, 2); }
    int64_t tile_columns() const { return ceil_div(y.width, 2); }
    int64_t input_pitch() const { return ceil_div(inputs, LANES) * LANES; }  // numbers of a tile at a place
    int64_t lane_groups() const { return ceil_div(outputs, LANES); }
    bool bfloat16() const { return x.data.type == Type::BFLOAT16 && y.data.type == x.data.type; }
    int64_t bytes_of_tile(int parts) const {
        return parts * PLACES * (2 * input_pitch() + 4 * least(lane_groups(), MOST_GROUPS) * LANES);
    }

    static constexpr int PLACES = 16, TAPS = 9, LOW_BITS = 13;
    static constexpr int NARROW_LIMIT = 8190;              // four times that fits an int16
    static constexpr int64_t MOST_GROUPS = 4;              // of outputs, whose sums are kept at a time
    static constexpr int64_t MOST_INPUTS = 2048;           // 9 places of 8191 * 9 per input fit an int32
    static constexpr int64_t MOST_WEIGHTS = 4 << 20;       // of the layer, all groups
    static constexpr int64_t TRANSFORMED_BYTES = 4 << 20;  // of transformed weights at a time
    static constexpr int64_t PIECE_BYTES = 256 << 10;      // of a piece's numbers and sums
    static constexpr int64_t APART = 5 * 64;               // bytes between places, so that they share no cache sets
};

// Whether the method is for these convolutions.
inline bool is_plain_3x3(const Window &w) {
    return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && w.dilation_h == 1 &&
           w.dilation_w == 1;
}

// Whether it is faster than a product of positions.
inline bool winograd_pays(const Winograd &w) {
    const int64_t weights = w.groups * w.outputs * w.inputs * Winograd::TAPS;
    const int64_t tiles = w.x.samples * w.tile_rows() * w.tile_columns();
    return w.inputs >= LANES && w.inputs <= Winograd::MOST_INPUTS && weights <= Winograd::MOST_WEIGHTS &&
           (w.bfloat16() || w.inputs * w.outputs > LANES * LANES) && w.padding_h >= 0 && w.padding_w >= 0 &&
           w.padding_h <= 2 && w.padding_w <= 2 && tiles >= 64 &&
           w.tile_columns() * w.bytes_of_tile(2) <= 4 * Winograd::PIECE_BYTES;
}

// The fixed point of a sample of bfloat16. Not a power of two, which would lose up to one bit.
inline FixedPoint narrow_fixed_point(uint32_t largest) {
    FixedPoint fixed = fixed_point(largest, 2);
    const double m = __builtin_bit_cast(float, largest);
    if (largest == 0 || largest >= INFINITE) return fixed;
    const double up = Winograd::NARROW_LIMIT / m;  // may exceed a float
    fixed.up = up < 0x1p100 ? float(up) : 0x1p100f;
    fixed.up_again = float(up / fixed.up);
    fixed.power = 1 / up;
    return fixed;
}

// sum += two weights times two numbers, in each lane. gcc 12 spills the sums of the intrinsic.
SLT_INLINE void dot_pairs(S32 &sum, U32 weights, S32 numbers) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(numbers));
}

// 2G w (2G)^T.
SLT_INLINE void transform_weights(const S16 w[Winograd::TAPS], S16 out[Winograd::PLACES]) {
    S16 rows[4][3];
    SLT_UNROLL for (int j = 0; j < 3; ++j) {
        const S16 ends = w[j] + w[6 + j];
        rows[0][j] = w[j] + w[j];
        rows[1][j] = ends + w[3 + j];
        rows[2][j] = ends - w[3 + j];
        rows[3][j] = w[6 + j] + w[6 + j];
    }
    SLT_UNROLL for (int i = 0; i < 4; ++i) {
        const S16 ends = rows[i][0] + rows[i][2];
        out[4 * i] = rows[i][0] + rows[i][0];
        out[4 * i + 1] = ends + rows[i][1];
        out[4 * i + 2] = ends - rows[i][1];
        out[4 * i + 3] = rows[i][2] + rows[i][2];
    }
}

// One dimension of B^T d B. Here and in `transform_sums` integers are unsigned: those of a sample that is not finite,
// the result of which is NaN, may overflow.
SLT_INLINE void transform_pixels(U32 a, U32 b, U32 c, U32 d, U32 out[4]) {
    out[0] = a - c;
    out[1] = b + c;
    out[2] = c - b;
    out[3] = b - d;
}

// A^T m A: the outputs of a tile, [row][column].
SLT_INLINE void transform_sums(const int32_t *sums, int64_t place, S32 out[4]) {
    U32 rows[2][4];
    SLT_UNROLL for (int j = 0; j < 4; ++j) {
        const U32 a = load<U32>(sums + j * place), b = load<U32>(sums + (4 + j) * place);
        const U32 c = load<U32>(sums + (8 + j) * place), d = load<U32>(sums + (12 + j) * place);
        rows[0][j] = a + b + c;
        rows[1][j] = b - c - d;
    }
    SLT_UNROLL for (int i = 0; i < 2; ++i) {
        out[2 * i] = (S32)(rows[i][0] + rows[i][1] + rows[i][2]);
        out[2 * i + 1] = (S32)(rows[i][1] - rows[i][2] - rows[i][3]);
    }
}

typedef int8_t S8Half __attribute__((vector_size(2 * LANES)));  // 2 * LANES lanes
typedef int8_t S8Quarter __attribute__((vector_size(LANES)));   // LANES lanes

// Bytes as wider integers; those past `count` are zeros.
template <class Wide, class Bytes>
SLT_INLINE Wide widened(const int8_t *at, int64_t count) {
    Bytes bytes = {};
    if (count >= int64_t(sizeof bytes))
        bytes = load<Bytes>(at);
    else
        memcpy(&bytes, at, size_t(greatest(count, 0)));
    return __builtin_convertvector(bytes, Wide);
}

// The transformed weights of some groups of lanes of a group: [place][group of lanes][pair of inputs][LANES][2].
class WinogradWeights {
  public:
    const int64_t group, first, end;  // groups of lanes [first, end)
    const int64_t pairs, place;       // pairs of inputs; words from one place to the next

    // `values`: int8 [row][tap][channel].
    WinogradWeights(const Winograd &w, const int8_t *values, int64_t group, int64_t first, int64_t end)
        : group(group),
          first(first),
          end(end),
          pairs(w.input_pitch() / 2),
          place((end - first) * pairs * LANES),
          words(Winograd::PLACES * place) {
        const int8_t *of = values + group * w.inputs * w.outputs * Winograd::TAPS;
        parallel_for(w.threads, end - first, [&](int64_t i) {
            uint32_t *out = words + i * pairs * LANES;
            w.turned ? write_columns(w, of, first + i, out) : write_rows(w, of, first + i, out);
        });
    }

    const uint32_t *at(int64_t lanes) const { return words + (lanes - first) * pairs * LANES; }

  private:
    const Scratch<uint32_t> words;

    // Lanes are rows, and inputs the channels of a tap.
    void write_rows(const Winograd &w, const int8_t *values, int64_t lanes, uint32_t *out) const {
        for (int64_t c = 0; c < w.inputs; c += 2 * LANES) {
            S32 square[Winograd::PLACES][LANES];
            for (int64_t l = 0; l < LANES; ++l) {
                const int64_t row = lanes * LANES + l;
                S16 taps[Winograd::TAPS], transformed[Winograd::PLACES];
                SLT_UNROLL for (int t = 0; t < Winograd::TAPS; ++t)
                    taps[t] = row < w.outputs ? widened<S16, S8Half>(
                                                    values + (row * Winograd::TAPS + t) * w.inputs + c, w.inputs - c)
                                              : S16{};
                transform_weights(taps, transformed);
                SLT_UNROLL for (int p = 0; p < Winograd::PLACES; ++p) square[p][l] = (S32)transformed[p];
            }
            for (int p = 0; p < Winograd::PLACES; ++p) {
                transpose(square[p]);
                for (int64_t i = 0; i < least(pairs - c / 2, LANES); ++i)
                    store(out + p * place + (c / 2 + i) * LANES, square[p][i]);
            }
        }
    }

    // Lanes are channels, and inputs the rows.
    void write_columns(const Winograd &w, const int8_t *values, int64_t lanes, uint32_t *out) const {
        const int64_t c = lanes * LANES, row = Winograd::TAPS * w.outputs;
        for (int64_t i = 0; i < pairs; ++i) {
            S16 taps[Winograd::TAPS], transformed[Winograd::PLACES];
            SLT_UNROLL for (int t = 0; t < Winograd::TAPS; ++t) {
                const int8_t *from = values + 2 * i * row + (Winograd::TAPS - 1 - t) * w.outputs + c;
                const S32 even = 2 * i < w.inputs ? widened<S32, S8Quarter>(from, w.outputs - c) : S32{};
                const S32 odd = 2 * i + 1 < w.inputs ? widened<S32, S8Quarter>(from + row, w.outputs - c) : S32{};
                taps[t] = (S16)((even & 0xFFFF) | odd << 16);
            }
            transform_weights(taps, transformed);
            SLT_UNROLL for (int p = 0; p < Winograd::PLACES; ++p)
                store(out + p * place + i * LANES, transformed[p]);
        }
    }
};

// Tile rows of some samples of a group: transforms their pixels, multiplies, and writes their outputs. A part is a
// vector of its own: [place][tile][part].
template <int PARTS>
class WinogradPiece {
  public:
    // At most `tile_rows` of them at a time.
    WinogradPiece(const Winograd &w, const WinogradWeights &weights, int64_t tile_rows)
        : w(w),
          weights(weights),
          columns(w.tile_columns()),
          pitch(2 * columns + 2),
          number_place((tile_rows * columns * PARTS + MOST_ROWS) * w.input_pitch() + Winograd::APART / 2),
          block(least(w.lane_groups(), Winograd::MOST_GROUPS) * LANES),
          sum_place((tile_rows * columns * PARTS + MOST_ROWS) * block + Winograd::APART / 4),
          pixels(4 * pitch * LANES),
          numbers(Winograd::PLACES * number_place),
          sums(Winograd::PLACES * sum_place),
          results((2 * w.y.width + LANES) * LANES) {}

    // `fixed`: of each sample.
    void run(int64_t first, int64_t end, const FixedPoint *fixed) const {
        const int64_t group = weights.group;
        for (int64_t c = 0; c < w.input_pitch(); c += LANES)
            for (int64_t q = first; q < end; ++q) {
                const bool follows = q > first && q % w.tile_rows() != 0;
                read_pixels_of(q, follows, group * w.inputs + c, (group + 1) * w.inputs, fixed[q / w.tile_rows()]);
                transform_row(q, (q - first) * columns, c);
            }
        for (int64_t lanes = weights.first; lanes < weights.end; lanes += Winograd::MOST_GROUPS) {
            const int64_t used = least(weights.end - lanes, Winograd::MOST_GROUPS);
            const int64_t rows = (end - first) * columns * PARTS;
            if (used == 1) multiply<1>(lanes, rows);
            if (used == 2) multiply<2>(lanes, rows);
            if (used == 3) multiply<3>(lanes, rows);
            if (used == 4) multiply<4>(lanes, rows);
            for (int64_t q = first; q < end; ++q)
                for (int64_t g = 0; g < used; ++g)
                    write_row(q, (q - first) * columns, lanes + g, g, fixed[q / w.tile_rows()].power);
        }
    }

  private:
    static constexpr int MOST_ROWS = 12;
    const Winograd &w;
    const WinogradWeights &weights;
    const int64_t columns, pitch;  // tiles of a row; pixels of a row
    const int64_t number_place, block, sum_place;
    const Scratch<int32_t> pixels;   // [row][pixel][LANES] of a tile row, with the zeros around the image
    const Scratch<int16_t> numbers;  // [place][tile][part][input]
    const Scratch<int32_t> sums;     // [place][tile][part][block]
    const Scratch<float> results;    // [pixel][LANES] of a tile row, for NCHW

    // Channels [c, c + LANES) of the rows of pixels of a tile row that its predecessor, if it is in `pixels`, did not
    // read. Row i of the image with its zeros is row i % 4 of `pixels`.
    void read_pixels_of(int64_t q, bool follows, int64_t c, int64_t end, const FixedPoint &point) const {
        const int64_t sample = q / w.tile_rows(), row = q % w.tile_rows() * 2, top = row - w.padding_h;
        const int64_t first = follows ? 2 : 0;
        for (int64_t i = first; i < 4; ++i)
            memset(pixels + (row + i) % 4 * pitch * LANES, 0, size_t(pitch * LANES) * sizeof(int32_t));
        const int64_t from = greatest(top + first, 0), to = least(top + 4, w.x.height);
        int64_t h = from, at = 0;
        for (int64_t pixel = from * w.x.width; pixel < to * w.x.width; pixel += LANES) {
            const int64_t here = least(to * w.x.width - pixel, LANES);
            F32 v[LANES];
            read_pixels(w.x, sample, pixel, here, c, end, v);
            for (int64_t i = 0; i < here; ++i) {
                int32_t *out = pixels + ((h + w.padding_h) % 4 * pitch + w.padding_w + at) * LANES;
                store(out, fixed_integers(point, v[i]));
                if (++at == w.x.width) at = 0, ++h;
            }
        }
    }

    // Inputs [c, c + LANES) of the tiles of row q, the first of which is number `tile`.
    void transform_row(int64_t q, int64_t tile, int64_t c) const {
        const int64_t row = q % w.tile_rows() * 2;
        const int32_t *rows[4];
        for (int i = 0; i < 4; ++i) rows[i] = pixels + (row + i) % 4 * pitch * LANES;
        U32 column[4][4];
        const auto read = [&](int64_t j, U32 out[4]) {
            const int64_t at = j * LANES;
            transform_pixels(load<U32>(rows[0] + at), load<U32>(rows[1] + at), load<U32>(rows[2] + at),
                             load<U32>(rows[3] + at), out);
        };
        read(0, column[2]);
        read(1, column[3]);
        for (int64_t j = 0; j < columns; ++j) {
            SLT_UNROLL for (int i = 0; i < 4; ++i) {
                column[0][i] = column[2][i];
                column[1][i] = column[3][i];
            }
            read(2 * j + 2, column[2]);
            read(2 * j + 3, column[3]);
            int16_t *out = numbers + (tile + j) * PARTS * w.input_pitch() + c;
            SLT_UNROLL for (int i = 0; i < 4; ++i) {
                U32 numbers_of_row[4];
                transform_pixels(column[0][i], column[1][i], column[2][i], column[3][i], numbers_of_row);
                SLT_UNROLL for (int p = 0; p < 4; ++p)
                    write_number((S32)numbers_of_row[p], out + (4 * i + p) * number_place);
            }
        }
    }

    void write_number(S32 v, int16_t *out) const {
        typedef int16_t Narrow __attribute__((vector_size(2 * LANES)));
        if constexpr (PARTS == 1) {
            store(out, __builtin_convertvector(v, Narrow));
        } else {
            store(out, __builtin_convertvector(v & ((1 << Winograd::LOW_BITS) - 1), Narrow));
            store(out + w.input_pitch(), __builtin_convertvector(v >> Winograd::LOW_BITS, Narrow));
        }
    }

    template <int USED>
    void multiply(int64_t lanes, int64_t rows) const {
        constexpr int ROWS = USED == 4 ? 6 : USED == 3 ? 8 : MOST_ROWS;
        for (int p = 0; p < Winograd::PLACES; ++p)
            for (int64_t row = 0; row < rows; row += ROWS)
                register_sums<USED, ROWS>(numbers + p * number_place + row * w.input_pitch(), w.input_pitch(),
                                          weights.at(lanes) + p * weights.place, weights.pairs,
                                          sums + p * sum_place + row * block, block);
    }

    // One block of sums in registers. Not inlined: the compiler would spill the sums.
    template <int USED, int ROWS>
    static __attribute__((noinline)) void register_sums(const int16_t *numbers, int64_t number_pitch,
                                                        const uint32_t *panel, int64_t pairs, int32_t *out,
                                                        int64_t out_pitch) {
        S32 sum[ROWS][USED] = {};
        for (int64_t i = 0; i < pairs; ++i) {
            U32 of[USED];
            SLT_UNROLL for (int g = 0; g < USED; ++g) of[g] = load<U32>(panel + (g * pairs + i) * LANES);
            SLT_UNROLL for (int r = 0; r < ROWS; ++r) {
                int32_t pair;
                memcpy(&pair, numbers + r * number_pitch + 2 * i, sizeof pair);
                const S32 two = pair - S32{};
                SLT_UNROLL for (int g = 0; g < USED; ++g) dot_pairs(sum[r][g], of[g], two);
            }
        }
        SLT_UNROLL for (int r = 0; r < ROWS; ++r)
            SLT_UNROLL for (int g = 0; g < USED; ++g) store(out + r * out_pitch + g * LANES, sum[r][g]);
    }

    // Sums of a low and a high part, rounded to float.
    static SLT_INLINE F32 joined(S32 low, S32 high) {
        const __m512d base = _mm512_set1_pd(1 << Winograd::LOW_BITS);
        const auto half = [&](__m256i a, __m256i b) {
            return _mm512_cvtpd_ps(_mm512_fmadd_pd(_mm512_cvtepi32_pd(b), base, _mm512_cvtepi32_pd(a)));
        };
        const __m256 first = half(_mm512_castsi512_si256((__m512i)low), _mm512_castsi512_si256((__m512i)high));
        const __m256 second =
            half(_mm512_extracti64x4_epi64((__m512i)low, 1), _mm512_extracti64x4_epi64((__m512i)high, 1));
        return (F32)_mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
    }

    // Outputs of one group of lanes of a tile row: group `lane_group` of all, number `g` of those whose sums there are.
    void write_row(int64_t q, int64_t tile, int64_t lane_group, int64_t g, double power) const {
        const DirectEpilogue epilogue(power / 4, w.scale);  // sums are four times the contract's
        const int64_t lanes = least(w.outputs - lane_group * LANES, LANES);
        const int64_t c = weights.group * w.outputs + lane_group * LANES;
        const F32 bias =
            w.bias ? read_part({reinterpret_cast<const char *>(w.bias + c), Type::FLOAT32}, lanes) : F32{};
        const int64_t sample = q / w.tile_rows(), top = q % w.tile_rows() * 2, pixel = top * w.y.width;
        const int64_t rows = least(w.y.height - top, 2);
        for (int64_t j = 0; j < columns; ++j) {
            const int32_t *at = sums + (tile + j) * PARTS * block + g * LANES;
            S32 out[PARTS][4];
            SLT_UNROLL for (int part = 0; part < PARTS; ++part)
                transform_sums(at + part * block, sum_place, out[part]);
            SLT_UNROLL for (int i = 0; i < 4; ++i) {
                if (i / 2 >= rows || 2 * j + i % 2 >= w.y.width) continue;
                F32 v;
                if constexpr (PARTS == 1)
                    v = __builtin_convertvector(out[0][i], F32);
                else
                    v = joined(out[0][i], out[1][i]);
                v = epilogue(v);
                if (w.bias) v += bias;
                const int64_t place = i / 2 * w.y.width + 2 * j + i % 2;
                if (w.y.channels_last)
                    write_part(v, lanes, w.y.data + ((sample * w.y.pixels() + pixel + place) * w.y.channels + c));
                else
                    store(results + place * LANES, v);
            }
        }
        if (w.y.channels_last) return;
        const int64_t count = rows * w.y.width;
        for (int64_t i = 0; i < count; i += LANES) {
            S32 square[LANES];
            for (int64_t l = 0; l < LANES; ++l) square[l] = load<S32>(results + (i + l) * LANES);
            transpose(square);
            for (int64_t l = 0; l < lanes; ++l)
                write_part((F32)square[l], least(count - i, LANES),
                           w.y.data + ((sample * w.y.channels + c + l) * w.y.pixels() + pixel + i));
        }
    }
};

template <int PARTS>
void run_winograd(const Winograd &w, const int8_t *values) {
    // Some samples at a time, which stay in a cache from the first reading to the second.
    const int64_t sample_bytes = w.x.channels * w.x.pixels() * w.x.data.size();
    const int64_t step = greatest((1 << 20) / (sample_bytes + 1), 2 * w.threads);
    const int64_t row_bytes = w.tile_columns() * w.bytes_of_tile(PARTS);
    const int64_t wanted = w.threads == 1 ? 1 : 4 * w.threads;
    const int64_t lane_bytes = Winograd::PLACES * w.input_pitch() * LANES * int64_t(sizeof(int16_t));
    const int64_t most_lanes = Winograd::TRANSFORMED_BYTES / lane_bytes / Winograd::MOST_GROUPS * Winograd::MOST_GROUPS;
    const int64_t lanes = greatest(most_lanes, Winograd::MOST_GROUPS);
    const Scratch<FixedPoint> fixed(w.x.samples);
    for (int64_t group = 0; group < w.groups; ++group)
        for (int64_t lane = 0; lane < w.lane_groups(); lane += lanes) {
            const WinogradWeights weights(w, values, group, lane, least(lane + lanes, w.lane_groups()));
            for (int64_t from = 0; from < w.x.samples; from += step) {
                const int64_t samples = least(step, w.x.samples - from);
                if (group == 0 && lane == 0)
                    parallel_for(w.threads, samples, [&](int64_t i) {
                        const uint32_t largest = largest_of_rows(w.x, from + i, 0, w.x.height);
                        fixed[from + i] = PARTS == 1 ? narrow_fixed_point(largest) : fixed_point(largest, w.digits);
                    });
                const int64_t tile_rows = samples * w.tile_rows(), first = from * w.tile_rows();
                const int64_t rows =
                    greatest(least(Winograd::PIECE_BYTES / row_bytes, ceil_div(tile_rows, wanted)), 1);
                parallel_for(w.threads, ceil_div(tile_rows, rows), [&](int64_t piece) {
                    const int64_t at = piece * rows;
                    const WinogradPiece<PARTS> some(w, weights, rows);
                    some.run(first + at, first + least(at + rows, tile_rows), fixed);
                });
            }
        }
}

// `mask`: resolved words.
inline void winograd_convolution(const Winograd &w, const Source &s, const uint32_t *mask) {
    Scratch<int8_t> values(s.rows * s.fan);
    const Weights weights(s, mask);
    parallel_for(w.threads, ceil_div(s.rows, LANES),
                 [&](int64_t piece) { materialize_rows(weights, piece * LANES, values); });
    w.bfloat16() ? run_winograd<1>(w, values) : run_winograd<2>(w, values);
}

#endif

}  // namespace
}  // namespace slt::SLT_ISA
