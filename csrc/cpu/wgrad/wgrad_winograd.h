// The weight gradient of 3x3 kernels without strides by Winograd's method, F(3 x 3, 2 x 2), in float32 (Lavin and Gray,
// 2016, arXiv:1509.09308, section 4).
//
// A tile is 2 x 2 pixels of dy; the nine taps read 4 x 4 pixels of x for them. Additions transform the pixels of each
// row and of each channel to 16 numbers. Products of numbers of the same place are summed over all tiles, and additions
// make the nine taps of the 16 sums: 16 multiplications in place of 36.
//
// The error is that of a sum of products times 1.7: sums of places that are joined are larger than the taps.
//
// The numbers of a block of rows of tiles are made at a time, [place][tile][channel], and stay in a cache. Up to eight
// sets of blocks have sums of their own, so that a thread need not wait for others. More threads than sets work on one
// set together, on several blocks at a time. The order of a sum is the same.
#pragma once

#include "cpu/machine/fma.h"
#include "cpu/wgrad/wgrad.h"

namespace slt::SLT_ISA {
namespace {

class WinogradContraction {
  public:
    static constexpr int64_t ROWS = 96, ROW_STEP = LANES;
    static_assert(ROWS % LANES == 0);

    // Whether it computes these gradients, and is faster than a sum over pixels. That skips frozen weights if most are
    // frozen, and has exact products of bfloat16, two at a time where there are dot products of pairs.
    static bool suits([[maybe_unused]] const GradScores &a) {
#if defined(SLT_AMX)
        return false;
#else
        const Window &w = a.window;
        const int64_t rows = a.source.rows, channels = a.x.channels;
        const int64_t columns = ceil_div(a.dy.width, 2), tiles = a.dy.samples * ceil_div(a.dy.height, 2) * columns;
#if defined(__AVX512BF16__)
        if (a.x.data.type == Type::BFLOAT16 && a.dy.data.type == Type::BFLOAT16 && channels >= 2 * WORD) return false;
#endif
        return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && w.dilation_h == 1 &&
               w.dilation_w == 1 && w.groups == 1 && w.padding_h >= 0 && w.padding_h <= 2 && w.padding_w >= 0 &&
               w.padding_w <= 2 && channels % LANES == 0 && rows >= 8 && tiles >= 64 &&
               rows * a.source.fan <= MOST_WEIGHTS && columns * bytes_of_tile(channels, rows) <= MOST_BYTES / 8 &&
               5 * a.offsets[rows] >= rows * a.source.fan;
#endif
    }

    WinogradContraction(const GradScores &a, int threads)
        : a(a),
          threads(threads),
          columns(ceil_div(a.dy.width, 2)),
          tile_rows(ceil_div(a.dy.height, 2)),
          x_pitch(pitch_of(a.x.channels)),
          dy_pitch(pitch_of(a.source.rows)),
          together(
              greatest(BYTES / (columns * bytes_of_tile(a.x.channels, a.source.rows)), ceil_div(LEAST_TILES, columns))),
          sets(least(greatest(MOST_BYTES / (PLACES * a.source.rows * x_pitch * int64_t(sizeof(float))), 1),
                     least(MOST_SETS, ceil_div(a.dy.samples * tile_rows, together)))),
          at_once(threads <= sets ? together : blocks_at_once() * together),
          x_place(at_once * columns * x_pitch + APART),
          dy_place(at_once * columns * dy_pitch + APART),
          sums_place(a.source.rows * x_pitch + APART),
          sums(sets * PLACES * sums_place) {
        const int64_t all = a.dy.samples * tile_rows, set_rows = ceil_div(ceil_div(all, together), sets) * together;
        const auto add_set = [&](int64_t set, int threads) {
            const Scratch<float> x(PLACES * x_place), dy(PLACES * dy_place);
            float *to = sums + set * PLACES * sums_place;
            const int64_t begin = set * set_rows, end = least(begin + set_rows, all);
            if (begin >= end) memset(to, 0, size_t(PLACES * sums_place) * sizeof(float));
            for (int64_t first = begin; first < end; first += at_once)
                add_rows(first, least(end - first, at_once), first > begin, x, dy, to, threads);
        };
        if (threads <= sets)
            parallel_for(threads, sets, [&](int64_t set) { add_set(set, 1); });
        else
            for (int64_t set = 0; set < sets; ++set) add_set(set, threads);
        parallel_for(threads, a.source.rows, [&](int64_t row) { join(row); });
    }

    struct Panels {
        explicit Panels(int64_t) {}
    };

    // sums [calls][ROWS][128] of the rows from `first_row` on.
    template <class Between>
    void operator()(Panels &, int64_t first_row, int64_t rows, const Columns *columns, int calls, float *out,
                    Between between) const {
        for (int i = 0; i < calls; ++i)
            for (int64_t r = 0; r < rows; ++r) {
                float *to = out + (i * ROWS + r) * CALL;
                for (int64_t k = columns[i].first; k < columns[i].first + CALL; k += WORD, to += WORD) {
                    F32 in_order[WORD / LANES];
                    for (int j = 0; j < WORD / LANES; ++j) in_order[j] = taps(first_row + r, k + j * LANES);
                    float word[WORD];
                    memcpy(word, in_order, sizeof word);
                    for (int j = 0; j < WORD / 2; ++j) {
                        to[j] = word[2 * j];
                        to[WORD / 2 + j] = word[2 * j + 1];
                    }
                }
                between();
            }
    }

  private:
    static constexpr int PLACES = 16;
    static constexpr int64_t APART = 5 * 16;  // between places, so that they share no cache sets
    static constexpr int64_t BYTES = 512 << 10;  // of the numbers of a block
    static constexpr int64_t LEAST_TILES = 128;  // of a block: sums are read and written once for it
    static constexpr int64_t MOST_BYTES = 16 << 20;  // of the numbers of several blocks; of the sums of several sets
    static constexpr int64_t MOST_SETS = 8;
    static constexpr int64_t DEPTH = 256;  // tiles whose sums stay in registers
    static constexpr int64_t ROWS_OF_PIECE = 4;  // of tiles
    static constexpr int64_t MOST_WEIGHTS = 4 << 20;  // sums take 64 / 9 bytes per weight
#if defined(__AVX512F__)
    static constexpr int MR = 12;
#elif defined(__aarch64__)
    static constexpr int MR = 8;
#else
    static constexpr int MR = 6;
#endif
    static constexpr int EIGHT = MR < 8 ? MR : 8;

    const GradScores &a;
    const int threads;
    const int64_t columns, tile_rows;  // tiles of a row, and of a column, of a sample
    const int64_t x_pitch, dy_pitch;  // numbers of a tile
    const int64_t together;  // rows of tiles of a block
    const int64_t sets;  // of blocks, each with sums of its own
    const int64_t at_once;  // rows of tiles whose numbers are made at a time
    const int64_t x_place, dy_place, sums_place;
    const Scratch<float> sums;

    // An odd number of registers, so that neighbouring tiles share no cache sets.
    static int64_t pitch_of(int64_t channels) { return (ceil_div(channels, LANES) | 1) * LANES; }

    static int64_t bytes_of_tile(int64_t channels, int64_t rows) {
        return PLACES * (pitch_of(channels) + pitch_of(rows)) * int64_t(sizeof(float));
    }

    int64_t blocks_at_once() const {
        return greatest(MOST_BYTES / (together * columns * bytes_of_tile(a.x.channels, a.source.rows)), 1);
    }

    // HEIGHT rows of pixels of LANES channels, with zeros around the image. They are read in place if they can be;
    // otherwise row i of the image with its zeros is row i % HEIGHT of a buffer [HEIGHT][pitch][LANES].
    template <int HEIGHT>
    class Rows {
      public:
        Rows(const Images &images, int64_t padding_h, int64_t padding_w, int64_t pitch)
            : images(images),
              padding_h(padding_h),
              padding_w(padding_w),
              pitch(pitch),
              in_place(images.channels_last && images.data.type == Type::FLOAT32 && images.channels % LANES == 0),
              buffer(in_place ? LANES : HEIGHT * pitch * LANES) {
            if (in_place) store(buffer.data, F32{});
        }

        // Moves to rows [top, top + HEIGHT) of channels from c on. The rows that `follows` has are in the buffer.
        void move(int64_t sample, int64_t top, bool follows, int64_t c) {
            if (!in_place) fill(sample, top, follows ? 2 : 0, c);
            for (int64_t i = 0; i < HEIGHT; ++i) {
                const int64_t h = top + i - padding_h, pixel = (sample * images.height + h) * images.width;
                const bool exists = h >= 0 && h < images.height;
                row[i] = !in_place ? buffer + (top + i) % HEIGHT * pitch * LANES
                         : exists  ? reinterpret_cast<const float *>(images.data.data) + pixel * images.channels + c
                                   : buffer.data;
                step[i] = !in_place ? LANES : exists ? images.channels : 0;
            }
        }

        // Pixel j of each row.
        SLT_INLINE void read(int64_t j, F32 out[HEIGHT]) const {
            const int64_t w = in_place ? j - padding_w : j;
            if (in_place && (w < 0 || w >= images.width)) {
            SLT_UNROLL for (int i = 0; i < HEIGHT; ++i) out[i] = F32{};
                return;
            }
            SLT_UNROLL for (int i = 0; i < HEIGHT; ++i) out[i] = load<F32>(row[i] + w * step[i]);
            if (!in_place) return;
            // The next rows: pixels are too far apart for the hardware prefetcher.
            SLT_UNROLL for (int i = HEIGHT - 2; i < HEIGHT; ++i)
                __builtin_prefetch(row[i] + (w + 2 * images.width) * step[i]);
        }

      private:
        const Images &images;
        const int64_t padding_h, padding_w, pitch;
        const bool in_place;
        const Scratch<float> buffer;
        const float *row[HEIGHT];
        int64_t step[HEIGHT];

        void fill(int64_t sample, int64_t top, int64_t from, int64_t c) const {
            for (int64_t i = from; i < HEIGHT; ++i)
                memset(buffer + (top + i) % HEIGHT * pitch * LANES, 0, size_t(pitch * LANES) * sizeof(float));
            const int64_t end = least(top + HEIGHT - padding_h, images.height);
            int64_t h = greatest(top + from - padding_h, 0), at = 0;
            for (int64_t pixel = h * images.width; pixel < end * images.width; pixel += LANES) {
                const int64_t here = least(end * images.width - pixel, LANES);
                F32 v[LANES];
                read_pixels(images, sample, pixel, here, c, images.channels, v);
                // The next rows: pixels, and channels, are too far apart for the hardware prefetcher.
                const int64_t ahead = pixel + 2 * images.width;
                Input next = images.data + (images.channels_last
                                                ? (sample * images.pixels() + ahead) * images.channels + c
                                                : (sample * images.channels + c) * images.pixels() + ahead);
                const int64_t apart = images.channels_last ? images.channels : images.pixels();
                for (int64_t i = 0; i < LANES; ++i, next = next + apart) __builtin_prefetch(next.data);
                for (int64_t i = 0; i < here; ++i) {
                    store(buffer + ((h + padding_h) % HEIGHT * pitch + padding_w + at) * LANES, v[i]);
                    if (++at == images.width) at = 0, ++h;
                }
            }
        }
    };

    // One dimension of B^T d B.
    static SLT_INLINE void transform_x(F32 a, F32 b, F32 c, F32 d, F32 out[4]) {
        out[0] = a - c;
        out[1] = b + c;
        out[2] = c - b;
        out[3] = d - b;
    }

    // The numbers of x of rows [begin, end) of tiles, counted from row `first`.
    void write_x(int64_t first, int64_t begin, int64_t end, float *x) const {
        Rows<4> rows(a.x, a.window.padding_h, a.window.padding_w, 2 * columns + 2);
        for (int64_t c = 0; c < a.x.channels; c += LANES)
            for (int64_t q = begin; q < end; ++q) {
                const int64_t top = (first + q) % tile_rows * 2;
                rows.move((first + q) / tile_rows, top, q > begin && top > 0, c);
                float *out = x + q * columns * x_pitch + c;
                F32 column[4][4];
                const auto read_column = [&](int64_t j, F32 to[4]) {
                    F32 pixels[4];
                    rows.read(j, pixels);
                    transform_x(pixels[0], pixels[1], pixels[2], pixels[3], to);
                };
                read_column(0, column[2]);
                read_column(1, column[3]);
                for (int64_t j = 0; j < columns; ++j, out += x_pitch) {
                    SLT_UNROLL for (int i = 0; i < 4; ++i) {
                        column[0][i] = column[2][i];
                        column[1][i] = column[3][i];
                    }
                    read_column(2 * j + 2, column[2]);
                    read_column(2 * j + 3, column[3]);
                    SLT_UNROLL for (int i = 0; i < 4; ++i) {
                        F32 numbers[4];
                        transform_x(column[0][i], column[1][i], column[2][i], column[3][i], numbers);
                        SLT_UNROLL for (int p = 0; p < 4; ++p) store(out + (4 * i + p) * x_place, numbers[p]);
                    }
                }
            }
    }

    // One dimension of (2G) g (2G)^T; the halves are taken of the sums.
    static SLT_INLINE void transform_dy(F32 a, F32 b, F32 out[4]) {
        out[0] = a;
        out[1] = a + b;
        out[2] = a - b;
        out[3] = b;
    }

    void write_dy(int64_t first, int64_t begin, int64_t end, float *dy) const {
        Rows<2> rows(a.dy, 0, 0, 2 * columns);
        for (int64_t c = 0; c < a.dy.channels; c += LANES)
            for (int64_t q = begin; q < end; ++q) {
                rows.move((first + q) / tile_rows, (first + q) % tile_rows * 2, false, c);
                float *out = dy + q * columns * dy_pitch + c;
                for (int64_t j = 0; j < columns; ++j, out += dy_pitch) {
                    F32 left[4], right[4], pixels[2];
                    rows.read(2 * j, pixels);
                    transform_dy(pixels[0], pixels[1], left);
                    rows.read(2 * j + 1, pixels);
                    transform_dy(pixels[0], pixels[1], right);
                    SLT_UNROLL for (int i = 0; i < 4; ++i) {
                        F32 numbers[4];
                        transform_dy(left[i], right[i], numbers);
                        SLT_UNROLL for (int p = 0; p < 4; ++p) store(out + (4 * i + p) * dy_place, numbers[p]);
                    }
                }
            }
    }

    // Stores the first `rows` rows of an M x (N * LANES) tile of sums, or adds them.
    template <int M, int N>
    static void tile(const float *dy, int64_t dy_pitch, const float *x, int64_t x_pitch, int64_t count, int64_t rows,
                     bool add, float *sums, int64_t pitch) {
        F32 acc[M][N] = {};
        for (int64_t t = 0; t < count; ++t, dy += dy_pitch, x += x_pitch) {
            F32 of[N];
            SLT_UNROLL for (int n = 0; n < N; ++n) of[n] = load<F32>(x + n * LANES);
            SLT_UNROLL for (int m = 0; m < M; ++m) {
                const F32 by = dy[m] - F32{};
                SLT_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = multiply_add(by, of[n], acc[m][n]);
            }
        }
        SLT_UNROLL for (int m = 0; m < M; ++m) {
            if (m >= rows) return;
            SLT_UNROLL for (int n = 0; n < N; ++n) {
                float *to = sums + m * pitch + n * LANES;
                store(to, add ? load<F32>(to) + acc[m][n] : acc[m][n]);
            }
        }
    }

    template <int N>
    static auto tile_of(int64_t rows) {
        return rows > 8 ? tile<MR, N> : rows > 4 ? tile<EIGHT, N> : rows > 1 ? tile<4, N> : tile<1, N>;
    }

    // The sums of a place over `tiles`, for the rows of a block.
    void multiply(int64_t place, int64_t first_row, int64_t tiles, bool add, const float *x, const float *dy,
                  float *sums) const {
        const int64_t end_row = least(first_row + ROWS, a.source.rows);
        for (int64_t t = 0, count; t < tiles; t += count) {
            const int64_t block = together * columns, left = least(block - t % block, tiles - t);  // of its block
            count = ceil_div(left, ceil_div(left, DEPTH));
            for (int64_t c = 0; c < a.x.channels; c += 2 * LANES) {
                const bool two = c + LANES < a.x.channels;
                const float *from = x + place * x_place + t * x_pitch + c;
                for (int64_t r = first_row; r < end_row; r += MR) {
                    const auto products = two ? tile_of<2>(end_row - r) : tile_of<1>(end_row - r);
                    products(dy + place * dy_place + t * dy_pitch + r, dy_pitch, from, x_pitch, count, end_row - r,
                             add || t > 0, sums + place * sums_place + r * x_pitch + c, x_pitch);
                }
            }
        }
    }

    // Adds the products of rows [first, first + count) of tiles to the sums of a set, or stores them.
    void add_rows(int64_t first, int64_t count, bool add, float *x, float *dy, float *sums, int threads) const {
        parallel_for(threads, 2 * ceil_div(count, ROWS_OF_PIECE), [&](int64_t piece) {
            const int64_t begin = piece / 2 * ROWS_OF_PIECE, end = least(begin + ROWS_OF_PIECE, count);
            piece % 2 ? write_dy(first, begin, end, dy) : write_x(first, begin, end, x);
        });
        const int64_t blocks = ceil_div(a.source.rows, ROWS);
        parallel_for(threads, PLACES * blocks, [&](int64_t piece) {
            multiply(piece / blocks, piece % blocks * ROWS, count * columns, add, x, dy, sums);
        });
    }

    // One dimension of A^T m A, with the halves of 2G.
    static SLT_INLINE void join(F32 a, F32 b, F32 c, F32 d, F32 out[3]) {
        const F32 sum = 0.5f * (b + c);
        out[0] = a + sum;
        out[1] = 0.5f * (b - c);
        out[2] = sum + d;
    }

    // The nine taps of a row, in the first nine places of the first set's sums.
    void join(int64_t row) const {
        for (int64_t c = 0; c < a.x.channels; c += LANES) {
            float *at = sums + row * x_pitch + c;
            F32 rows[4][3], out[3];
            SLT_UNROLL for (int j = 0; j < 4; ++j) {
                F32 total[4];
                SLT_UNROLL for (int i = 0; i < 4; ++i) {
                    const float *of = at + (4 * i + j) * sums_place;
                    total[i] = load<F32>(of);
                    for (int64_t set = 1; set < sets; ++set) total[i] += load<F32>(of + set * PLACES * sums_place);
                }
                join(total[0], total[1], total[2], total[3], rows[j]);
            }
            SLT_UNROLL for (int i = 0; i < 3; ++i) {
                join(rows[0][i], rows[1][i], rows[2][i], rows[3][i], out);
                SLT_UNROLL for (int j = 0; j < 3; ++j) store(at + (3 * i + j) * sums_place, out[j]);
            }
        }
    }

    // LANES neighbouring columns of a row, which are channels of one tap.
    SLT_INLINE F32 taps(int64_t row, int64_t k) const {
        if (k < 0 || k >= a.source.fan) return F32{};
        return load<F32>(sums + k / a.x.channels * sums_place + row * x_pitch + k % a.x.channels);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
