// The contraction in float32, on any processor.
//
// DEPTH pixels at a time: a panel of x [DEPTH][128 columns] and one of dy [DEPTH][ROWS], both cut in strips as wide as
// the register tile, so that all loads of the inner loop are consecutive. The tile is MR rows by two registers: 12 x 32
// in 24 of AVX-512's 32 registers, 6 x 16 in 12 of AVX2's 16; a step of depth is 2 loads and MR broadcasts for 2 MR
// multiply-adds. A strip of x (32 KB with AVX-512) stays in L1 for all rows, the panel of dy (192 KB) in L2; packing
// costs a few per cent. Sums of DEPTH products are added in float32 to the block's, so the error grows with the square
// root of DEPTH and of the number of such sums: 2e-7 at 256 pixels, 4e-7 at 10^5.
#pragma once

#include "contraction.h"

namespace slt::SLT_ISA {
namespace {

SLT_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
    return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

class FloatContraction {
  public:
#if defined(__AVX512F__)
    static constexpr int64_t MR = 12;
#else
    static constexpr int64_t MR = 6;
#endif
    static constexpr int64_t NR = 2 * LANES, DEPTH = 256, ROWS = 192;

    explicit FloatContraction(const GradScores &a)
        : a(a),
          x(a.x, a.window.padding_h, a.window.padding_w, a.threads),
          dy(a.dy, 0, 0, a.threads),
          depth(a.dy.samples * a.dy.pixels()) {}

    // The memory of one piece of work.
    struct Panels {
        Scratch<float> x, dy;
        const float *x_at[DEPTH], *dy_at[DEPTH];  // the pixels of the panels
        int64_t first = -1;                       // of those pixels

        explicit Panels(int64_t rows) : x(DEPTH * CALL), dy(DEPTH * ceil_div(rows, MR) * MR) {}
    };

    // sums [calls][ROWS][128] of the rows from `row` on. `between` runs between parts of the product.
    template <class Between>
    void operator()(Panels &panels, int64_t row, int64_t rows, const Columns *columns, int calls, float *sums,
                    Between between) const {
        for (int c = 0; c < calls; ++c) memset(sums + c * ROWS * CALL, 0, rows * CALL * sizeof(float));
        for (int64_t first = 0; first < depth; first += DEPTH) {
            const int64_t count = least(depth - first, DEPTH);
            if (first != panels.first) {
                locate(first, count, panels);
                pack_dy(row, rows, count, panels);
                panels.first = first;
            }
            for (int c = 0; c < calls; ++c) {
                pack_x(columns[c], count, panels);
                multiply(panels, rows, columns[c], count, sums + c * ROWS * CALL, between);
            }
        }
    }

  private:
    const GradScores &a;
    const Pixels x, dy;
    const int64_t depth;

    void locate(int64_t first, int64_t count, Panels &panels) const {
        Position p(first, a.dy.height, a.dy.width);
        for (int64_t d = 0; d < count; ++d, p.next()) {
            const int64_t h = p.h * a.window.stride_h, w = p.w * a.window.stride_w;
            panels.x_at[d] = x.data + p.image * x.image + h * x.row + w * x.pixel;
            panels.dy_at[d] = dy.data + p.image * dy.image + p.h * dy.row + p.w * dy.pixel;
        }
    }

    // Strips of MR rows: [rows / MR][DEPTH][MR], zeros where there is no row.
    static void pack_dy(int64_t row, int64_t rows, int64_t count, Panels &panels) {
        for (int64_t r = 0; r < rows; r += MR) {
            const int64_t n = least(rows - r, MR);
            float *out = panels.dy + r * DEPTH;
            for (int64_t d = 0; d < count; ++d, out += MR) {
                const float *from = panels.dy_at[d] + row + r;
                if (n == MR) {
                    memcpy(out, from, MR * sizeof(float));
                } else {
                    for (int64_t i = 0; i < MR; ++i) out[i] = i < n ? from[i] : 0;
                }
            }
        }
    }

    // Strips of NR columns: [128 / NR][DEPTH][NR].
    void pack_x(const Columns &columns, int64_t count, Panels &panels) const {
        int64_t offset[CALL];
        for (int c = 0; c < CALL; ++c) offset[c] = columns.h[c] * x.row + columns.w[c] * x.pixel + columns.channel[c];
        for (int64_t c = 0; c < CALL; c += WORD) {
            if (!columns.any(c, WORD)) continue;
            for (int64_t d = 0; d < count; ++d) {
                const float *from = panels.x_at[d];
                float word[WORD];
                if (columns.together[c / WORD]) {
                    from += offset[c];
                    for (int i = 0; i < WORD / 2; ++i) {
                        word[i] = from[2 * i];
                        word[WORD / 2 + i] = from[2 * i + 1];
                    }
                } else {
                    for (int i = 0; i < WORD; ++i) word[i] = columns.valid[c + i] ? from[offset[c + i]] : 0;
                }
                for (int64_t i = 0; i < WORD; i += NR)
                    memcpy(panels.x + (c + i) * DEPTH + d * NR, word + i, NR * sizeof(float));
            }
        }
    }

    template <class Between>
    static void multiply(const Panels &panels, int64_t rows, const Columns &columns, int64_t count, float *sums,
                         Between &between) {
        for (int64_t c = 0; c < CALL; c += NR) {
            if (!columns.any(c, NR)) continue;
            const float *strip = panels.x + c * DEPTH;
            for (int64_t r = 0; r < rows; r += MR) {
                const float *at = panels.dy + r * DEPTH;
                float *to = sums + r * CALL + c;
                const int64_t left = rows - r;
                if (left > 4)
                    tile<MR>(at, strip, count, left, to);
                else if (left > 1)
                    tile<4>(at, strip, count, left, to);
                else
                    tile<1>(at, strip, count, left, to);
                between();
            }
        }
    }

    // Adds the first `rows` rows of an M x NR tile of products to the sums.
    template <int M>
    static void tile(const float *dy, const float *x, int64_t depth, int64_t rows, float *sums) {
        F32 acc[M][2] = {};
        for (int64_t d = 0; d < depth; ++d, dy += MR, x += NR) {
            const F32 x0 = load<F32>(x), x1 = load<F32>(x + LANES);
            SLT_UNROLL for (int m = 0; m < M; ++m) {
                const F32 y = dy[m] - F32{};
                acc[m][0] = multiply_add(y, x0, acc[m][0]);
                acc[m][1] = multiply_add(y, x1, acc[m][1]);
            }
        }
        SLT_UNROLL for (int m = 0; m < M; ++m) {
            if (m >= rows) return;
            float *to = sums + m * CALL;
            store(to, load<F32>(to) + acc[m][0]);
            store(to + LANES, load<F32>(to + LANES) + acc[m][1]);
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
