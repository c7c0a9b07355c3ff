// What a direct convolution computes (direct.h), and what its three forms share.
#pragma once

#include "cpu/conv/sample_fixed_point.h"
#include "cpu/gemm/epilogue.h"

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
};

constexpr int64_t DIRECT_BYTES = 256 << 10;      // of a piece's planes, if a row of positions needs no more
constexpr int64_t DIRECT_L1_BYTES = 24 << 10;    // of the planes of several groups

// The end of `rounded_sum` of the contract, and the bias.
struct DirectEpilogue {
    double power;
    float scale;
    bool plain;
    float exact;

    DirectEpilogue(double power, float scale)
        : power(power), scale(scale), plain(exact_in_float(power)), exact(float(plain ? power : 1)) {}

    SLT_INLINE F32 operator()(F32 v) const { return plain ? v * exact * scale : rare(v); }

    // Of N registers; `bias` is NO_BIAS if there is none.
    template <int N>
    SLT_INLINE void operator()(F32 (&v)[N], F32 bias) const {
        if (plain) {
            SLT_UNROLL for (int i = 0; i < N; ++i) v[i] = v[i] * exact * scale + bias;
        } else {
            F32 results[N];
            SLT_UNROLL for (int i = 0; i < N; ++i) results[i] = v[i];
            for (F32 &each : results) each = rare(each);
            SLT_UNROLL for (int i = 0; i < N; ++i) v[i] = results[i] + bias;
        }
    }

  private:
    __attribute__((noinline)) F32 rare(F32 v) const {
        for (int l = 0; l < LANES; ++l) v[l] = rounded_sum(double(v[l]), power, scale);
        return v;
    }
};

// Offsets of the positions of a band: `reads` into rows of `pitch` pixels of `pixel` numbers, `writes` into pixels of y
// of `written` elements. Positions past the last repeat it.
inline void find_places(const Direct &d, const DirectGrid &grid, int64_t rows, int64_t pitch, int64_t pixel,
                        int64_t written, int64_t positions, int64_t *reads, int64_t *writes) {
    for (int64_t p = 0; p < positions; ++p) {
        const int64_t n = least(p, rows * grid.width - 1), i = n / grid.width, j = n % grid.width;
        reads[p] = (i * d.stride_h * pitch + j * d.stride_w) * pixel;
        writes[p] = ((i * d.step_h + grid.first_h) * d.y.width + grid.first_w + j * d.step_w) * written;
    }
}

// Where the positions of a band of `rows` rows of each grid read and write; whole multiples of `together`.
class Places {
    const int64_t positions;
    const Scratch<int64_t> places;

    static int64_t most_positions(const Direct &d, int64_t rows, int64_t together) {
        int64_t most = 0;
        for (int64_t g = 0; g < d.grids; ++g)
            most = greatest(most, ceil_div(rows * d.grid[g].width, together) * together);
        return most;
    }

  public:
    Places(const Direct &d, int64_t rows, int64_t together, int64_t pitch, int64_t pixel, int64_t written)
        : positions(most_positions(d, rows, together)), places(2 * d.grids * positions) {
        for (int64_t g = 0; g < d.grids; ++g)
            find_places(d, d.grid[g], rows, pitch, pixel, written, positions, places + 2 * g * positions,
                        places + (2 * g + 1) * positions);
    }

    const int64_t *reads(int64_t grid) const { return places + 2 * grid * positions; }
    const int64_t *writes(int64_t grid) const { return reads(grid) + positions; }
};

constexpr float NO_BIAS = -0.0f;  // added to 0, it keeps the sign

// Calls body(sample, piece, fixed point) for the pieces [0, pieces) of all samples. Not EXACT: of no fixed point.
template <bool EXACT, class Body>
void for_pieces(const Direct &d, int64_t pieces, const Body &body) {
    const Images &x = d.x;
    if (EXACT && (d.threads == 1 || x.samples >= 2 * d.threads)) {
        // A thread reads a sample a second time while its cache holds it.
        parallel_for(d.threads, x.samples, [&](int64_t sample) {
            const FixedPoint fixed = fixed_point_of(x, sample, d.digits);
            for (int64_t piece = 0; piece < pieces; ++piece) body(sample, piece, fixed);
        });
        return;
    }
    const Scratch<FixedPoint> fixed(EXACT ? x.samples : 0);
    if (EXACT) fixed_points(x, d.digits, d.threads, fixed);
    parallel_for(d.threads, x.samples * pieces, [&](int64_t i) {
        body(i / pieces, i % pieces, EXACT ? fixed[i / pieces] : FixedPoint{1, 1, 1});
    });
}

}  // namespace
}  // namespace slt::SLT_ISA
